"""What the registry asks of admission; `holdfast.admission.queue` answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from holdfast.core.entries import Usage
from holdfast.core.limits.fair_queue import Waiter
from holdfast.dialects.ask import Ask
from holdfast.upstream.capacity import EndpointLease, Endpoints


class Ticket(Protocol):
    """What one admitted request holds: a place in the queue or of the capacity, and what it reserved."""

    @property
    def position(self) -> int | None:
        """How many will be served before it; None where it may start."""

    def wait(self, waiter: Waiter) -> None:
        """Say whom to tell; to be called before the next turn of the loop where there is a position."""

    def take_lease(self) -> EndpointLease | None:
        """Take over the place at a provider that came with its turn; None where it has none, or has given it."""

    def rejoin(self, endpoints: Endpoints, waiter: Waiter) -> bool:
        """Wait once more, for a place at one of these alone. False, with nothing given back, if it has no room."""

    def close(self, usage: Usage | None, units: int) -> None:
        """Give everything back, and settle what was used. Idempotent.

        `units` counts about what was delivered, for an answer without `usage`.
        """


@dataclass(slots=True, frozen=True)
class Caller:
    """Whose limits a request counts against. `key` is None for callers that are not told apart.

    `connection` and `session` are for the log: on which connection of this process the request came.
    """

    tenant: str
    key: str | None = None
    connection: int | None = None
    session: str | None = None


class Admission(Protocol):
    def enter(self, tenant: str, key: str | None, ask: Ask) -> Ticket:
        """Let a request in, or give it a place in the queue. Raises what refuses it; then nothing is held."""
