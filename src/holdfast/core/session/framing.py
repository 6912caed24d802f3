"""How the entries of a log look in the session protocol (PROTOCOL.md, section 4)."""

from __future__ import annotations

from collections.abc import Sequence

from holdfast.core.entries import EndBody


class SessionFraming:
    """Splices entries into `event`, `events` and `end` messages, without decoding or encoding them.

    Stream ids are ASCII without characters that JSON would escape, and each payload is one valid JSON text: the
    answer's reader has checked it. Members come in the order that section 5 of PROTOCOL.md fixes, so that clients
    can count their bytes.
    """

    __slots__ = ()

    def entry(self, stream: bytes, epoch: int, seq: int, payload: bytes) -> bytes:
        """Make the message of one entry."""
        return b'{"type":"event","stream":"%b","seq":%d,"data":%b}' % (stream, seq, payload)

    def entries(self, stream: bytes, epoch: int, first: int, payloads: Sequence[bytes]) -> bytes:
        """Make one message of consecutive entries, the first of which has the number `first`."""
        if len(payloads) == 1:
            return b'{"type":"event","stream":"%b","seq":%d,"data":%b}' % (stream, first, payloads[0])
        return b'{"type":"events","stream":"%b","seq":%d,"data":[%b]}' % (stream, first, b",".join(payloads))

    def end(self, stream: bytes, epoch: int, seq: int, payload: bytes, end: EndBody) -> bytes:
        """Make the message of the end entry; `payload` is `end` as it stands in the log."""
        return b'{"type":"end","stream":"%b","seq":%d,%b' % (stream, seq, payload[1:])


SESSION_FRAMING = SessionFraming()
