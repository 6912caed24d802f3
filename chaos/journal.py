"""Append-only files of JSON lines: what clients, links and the provider wrote down while they ran.

A line is written with one system call as soon as it is true, so a process that is killed leaves whole lines; what
it wrote is also the cursor from which its successor goes on.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

Record: TypeAlias = dict[str, Any]


class Journal:
    """A file that only grows. Each record gets `at`, the monotonic clock that all processes of a host share."""

    def __init__(self, path: Path) -> None:
        if path.exists() and not (written := path.read_bytes()).endswith(b"\n"):
            # A predecessor was killed within a write: what it did not finish, it did not say.
            os.truncate(path, written.rfind(b"\n") + 1)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def write(self, **record: Any) -> None:
        line = json.dumps({"at": round(time.monotonic(), 4), **record}, separators=(",", ":"))
        os.write(self._file, line.encode() + b"\n")

    def close(self) -> None:
        os.close(self._file)


def read(path: Path) -> Iterator[Record]:
    """Yield the records of a file; a torn last line, of a process that was killed in its write, is left out."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield json.loads(line)


class StreamJournal:
    """What a client writes down about one stream; `chaos.checker` says what it means."""

    def __init__(self, journal: Journal, request_id: str) -> None:
        self._journal = journal
        self.request_id = request_id
        self.stream_id: str | None = None
        self.after = -1
        #: Whether a process before this one may have sent the request.
        self.was_sent = False
        self.is_over = False

    def _write(self, event: str, **fields: Any) -> None:
        self._journal.write(event=event, request=self.request_id, **fields)

    def begin(self, kind: str, plan: Record) -> None:
        self._write("begin", client=kind, plan=plan)

    def identify(self, stream_id: str) -> None:
        """The gateway has said which stream it is."""
        if stream_id != self.stream_id:
            self.stream_id = stream_id
            self._write("stream", stream=stream_id)

    def read_from(self, after: int) -> None:
        """A reading begins, asked for behind entry `after`."""
        self._write("read", after=after)

    def got(self, seq: int, texts: list[str]) -> None:
        """Entries came, the first with number `seq`."""
        self._write("got", seq=seq, texts=texts)
        self.after = max(self.after, seq + len(texts) - 1)

    def lost(self, reason: str) -> None:
        """The connection broke; the client will try again."""
        self._write("lost", reason=reason[:200])

    def end(self, status: str, code: str | None = None, seq: int | None = None, message: str = "") -> None:
        """Nothing more will come. `completed`, or `failed` with a code."""
        if not self.is_over:
            self.is_over = True
            self._write("end", status=status, code=code, seq=seq, message=message[:300])
