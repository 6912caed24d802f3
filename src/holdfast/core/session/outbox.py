"""The messages that a client session has to send, and the count of `attach` messages that wait for an answer."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from holdfast.core.session import messages as m
from holdfast.core.session.client_stream import ClientStream


class Outbox:
    """Messages in the order in which they were added, each one text message."""

    __slots__ = ("_messages", "_unanswered")

    def __init__(self) -> None:
        self._messages: list[bytes] = []
        self._unanswered: dict[str, int] = {}  # how many `attach` of a stream wait for an answer

    def take(self) -> list[bytes]:
        """Return the messages that are due, and forget them."""
        out, self._messages = self._messages, []
        return out

    def connection_lost(self) -> None:
        """Forget what was not sent, and the answers that will not come."""
        self._messages.clear()
        self._unanswered.clear()

    def add(self, message: m.ClientMessage) -> None:
        self._messages.append(m.encode(message))

    def create(self, stream: ClientStream) -> None:
        stream.is_sent = True
        self.add(m.Create(stream.request_id or "", msgspec.Raw(stream.request), stream.start_credit()))
        if stream.is_cancelled:
            self.cancel(stream)

    def attach(self, stream: ClientStream) -> None:
        id_ = stream.id or ""
        self._unanswered[id_] = self._unanswered.get(id_, 0) + 1
        self.add(m.Attach(id_, stream.last_seq, stream.epoch, stream.resume_credit()))

    def awaits_attached(self, id_: str) -> bool:
        """Whether an `attach` of the stream waits for its answer."""
        return id_ in self._unanswered

    def is_newest_answer(self, id_: str) -> bool:
        """Count an answer to `attach`. All but the last belong to attachments that were given up since then."""
        left = self._unanswered.pop(id_, 1) - 1
        if left:
            self._unanswered[id_] = left
        return not left

    def cancel(self, stream: ClientStream) -> None:
        if stream.id is not None:
            self.add(m.Cancel(stream=stream.id))
        else:
            self.add(m.Cancel(request_id=stream.request_id))

    def detach(self, stream: ClientStream) -> None:
        stream.is_live = False
        self.add(m.Detach(stream.id or ""))

    def cancel_or_detach(self, stream: ClientStream) -> None:
        """Say what the application decided about a stream that the server did not know of at the time."""
        if stream.is_cancelled:
            self.cancel(stream)
        if stream.is_detached:
            self.detach(stream)

    def acknowledge(self, streams: Iterable[ClientStream]) -> None:
        """Acknowledge what has come of these streams since the last time, in as few messages as may be."""
        acks = {
            stream.id or "": seq for stream in streams if stream.is_live and (seq := stream.take_ack()) is not None
        }
        for start in range(0, len(acks), m.MAX_STREAMS_PER_MESSAGE):
            self.add(m.Ack(dict(list(acks.items())[start : start + m.MAX_STREAMS_PER_MESSAGE])))
