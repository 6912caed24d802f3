"""All attacks."""

from __future__ import annotations

from chaos.hostile import browsers, callers, sessions, strangers
from chaos.hostile.attack import Attack

ATTACKS: tuple[Attack, ...] = (*strangers.ATTACKS, *browsers.ATTACKS, *callers.ATTACKS, *sessions.ATTACKS)
BY_NAME = {attack.name: attack for attack in ATTACKS}
