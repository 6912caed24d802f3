"""The process of attackers: `python -m chaos.hostile.attacker`, steered by one line of JSON on its standard input.

It says `ready`, attacks until its input is closed, and then writes the tallies of its attacks as one line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import sys
from typing import Any

from bench.processes import raise_descriptor_limit
from chaos.hostile.attack import BROKEN, Attack, From
from chaos.hostile.catalogue import BY_NAME
from chaos.hostile.wire import Arena, Tally

#: Below everybody else on that core.
_NICE = 10


async def _play(attack: Attack, arena: Arena) -> None:
    """Play it again wherever it gave up."""
    while True:
        try:
            await attack.play(arena)
        except (OSError, EOFError):
            arena.tally.lost += 1
            await asyncio.sleep(0.1)
        except ExceptionGroup as exc:
            # A fault of the attack itself: the others go on, and the judge says so.
            arena.tally.notes[f"{BROKEN}{exc.exceptions[0]!r}"] += 1
            return


async def _attack(order: dict[str, Any], tallies: dict[str, Tally]) -> None:
    credentials = {From.STRANGER: None, From.TOKEN: order["token"], From.KEY: order["key"]}
    async with asyncio.TaskGroup() as group:
        tasks = []
        for name in order["attacks"]:
            attack, tally = BY_NAME[name], Tally()
            tallies[name] = tally
            arena = Arena(order["port"], credentials[attack.origin], order["tls"], tally)
            tasks.append(group.create_task(_play(attack, arena)))
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)
        for task in tasks:
            task.cancel()


def _spin() -> None:
    """Keep the core as busy as attackers do, and attack nobody."""
    print("ready", flush=True)
    while not select.select([0], [], [], 0)[0]:
        sum(range(100_000))


def main() -> None:
    os.nice(_NICE)
    raise_descriptor_limit()
    order = json.loads(sys.stdin.readline())
    tallies: dict[str, Tally] = {}
    if order["attacks"]:
        asyncio.run(_attack(order, tallies))
    else:
        _spin()
    print(json.dumps({name: tally.shown() for name, tally in tallies.items()}), flush=True)


if __name__ == "__main__":
    main()
