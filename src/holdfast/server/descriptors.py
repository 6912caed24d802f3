"""How many descriptors the process may have open, and how many connections of clients that leaves room for."""

from __future__ import annotations

import logging

try:
    import resource
except ImportError:  # pragma: no cover - not on every system
    resource = None  # type: ignore[assignment]

logger = logging.getLogger("holdfast")

#: The soft limit is raised to the hard one, but no further than this: some programs walk through all of them.
_ENOUGH = 1 << 20
#: Files, listening sockets, connections for probes and such that linger behind a refusal.
_OTHERS = 64
#: Of what is left, this part may be connections of clients; the rest is for those to providers.
_CLIENTS = (2, 3)
#: New connections with so high a descriptor are the last: `accept` would fail soon, and nobody would get in.
_MARGIN = 24


class Descriptors:
    """The limit of open descriptors. Making it raises the soft limit to the hard one."""

    def __init__(self) -> None:
        #: None where there is no limit, or none is known.
        self.limit = _raise_limit()
        self._warned_of: int | None = None

    @property
    def max_descriptor(self) -> int | None:
        """The descriptor from which on new connections count as the last."""
        return None if self.limit is None else max(self.limit - _MARGIN, 1)

    def connections(self, wanted: int) -> int:
        """Return how many of the wanted connections there may be. It warns once where they are less."""
        if self.limit is None:
            return wanted
        clients, all_ = _CLIENTS
        possible = max((self.limit - _OTHERS) * clients // all_, 1)
        if possible < wanted != self._warned_of:
            self._warned_of = wanted
            logger.warning(
                "server.max_connections is %d, but only %d descriptors may be open (ulimit -n): %d connections "
                "are accepted; raise the limit, or lower the setting",
                wanted,
                self.limit,
                possible,
            )
        return min(wanted, possible)


def _raise_limit() -> int | None:
    if resource is None:  # pragma: no cover
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError) as exc:
            logger.warning("the limit of open descriptors stays at %d: %s", soft, exc)
        else:
            soft = wanted
    return None if soft == resource.RLIM_INFINITY else soft
