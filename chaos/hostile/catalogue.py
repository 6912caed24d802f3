"""All attacks."""

from __future__ import annotations

from chaos.hostile import browsers, callers, sessions, strangers
from chaos.hostile.attack import Attack

ATTACKS: tuple[Attack, ...] = (*strangers.ATTACKS, *browsers.ATTACKS, *callers.ATTACKS, *sessions.ATTACKS)
BY_NAME = {attack.name: attack for attack in ATTACKS}

#: What each change is tried with: a few attacks at a time, so that attackers alone do not take up two cores, of
#: every kind of guest and of what they go for: turns of the loop, memory, connections, parsers, writers.
SAMPLE: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("strangers", ("pipelined-refusals", "stranger-bodies", "header-flood", "garbage")),
    ("callers", ("key-bodies", "unread-sse", "delete-flood")),
    ("sessions", ("refused-creates", "byte-fragments", "pings-unread", "hellos")),
    ("crowd", ("idle-sockets", "slow-heads")),
)
