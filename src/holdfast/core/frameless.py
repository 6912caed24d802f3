"""Errors as values: an error that is kept or handed on, without the frames that it came through."""

from __future__ import annotations

from typing import TypeVar

_E = TypeVar("_E", bound=BaseException)


def without_frames(error: _E) -> _E:
    """Take the tracebacks off an error and its causes; return it.

    Frames know their callers, and what these know: an error that comes back to one of them is a cycle, which would
    keep the request, and its body of megabytes, until the next collection.
    """
    each: BaseException | None = error
    while each is not None:
        each.__traceback__ = None
        each = each.__cause__ or each.__context__
    return error
