"""Decides when what was seen of files may be taken: when it has stopped changing. It looks at no clock."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from msgspec import Struct

#: Seconds that two looks lie apart at least, of which the second confirms what the first has seen.
SETTLE = 0.9

#: What tells a file from what it was before, without reading it: times of change, size, and which file it is.
Signature: TypeAlias = tuple[int, int, int, int]


class Look(Struct, frozen=True):
    """What one look saw of some files: a signature and a content for each, None for one that cannot be read."""

    signatures: tuple[Signature | None, ...]
    contents: tuple[bytes | None, ...]

    @property
    def is_whole(self) -> bool:
        return None not in self.contents


def look_at(paths: Sequence[Path], known: Look | None, *, max_size: int) -> Look:
    """Look at files. They are not read where their signatures are those of `known`.

    A file beyond `max_size` bytes counts as one that cannot be read, and so does what is no regular file.
    """
    signatures = tuple(map(_signature, paths))
    if known is not None and known.signatures == signatures:
        return known
    found = zip(paths, signatures, strict=True)
    return Look(signatures, tuple(None if seen is None else _content(path, max_size) for path, seen in found))


def _signature(path: Path) -> Signature | None:
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    if not stat.S_ISREG(status.st_mode):
        return None  # to open a pipe would wait for who writes to it
    # The time of the inode's change as well: the other one can be set back, as `cp -p` and rsync do.
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino


def _content(path: Path, max_size: int) -> bytes | None:
    try:
        with path.open("rb") as file:
            content = file.read(max_size + 1)
    except (OSError, ValueError):
        return None
    return content if len(content) <= max_size else None


class Settling:
    """Follows the looks at some files, and says when to take what is there.

    | state | what moves it there |
    |---|---|
    | settled | the look is the one that was dealt with last |
    | changing | a look that is another one than the last; it waits for its confirmation |
    | to be taken | a second look, `SETTLE` seconds later or more, that is the same |

    `ask` has the files taken even if nothing has changed, though not before two looks after it were the same.
    Invariant: what is taken was there, the same to the byte, at both ends of an interval of `SETTLE` seconds.
    """

    def __init__(self, dealt_with: Look | None = None) -> None:
        self.dealt_with = dealt_with
        self._seen: Look | None = None
        self._seen_at = 0.0
        #: Whether the newest look saw other content than the one before, which was to be confirmed.
        self.is_restless = False
        #: Whether somebody has asked for it, and has not been answered yet.
        self.is_asked = False

    def ask(self) -> None:
        """Somebody says that the files are to be taken now."""
        if not self.is_asked:
            self.is_asked = True
            self._seen = None

    def known(self) -> Look | None:
        """What need not be read again while its signatures stay."""
        return None if self.is_asked else self.dealt_with

    def look(self, look: Look, now: float) -> bool:
        """Note what a look at `now` saw. Returns whether it is to be dealt with, in this turn."""
        self.is_restless = False
        if look == self.dealt_with and not self.is_asked:
            self._seen = None
            return False
        if look != self._seen:
            self.is_restless = self._seen is not None
            self._seen, self._seen_at = look, now
            return False
        if now - self._seen_at < SETTLE:
            return False
        self.dealt_with, self._seen, self.is_asked = look, None, False
        return True
