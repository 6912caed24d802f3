"""Streams by polling: a request that begins the answer, then `GET /streams/{id}` again and again."""

from __future__ import annotations

import asyncio
import re

from holdfast_tools.bench.answer import Answer
from holdfast_tools.bench.http import HttpConnection
from holdfast_tools.bench.load import Load

_STATE = re.compile(rb'"status": ?"([a-z]+)".*?"next": ?(\d+)')
_ENTRY = b'"choices"'
#: Seconds that the gateway may hold a long poll.
_HOLD = 25
_MAX_SHOWN = 600


class PollReader:
    """Reads one answer after another by long polls, or by polls that come each `plan.poll_interval` seconds.

    Two connections take turns: `POST` begins the answer and is left behind its head (`holdfast-on-disconnect:
    continue` keeps the generation), the other one carries all polls. An answer whose head has not come when the
    load stops cannot be cancelled: it comes to its end unread.
    """

    def __init__(self, load: Load, number: int) -> None:
        plan = load.plan
        self._load = load
        self._loop = asyncio.get_running_loop()
        path = load.target.path.encode()
        self._headers = load.headers()
        self._head = (
            b"POST %b/chat/completions HTTP/1.1\r\n%bcontent-type: application/json\r\n"
            b"accept: text/event-stream\r\nholdfast-on-disconnect: continue\r\ncontent-length: "
        ) % (path, self._headers)
        self._is_long = plan.transport == "long-poll"
        live = f"live=long-poll&timeout={_HOLD}" if self._is_long else "live=none"
        self._query = live.encode()
        self._interval = 0.0 if self._is_long else plan.poll_interval
        # Spread over the interval, as clients that came at different times are.
        self._phase = self._interval * number / plan.streams
        self._answer: Answer | None = None
        self._poster: _Poster | None = None
        self._connection: HttpConnection | None = None
        self._is_open = False
        self._timer: asyncio.TimerHandle | None = None
        self._stream = ""
        self._status = 0
        self._body: list[bytes] = []
        self._is_settled = False

    def start(self) -> None:
        self._stream = ""
        self._answer = answer = self._load.new_answer()
        self._poster = _Poster(self._load, self, self._head, answer)

    async def stop(self) -> None:
        self._hang_up()
        if self._stream:
            await self._load.cancel(self._stream)

    # -- the beginning of an answer ------------------------------------------------------------------------

    def begun(self, stream: str) -> None:
        self._stream = stream
        if self._connection is None:
            self._connection = connection = HttpConnection(self._load, self)
            self._load.connect(connection, self.lost)
        else:
            self._poll_soon()

    # -- the owner of the polls' connection -------------------------------------------------------------------

    def opened(self) -> None:
        self._is_open = True
        self._poll_soon()

    def head_received(self, status: int, stream_id: str) -> None:
        self._status = status
        self._body.clear()

    def body_received(self, data: bytes, now_ns: int) -> None:
        self._body.append(data)
        self._now_ns = now_ns

    def body_ended(self, *, keep_alive: bool) -> None:
        body, tally, answer = b"".join(self._body), self._load.tally, self._answer
        state = _STATE.search(body)
        if self._status != 200 or state is None or answer is None:
            self._hang_up()
            self.lost(f"HTTP {self._status} to a poll: {body[:_MAX_SHOWN].decode('utf-8', 'replace').strip()}")
            return
        answer.receive(body, self._now_ns, tally)
        status, after = state[1], int(state[2])
        entries = body.count(_ENTRY) + (status != b"running")  # the end has a number, and no place in `entries`
        if after != answer.next_seq:
            answer.check_numbers(after - entries, entries, tally)
        if answer.last_ns:
            self._settle()
        if not keep_alive:
            self._hang_up()
        if status == b"running":
            self._poll_soon() if keep_alive else self.begun(self._stream)
        elif status == b"completed":
            answer.end(tally)
            self._stream = ""
            if self._load.plan.fresh:
                self._hang_up()
            if self._load.goes_on():
                self.start()
        else:
            self._hang_up()
            self.lost(f"the stream ended {status.decode()}: {body[-_MAX_SHOWN:].decode('utf-8', 'replace')}")

    def lost(self, why: str) -> None:
        self._connection, self._is_open, self._stream = None, False, ""
        self._load.fail(why)
        self._settle()
        self._load.again(self.start)

    # -- polls -------------------------------------------------------------------------------------------------

    def _poll_soon(self) -> None:
        if not self._interval:
            self._poll()
            return
        now, interval = self._loop.time(), self._interval
        due = (now - self._phase) // interval * interval + interval + self._phase
        self._timer = self._loop.call_at(due, self._poll)

    def _poll(self) -> None:
        self._timer = None
        if self._connection is not None and self._answer is not None and self._is_open:
            after = self._answer.next_seq - 1
            request = b"GET %b?after=%d&%b HTTP/1.1\r\n%b\r\n"
            self._connection.send(request % (self._path(), after, self._query, self._headers))

    def _path(self) -> bytes:
        return f"{self._load.target.path}/streams/{self._stream}".encode()

    def _hang_up(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._poster is not None:
            self._poster.close()
            self._poster = None
        if self._connection is not None:
            self._connection.close()
            self._connection, self._is_open = None, False

    def _settle(self) -> None:
        if not self._is_settled:
            self._is_settled = True
            self._load.unsettled.count()


class _Poster:
    """Begins one answer, and leaves once its head has said which stream it is."""

    def __init__(self, load: Load, reader: PollReader, head: bytes, answer: Answer) -> None:
        self._load = load
        self._reader = reader
        self._head = head
        self._answer = answer
        self._status = 0
        self._body = b""
        self._connection = connection = HttpConnection(load, self)
        load.connect(connection, reader.lost)

    def close(self) -> None:
        self._connection.close()

    def opened(self) -> None:
        body = self._load.body(self._answer)
        self._connection.send(b"%b%d\r\n\r\n%b" % (self._head, len(body), body))

    def head_received(self, status: int, stream_id: str) -> None:
        self._status = status
        if status == 200:
            self._connection.close()
            if stream_id:
                self._reader.begun(stream_id)
            else:
                self._reader.lost("the answer has no holdfast-stream-id: only Holdfast can be polled")

    def body_received(self, data: bytes, now_ns: int) -> None:
        self._body = (self._body + data)[:_MAX_SHOWN]

    def body_ended(self, *, keep_alive: bool) -> None:
        self._connection.close()
        self._reader.lost(f"HTTP {self._status}: {self._body.decode('utf-8', 'replace').strip()}")

    def lost(self, why: str) -> None:
        self._reader.lost(why)
