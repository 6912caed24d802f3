"""A provider that the test plays, call by call: no sockets, no connections."""

from __future__ import annotations

import asyncio
import json

from holdfast.core.http.request import Headers, HttpRequest
from holdfast.errors import UpstreamError
from holdfast.upstream.call import ResponseSink


def chunk(text: str | None = None, **fields: object) -> bytes:
    """Write a chunk of a chat completion."""
    choices = [] if text is None else [{"index": 0, "delta": {"content": text}, "finish_reason": None}]
    return json.dumps({"choices": choices, **fields}).encode()


FINISH = json.dumps({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}).encode()


class ScriptedCall:
    """One request that the provider was sent. `told` is what the gateway did with it."""

    def __init__(self, request: HttpRequest, sink: ResponseSink) -> None:
        self.request = request
        self.told: list[str] = []
        self.sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # Who takes the answer; nobody once the gateway has left it or cancelled it.
        self.sink: ResponseSink | None = sink

    # -- the provider's side --

    def head(self, status: int = 200, **headers: str) -> ScriptedCall:
        headers = {"content_type": "text/event-stream", **headers}
        fields: Headers = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        if self.sink is not None:
            self.sink.response_received(status, fields)
        return self

    def events(self, *payloads: bytes) -> ScriptedCall:
        return self.data(*[b"data: " + payload + b"\n\n" for payload in payloads])

    def data(self, *chunks: bytes) -> ScriptedCall:
        if self.sink is not None:
            self.sink.data_received(list(chunks))
        return self

    def tokens(self, *texts: str) -> ScriptedCall:
        return self.events(*[chunk(text) for text in texts])

    def complete(self, *, prompt: int = 7, completion: int = 3) -> None:
        """End the answer with its finish reason and its usage."""
        usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
        self.events(FINISH, chunk(usage=usage), b"[DONE]")

    def answer(self, *texts: str) -> None:
        self.head().tokens(*texts).complete()

    def refuse(self, status: int, message: str = "no", **headers: str) -> None:
        self.head(status, **headers)
        self.data(json.dumps({"error": {"message": message}}).encode())
        self.end()

    def end(self) -> None:
        if self.sink is not None:
            self.sink.response_ended()

    def fail(self, error: UpstreamError) -> None:
        if self.sink is not None:
            self.sink.response_failed(error)

    # -- the gateway's side --

    def pause(self) -> None:
        self.told.append("pause")

    def resume(self) -> None:
        self.told.append("resume")

    def leave(self) -> None:
        self.told.append("leave")
        self.sink = None

    def cancel(self) -> None:
        self.told.append("cancel")
        self.sink = None

    @property
    def body(self) -> dict[str, object]:
        body: dict[str, object] = json.loads(self.request.body)
        return body


class ScriptedUpstream:
    """One origin. Requests are on their way at once, unless `connects` is false or an `error` is set."""

    def __init__(self) -> None:
        self.calls: list[ScriptedCall] = []
        self.connects = True
        self.error: UpstreamError | None = None
        self.cancelled = 0

    async def send(self, request: HttpRequest, sink: ResponseSink) -> ScriptedCall:
        if self.error is not None:
            raise self.error
        call = ScriptedCall(request, sink)
        self.calls.append(call)
        if not self.connects:
            try:
                await call.sent
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        return call

    @property
    def call(self) -> ScriptedCall:
        """The newest call."""
        return self.calls[-1]
