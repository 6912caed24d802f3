"""One client process: runs requests of the plan, `width` at a time, until it is told to begin no more (SIGTERM).

What its predecessor left unfinished in the journal comes first.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
from collections import deque
from pathlib import Path
from typing import Protocol

from chaos.clients.bare import BareClient
from chaos.clients.over_http import HttpClient
from chaos.clients.sdk import SdkClient, SyncSdkClient
from chaos.clients.session import SessionClient
from chaos.clients.unmodified import OpenAIClient
from chaos.journal import Journal, Record, StreamJournal, read
from chaos.schedule import request_plan

#: A stream that has no end after so many seconds hangs.
DEADLINE = 90.0


class Client(Protocol):
    async def run(self, plan: Record, journal: StreamJournal) -> None:
        """Run a request to its end, from where the journal stands."""

    async def aclose(self) -> None: ...


def make_client(kind: str, url: str) -> Client:
    if kind == "sdk":
        return SdkClient(url)
    if kind == "sync":
        return SyncSdkClient(url)
    if kind == "session":
        return SessionClient(url)
    if kind == "bare":
        return BareClient(url)
    if kind == "openai":
        return OpenAIClient(url)
    return HttpClient(url, polls=kind == "poll")


def load(path: Path, journal: Journal) -> tuple[deque[tuple[Record, StreamJournal]], int]:
    """Return the requests that have no end yet, and the index of the next one."""
    unfinished: dict[str, tuple[Record, StreamJournal]] = {}
    index = 0
    for record in read(path):
        request, event = record["request"], record["event"]
        if event == "begin":
            unfinished[request] = (record["plan"], StreamJournal(journal, request))
            unfinished[request][1].was_sent = True
            # Pauses differ, so requests do not begin in the order of their numbers.
            index = max(index, record["plan"]["index"] + 1)
        elif event == "end":
            unfinished.pop(request, None)
        elif request in unfinished:
            state = unfinished[request][1]
            if event == "stream":
                state.stream_id = record["stream"]
            elif event == "got":
                state.after = max(state.after, record["seq"] + len(record["texts"]) - 1)
    return deque(unfinished.values()), index


class Worker:
    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._journal = Journal(args.journal)
        self._unfinished, self._index = load(args.journal, self._journal)
        self._is_stopping = asyncio.Event()
        self._client = make_client(args.kind, args.url)

    async def run(self) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._is_stopping.set)
        print("ready", flush=True)
        await asyncio.gather(*(self._lane() for _ in range(self._args.width)))
        await self._client.aclose()

    async def _lane(self) -> None:
        while self._unfinished or not self._is_stopping.is_set():
            if self._unfinished:
                plan, journal = self._unfinished.popleft()
            else:
                plan = request_plan(self._args.seed, self._args.kind, self._index)
                self._index += 1
                await asyncio.sleep(plan["pause"])
                journal = StreamJournal(self._journal, plan["id"])
                journal.begin(self._args.kind, plan)
            try:
                async with asyncio.timeout(DEADLINE):
                    await self._client.run(plan, journal)
            except TimeoutError:
                journal.end("hung", "no_end_in_time")
            except Exception as exc:  # noqa: BLE001 - what a client did not expect is a finding
                journal.end("crashed", type(exc).__name__, message=repr(exc))
            if not journal.is_over:
                journal.end("silent", "no_end")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind")
    parser.add_argument("--url", required=True)
    parser.add_argument("--journal", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--width", type=int, required=True)
    args = parser.parse_args()
    asyncio.run(run(args))
    # A thread of the synchronous client may hang; the journal has told it, and the process need not.
    os._exit(0)


async def run(args: argparse.Namespace) -> None:
    await Worker(args).run()


if __name__ == "__main__":
    main()
