"""What the audit log says of callers who were refused: enough to see an attack, however many tries it has.

Within a minute the first few failures of each address have a line of their own. At its end there is one for each
of those with the most further ones, and one for all. So lines and memory have bounds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from holdfast.admission.limiter import network_of
from holdfast.errors import Forbidden, HoldfastError, InvalidRequest, Unauthorized
from holdfast.observe.audit import audit
from holdfast.timers import Deadline, Timers

#: Seconds over which failures are counted.
WINDOW: Final = 60.0
#: Lines within a window: for one address (of IPv6 a /64), and for all.
PER_ADDRESS: Final = 5
PER_WINDOW: Final = 100
#: Most addresses that are told apart, and most that the end of a window names.
MAX_ADDRESSES: Final = 1_000
MAX_NAMED: Final = 10

#: What a caller is refused for; other errors, such as that of an issuer that is down, are not the caller's.
_REFUSALS: Final = (Unauthorized, Forbidden, InvalidRequest)


class AuthFailures:
    """Counts refused callers, and writes some of them to the audit log. `close` writes what is left."""

    def __init__(self, timers: Timers) -> None:
        self._timers = timers
        self._counts: dict[str, int] = {}
        self._total = 0
        self._lines = 0
        self._begun = 0.0
        self._end: Deadline | None = None

    def note(
        self,
        error: HoldfastError,
        *,
        address: str,
        connection: int,
        method: str,
        route: str,
        describe: Callable[[], str],
    ) -> bool:
        """Note one refusal; False for an error that is none. `describe` says what the credential was, not which.

        `route` is the path's pattern, since a path may hold anything.
        """
        if not isinstance(error, _REFUSALS):
            return False
        if self._end is None:
            self._begun = self._timers.now()
            self._end = self._timers.after(WINDOW, self._end_window)
        self._total += 1
        network = network_of(address)
        count = self._counts.get(network, 0)
        if count or len(self._counts) < MAX_ADDRESSES:
            self._counts[network] = count + 1
        if count < PER_ADDRESS and self._lines < PER_WINDOW:
            self._lines += 1
            audit(
                "auth_failed",
                address=network,
                connection=connection,
                method=method,
                route=route,
                error=error.code,
                reason=error.message,
                credential=describe(),
            )
        return True

    def close(self) -> None:
        if self._end is not None:
            self._end.cancel()
            self._end_window()

    def _end_window(self) -> None:
        self._end = None
        if self._total > self._lines:
            seconds = round(self._timers.now() - self._begun)
            most = sorted(self._counts.items(), key=lambda item: -item[1])[:MAX_NAMED]
            for network, count in most:
                if count > PER_ADDRESS:
                    audit("auth_failures", address=network, failures=count, seconds=seconds)
            audit(
                "auth_failures_in_all",
                addresses=len(self._counts),
                failures=self._total,
                without_line=self._total - self._lines,
                seconds=seconds,
            )
        self._counts.clear()
        self._total = self._lines = 0
