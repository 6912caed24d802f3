"""What the body of an answer is, by its first bytes: an event stream or JSON. Content types are often wrong."""

from __future__ import annotations

import re
from typing import Final

from holdfast.errors import UpstreamMalformed

_BOM: Final = b"\xef\xbb\xbf"
#: White space, which some servers send to keep a connection alive, and byte order marks.
_IGNORED: Final = re.compile(rb"\A(?:[ \t\r\n]+|\xef\xbb\xbf)+")
#: How an event stream begins: with a field of the standard, or with a comment.
_FIELDS: Final = (b"data:", b"event:", b"id:", b"retry:", b":")


class Beginning:
    """Tells by its first bytes what the body of an answer is, whatever pieces it comes in."""

    __slots__ = ("_content_type", "_held", "is_events")

    def __init__(self) -> None:
        self._content_type = b""
        self._held = b""
        #: None while it is not known.
        self.is_events: bool | None = None

    def begin(self, content_type: bytes) -> None:
        self._content_type = content_type

    def receive(self, body: bytes) -> bytes:
        """Return what has come, without what is ignored before it, once `is_events` is known; b"" until then.

        Raises `UpstreamMalformed` for what is neither events nor JSON.
        """
        held = _IGNORED.sub(b"", self._held + body)
        self._held = b""
        if held[:1] in (b"{", b"["):
            self.is_events = False
        elif self._content_type.lower().startswith(b"text/event-stream") and held and not _BOM.startswith(held):
            self.is_events = True  # with lines that the standard ignores
        elif held.startswith(_FIELDS):
            self.is_events = True
        elif held and not any(text.startswith(held) for text in (*_FIELDS, _BOM)):
            shown = self._content_type[:100].decode("ascii", "replace")
            raise UpstreamMalformed(
                f"the provider answered with content type {shown!r}, and sent neither events nor JSON"
            )
        else:
            self._held = held
            return b""
        return held
