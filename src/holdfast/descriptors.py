"""How many descriptors the process may have open, and how many connections of clients that leaves room for."""

from __future__ import annotations

import errno
import logging
import os

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
#: So many of the last are for probes, for connections that linger behind a refusal, and for files: neither clients
#: nor connections to providers get one of them. Without them `accept` would fail, and nobody would get in.
_MARGIN = 48


class Descriptors:
    """The limit of open descriptors. Making it raises the soft limit to the hard one."""

    def __init__(self) -> None:
        #: None where there is no limit, or none is known.
        self.limit = _raise_limit()
        self._warned_of: int | None = None

    @property
    def max_descriptor(self) -> int | None:
        """The descriptor from which on new connections count as the last."""
        return _first_of_last(self.limit)

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


def check_descriptor(descriptor: int) -> None:
    """Raise OSError where a new connection to a provider has one of the last descriptors."""
    first = _first_of_last(_limit())
    if first is not None and descriptor >= first:
        raise OSError(errno.EMFILE, f"{os.strerror(errno.EMFILE)}; the last ones are for probes")


def _first_of_last(limit: int | None) -> int | None:
    return None if limit is None else max(limit - _MARGIN, 1)


def _limit() -> int | None:
    if resource is None:  # pragma: no cover
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


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
    return _limit()
