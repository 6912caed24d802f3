"""Plays rows: a gateway for each, honest callers and attackers, and what is left when they have gone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from bench.processes import LOAD_CORE, pinned
from chaos.checker import check
from chaos.hostile.attack import Attack
from chaos.hostile.honest import DOOR_MS, PACE_MS, PROBE_MS
from chaos.hostile.target import BUDGET, Target, target
from chaos.hostile.verdict import Held, Row, Times, expanded, judge
from chaos.journal import read

#: Seconds for which honest callers are alone, so that what a process makes once is made.
_WARM_UP = 1.0
#: Seconds after that in which idle connections to providers are closed.
_AT_REST = 2.0
#: Processes that the attacks of a row are shared out to.
_ATTACKERS = 3
#: Seconds that attackers are there before the honest callers come.
_HEAD_START = 0.5
_STARTS = 30.0
#: Seconds beyond its time after which a process is given up.
_HANGS = 60.0


class Failed(Exception):
    """A process of the run itself did not do its work."""


class Child:
    """A process on the core of the load that takes one line of JSON, and gives one at its end."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, module: str, order: dict[str, Any]) -> Child:
        core = LOAD_CORE if (os.cpu_count() or 1) > 1 else None
        pipe = asyncio.subprocess.PIPE
        command = [*pinned(core), sys.executable, "-m", module]
        # A token's payload may be long, and so may the times of twenty seconds.
        process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, limit=1 << 26)
        child = cls(process)
        if process.stdin is not None:
            process.stdin.write(json.dumps(order).encode() + b"\n")
        if (await child._line(_STARTS)).strip() != b"ready":
            raise Failed(f"{module} did not start")
        return child

    async def _line(self, timeout: float) -> bytes:
        if self._process.stdout is None:
            raise Failed("the process has no output")
        async with asyncio.timeout(timeout):
            return await self._process.stdout.readline()

    async def result(self, timeout: float) -> Any:
        """Wait for the line that it ends with."""
        line = await self._line(timeout)
        if not line:
            raise Failed("a process of the run ended without its result")
        return json.loads(line)

    async def end(self) -> Any:
        """Tell it to end, and return its result; None if it gave none."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            return await self.result(10.0)
        except (TimeoutError, Failed, ValueError):
            return None
        finally:
            await self.kill()

    async def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()


@contextlib.asynccontextmanager
async def _attacking(gateway: Target, attacks: Sequence[Attack], tallies: dict[str, Any]) -> AsyncIterator[None]:
    """Attack meanwhile; with no attack, only keep the core busy. `tallies` is filled at the end."""
    order = {"port": gateway.port, "tls": gateway.tls, "key": gateway.keys.mallory, "token": gateway.token()}
    shares = [[each.name for each in attacks[n::_ATTACKERS]] for n in range(_ATTACKERS)]
    shares = [share for share in shares if share] or [[]]
    children = []
    try:
        for share in shares:
            children.append(await Child.start("chaos.hostile.attacker", {**order, "attacks": share}))
        await asyncio.sleep(_HEAD_START)
        yield
    finally:
        for result in await asyncio.gather(*(child.end() for child in children)):
            tallies.update(result or {})


async def _honest(gateway: Target, seconds: float, journal: Path) -> Times:
    """Let honest callers work for so long."""
    order = {"port": gateway.port, "tls": gateway.tls, "key": gateway.keys.honest, "gateway": gateway.pid}
    child = await Child.start("chaos.hostile.honest", {**order, "seconds": seconds, "journal": str(journal)})
    try:
        result = await child.result(seconds + _HANGS)
    finally:
        await child.kill()
    doors = [judged for judged, _ in result["doors"]]
    return Times(
        gaps=expanded((judged for judged, _ in result["gaps"]), PACE_MS),
        probes=[
            *expanded((judged for judged, _ in result["probes"]), PROBE_MS),
            *expanded(doors, DOOR_MS),
        ],
        count=min(len(result["gaps"]), len(result["probes"])),
        seconds=seconds,
        stolen=result["gateway_waited"] / result["seconds"],
        refused=result["refused"],
    )


class Suite:
    """All rows of one run, with the providers that they share. `settle` bounds the wait for the start's state."""

    def __init__(self, folder: Path, calm: str, busy: str, *, settle: float) -> None:
        self._folder = folder
        self._calm = calm
        self._busy = busy
        self._settle = settle
        self.quiet = 0.0

    async def measure_quiet(self, seconds: float) -> Times:
        """Measure honest callers while nobody attacks, and what else runs keeps the core as busy."""
        folder = self._make("quiet")
        with target(folder, self._calm, self._busy, tls=False) as gateway:
            await _honest(gateway, _WARM_UP, folder / "warm.jsonl")
            async with _attacking(gateway, (), {}):
                times = await _honest(gateway, seconds, folder / "honest.jsonl")
        self.quiet = times.probe
        return times

    async def play(self, name: str, attacks: Sequence[Attack], seconds: float) -> Row:
        """Play one row and judge it."""
        folder = self._make(name)
        tls = any(attack.needs_tls for attack in attacks)
        tallies: dict[str, Any] = {}
        with target(folder, self._calm, self._busy, tls=tls) as gateway:
            await _honest(gateway, _WARM_UP, folder / "warm.jsonl")
            start = await self._rest(gateway, None)
            if start is None:
                raise Failed("the gateway does not answer before the attack")
            gateway.forget_peak()
            async with _attacking(gateway, attacks, tallies):
                times = await _honest(gateway, seconds, folder / "honest.jsonl")
            peak = gateway.peak if gateway.is_running else 0
            after = await self._rest(gateway, start) if gateway.is_running else None
            faults = gateway.faults()
        streams = check([read(folder / "honest.jsonl")], [], [])
        row = Row(name, attacks, seconds, BUDGET, self.quiet, times, streams, tallies, start, peak, after, faults)
        row.findings = judge(row)
        return row

    async def _rest(self, gateway: Target, start: Held | None) -> Held | None:
        """Return what it holds when that is no more than at the start, or when the time for that is over.

        Without a start: when connections to providers have been closed, which is what the start is.
        """
        deadline = time.monotonic() + (self._settle if start is not None else _AT_REST)
        held = None
        while time.monotonic() < deadline and gateway.is_running:
            try:
                held = await asyncio.to_thread(gateway.held)
            except (OSError, ValueError):
                held = None
            if held is not None and start is not None and not held.beyond(start) and not held.keeps_memory(start):
                break
            await asyncio.sleep(0.25)  # nobody tells when the last of it is given back
        return held

    def _make(self, name: str) -> Path:
        folder = self._folder / name
        folder.mkdir()
        return folder
