"""Whether what the process has read from outside, such as its configuration, is still what is there now.

`GET /readyz` shows it to anyone who can reach the port, so reasons here name no file, host or value: the log has
those.
"""

from __future__ import annotations

import math
from enum import Enum

from msgspec import Struct

#: Seconds between two lines of the log about one failure that lasts.
SAY_AGAIN = 60.0


class Source(Enum):
    """What is read from outside, and may go stale."""

    CONFIGURATION = "configuration"
    CERTIFICATES = "certificates"
    KEY_STORE = "key_store"
    ISSUER_KEYS = "issuer_keys"


class State(Struct, frozen=True, omit_defaults=True):
    """One source. Times are in Unix seconds. `version` tells two contents apart: the beginning of a hash.

    `since` is when what is in use was taken; None where nothing ever was. `stale_since` is when the first failure
    in a row came, None while there is none.
    """

    since: float | None
    version: str | None = None
    stale: bool = False
    reason: str | None = None
    stale_since: float | None = None


class Freshness:
    """The state of each source. Whoever reads a source tells of each success and failure."""

    def __init__(self) -> None:
        self._states: dict[Source, State] = {}
        self._said: dict[Source, tuple[str, float]] = {}

    @property
    def is_stale(self) -> bool:
        return any(state.stale for state in self._states.values())

    def taken(self, what: Source, now: float, *, version: str | None = None) -> bool:
        """What is there now is in use. Returns whether a failure has ended by that."""
        was_stale = what in self._states and self._states[what].stale
        self._states[what] = State(since=now, version=version)
        self._said.pop(what, None)
        return was_stale

    def failed(self, what: Source, reason: str, now: float, *, detail: str = "") -> bool:
        """What is there now cannot be used, and the old stays. `reason` is public; see above.

        Returns whether the log should say so: the first time, when `reason` or `detail` is another one, and once
        a minute while it lasts.
        """
        old = self._states.get(what, State(since=None))
        self._states[what] = State(
            since=old.since,
            version=old.version,
            stale=True,
            reason=reason,
            stale_since=now if old.stale_since is None else old.stale_since,
        )
        text = f"{reason}\n{detail}"
        said, when = self._said.get(what, ("", -math.inf))
        # A clock that was set back must not silence it.
        if said == text and abs(now - when) < SAY_AGAIN:
            return False
        self._said[what] = (text, now)
        return True

    def report(self) -> dict[str, State]:
        """Return the state of each source that was read, by its name."""
        return {what.value: state for what, state in self._states.items()}
