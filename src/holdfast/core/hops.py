"""The loop guard: which gateways a request has passed, so that one that leads back to itself is refused at once.

Each gateway process has a random id, and names itself in a header of its requests to providers. A provider that is
no gateway ignores it. `Via` (RFC 9110 section 7.6.3) would say the same, but proxies on the way add to it and drop
it, and some servers answer otherwise where it is there.
"""

from __future__ import annotations

import re
from typing import Final

from holdfast.errors import InvalidRequest, LoopDetected

HEADER: Final = b"holdfast-hops"
#: Most gateways in a row.
MAX_HOPS: Final = 5

_ID: Final = re.compile(r"[0-9a-f]{16}")


def check_hops(value: str | None, own: str) -> bytes:
    """Check the header of a request that has come. Returns what its requests to providers carry on, b"" for none.

    Raises `LoopDetected` where it has passed this gateway before, or `MAX_HOPS` of them, and `InvalidRequest`
    for what no gateway writes.
    """
    if value is None:
        return b""
    passed = value.replace(" ", "").split(",")
    if not all(map(_ID.fullmatch, passed[: MAX_HOPS + 1])):
        raise InvalidRequest(
            "the header holdfast-hops is written by gateways; leave it out", param=HEADER.decode()
        )
    if own in passed:
        raise LoopDetected("the request has come back to the gateway that it came from: a provider leads there")
    if len(passed) >= MAX_HOPS:
        raise LoopDetected(f"the request has passed {MAX_HOPS} gateways")
    return ",".join(passed).encode()
