"""The compact form of a signed token (RFC 7515 section 7.1), more strictly than the library that verifies it."""

from __future__ import annotations

import base64
import re

_PART = r"[A-Za-z0-9_-]+"
_COMPACT = re.compile(rf"{_PART}\.{_PART}\.({_PART})")


def is_compact(token: str) -> bool:
    """Whether a token has three parts in base64url without padding, and its signature is written in the one way.

    Else several texts would be the same token, and whoever lists or blocks tokens by their text would miss some.
    """
    match = _COMPACT.fullmatch(token)
    if match is None:
        return False
    signature = match[1]
    try:
        raw = base64.urlsafe_b64decode(signature + "=" * (-len(signature) % 4))
    except ValueError:
        return False
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode() == signature
