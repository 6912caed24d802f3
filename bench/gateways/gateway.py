"""What an adapter gives: a running gateway, and what its clients must know."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

#: Where `make bench-peers` installs gateways, each into an environment of its own.
PEERS = Path(__file__).resolve().parents[2] / ".peers"


@dataclass(frozen=True)
class Running:
    """A running gateway. `pid` is None where there is none in between."""

    url: str
    pid: int | None
    headers: dict[str, str] = field(default_factory=dict)
    #: How the simulated provider is steered through it: not all gateways pass fields on that they do not know.
    steer_by: Literal["field", "prompt"] = "field"


class Adapter(Protocol):
    """A module of this package."""

    def available(self) -> str | None:
        """Why it cannot be run here, and what would install it; None if it can."""

    def start(self, provider_url: str, core: int) -> AbstractContextManager[Running]:
        """Run it on one core in front of the provider at `provider_url` (up to `/v1`)."""


def peer_missing(path: Path) -> str | None:
    return None if path.exists() else "not installed (make bench-peers)"


@contextmanager
def in_between(running: Running) -> Iterator[Running]:
    """Something that needs no start."""
    yield running
