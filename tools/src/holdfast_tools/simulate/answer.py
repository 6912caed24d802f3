"""The bytes of one answer, in the exact shapes of OpenAI's chat completions. No I/O and no clock."""

from __future__ import annotations

import msgspec

from holdfast_tools.simulate.faults import ErrorEvent, Malformed
from holdfast_tools.simulate.prose import prose
from holdfast_tools.simulate.request import ChatRequest, Simulation, error_body
from holdfast_tools.simulate.text import token, token_range

DONE = b"data: [DONE]\n\n"
#: The demo answer's pace.
PROSE_PACE = Simulation(interval_ms=30.0, ttft_ms=150.0)

_FINGERPRINT = "fp_holdfast_simulate"
_MALFORMED = {
    "invalid_json": b'data: {"choices":[{"index":0,"delta":{"content":"unclosed}\n\n',
    "breakout": b'data: {"a":1},{"b":2}\n\n',
    "invalid_utf8": b'data: {"choices":[{"index":0,"delta":{"content":"\xff\xfe\xc3("}}]}\n\n',
    "rubbish": b"\x00\x01<html><body>502 Bad Gateway</body></html>\xff\n\n",
}


def _quoted(text: str) -> str:
    return msgspec.json.encode(text).decode()


class Answer:
    """What one request is answered with, piece by piece.

    `tokens` is how many content tokens the answer has after `max_tokens` was applied. The methods return bytes
    that are to be sent in this order: `opening`, `content` for consecutive ranges, `closing`; or `whole` alone for
    a request that does not stream.
    """

    __slots__ = (
        "_base",
        "_between",
        "_head",
        "_pieces",
        "_prompt_tokens",
        "_seed",
        "_tail",
        "finish",
        "pace",
        "tokens",
        "usage_wanted",
    )

    def __init__(self, request: ChatRequest, *, answer_id: str, created: int) -> None:
        self._pieces: list[str] | None = None
        if request.sim is None:
            # Escaped once here, so that `content` may splice every kind of token without encoding.
            self._pieces = [_quoted(piece)[1:-1] for piece in prose(request.last_user_text())]
            self.pace = PROSE_PACE
            wanted = len(self._pieces)
        else:
            self.pace = request.sim
            wanted = request.sim.tokens
        self._seed = self.pace.seed
        limit = request.token_limit
        self.tokens = wanted if limit is None else min(wanted, limit)
        self.finish = "length" if self.tokens < wanted else "stop"
        self.usage_wanted = request.include_usage
        self._prompt_tokens = sum(3 + len(message.text().split()) for message in request.messages)
        self._base = (
            f'"id":{_quoted(answer_id)},"object":"chat.completion.chunk","created":{created},'
            f'"model":{_quoted(request.model)},"system_fingerprint":"{_FINGERPRINT}"'
        )
        self._head = f'data: {{{self._base},"choices":[{{"index":0,"delta":{{"content":"'
        self._tail = '"},"logprobs":null,"finish_reason":null}]'
        if self.usage_wanted:
            self._tail += ',"usage":null'
        self._between = f"{self._tail}}}\n\n{self._head}"

    def opening(self, sent_ns: int = 0) -> bytes:
        """Return the event that names the role."""
        return self._event('{"role":"assistant","content":"","refusal":null}', "null", sent_ns)

    def content(self, start: int, stop: int, sent_ns: int = 0) -> bytes:
        """Return the events of tokens `start` to `stop` (exclusive), one event each."""
        if self._pieces is not None:
            pieces = self._pieces[start:stop]
        elif stop == start + 1:
            pieces = [token(self._seed, start)]
        else:
            pieces = token_range(self._seed, start, stop)
        if not pieces:
            return b""
        if sent_ns:
            end = f'{self._tail},"sim_sent_ns":{sent_ns}}}\n\n'
            return (self._head + (end + self._head).join(pieces) + end).encode()
        return f"{self._head}{self._between.join(pieces)}{self._tail}}}\n\n".encode()

    def closing(self, sent_ns: int = 0) -> bytes:
        """Return the finish event, the usage event if it was asked for, and [DONE]."""
        end = self._event("{}", f'"{self.finish}"', sent_ns)
        if self.usage_wanted:
            end += f'data: {{{self._base},"choices":[],"usage":{self._usage()}}}\n\n'.encode()
        return end + DONE

    def whole(self, content: str | None = None) -> bytes:
        """Return the answer as one `chat.completion` object."""
        base = self._base.replace('"chat.completion.chunk"', '"chat.completion"', 1)
        if content is None:
            pieces = self._pieces
            content = "".join(
                token_range(self.pace.seed, 0, self.tokens) if pieces is None else pieces[: self.tokens]
            )
        return (
            f'{{{base},"choices":[{{"index":0,"message":{{"role":"assistant","content":"{content}",'
            f'"refusal":null,"annotations":[]}},"logprobs":null,"finish_reason":"{self.finish}"}}],'
            f'"usage":{self._usage()}}}'
        ).encode()

    def huge(self, size: int) -> bytes:
        """Return one content event of exactly `size` bytes (its blank line included), if they suffice for one."""
        frame = f"{self._head}{self._tail}}}\n\n"
        return f"{self._head}{'x' * (size - len(frame.encode()))}{self._tail}}}\n\n".encode()

    def _event(self, delta: str, finish: str, sent_ns: int) -> bytes:
        usage = ',"usage":null' if self.usage_wanted else ""
        sent = f',"sim_sent_ns":{sent_ns}' if sent_ns else ""
        return (
            f'data: {{{self._base},"choices":[{{"index":0,"delta":{delta},"logprobs":null,'
            f'"finish_reason":{finish}}}]{usage}{sent}}}\n\n'
        ).encode()

    def _usage(self) -> str:
        return (
            f'{{"prompt_tokens":{self._prompt_tokens},"completion_tokens":{self.tokens},'
            f'"total_tokens":{self._prompt_tokens + self.tokens},"prompt_tokens_details":{{"cached_tokens":0}},'
            f'"completion_tokens_details":{{"reasoning_tokens":0}}}}'
        )


def malformed_event(fault: Malformed) -> bytes:
    """Return the bytes that are sent in place of a regular event."""
    return _MALFORMED[fault.variant]


def error_event(fault: ErrorEvent) -> bytes:
    """Return an error as a provider reports it in the middle of a stream."""
    return b"data: " + error_body(fault.message, type_=fault.type, code=fault.code) + b"\n\n"
