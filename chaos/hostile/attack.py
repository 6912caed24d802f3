"""What an attack is: a name, from whom it comes, what it does, and by what is seen that it took place."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum

from chaos.hostile.wire import Arena

#: How the note of an attack begins that failed by its own fault.
BROKEN = "broken: "


class From(Enum):
    """The credential of an attacker."""

    STRANGER = "stranger"
    TOKEN = "client token"  # noqa: S105 - what it is called
    KEY = "key"


@dataclass(frozen=True)
class Attack:
    """`play` goes on until it is cancelled.

    The attack took place if it had `connections`, sent at least `sent` bytes, and noted each of `proofs`: statuses
    of HTTP, types of messages, or what it notes itself. All of that is meant for two seconds or more.
    One that `crowds` takes the connections that others of its kind would need for their attacks.
    """

    name: str
    origin: From
    play: Callable[[Arena], Awaitable[None]]
    does: str
    connections: int
    sent: int
    proofs: tuple[str, ...]
    needs_tls: bool
    crowds: bool


def attack(
    name: str,
    origin: From,
    *,
    connections: int = 1,
    sent: int = 1000,
    proofs: tuple[str, ...] = (),
    needs_tls: bool = False,
    crowds: bool = False,
) -> Callable[[Callable[[Arena], Awaitable[None]]], Attack]:
    """Make an attack of a coroutine function; the first paragraph of its docstring says what it does."""

    def made(play: Callable[[Arena], Awaitable[None]]) -> Attack:
        does = " ".join((play.__doc__ or "").split("\n\n")[0].split())
        return Attack(name, origin, play, does, connections, sent, proofs, needs_tls, crowds)

    return made
