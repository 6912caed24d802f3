"""What the log says of requests: one line at each end, one for each refusal and each try that failed."""

from __future__ import annotations

import logging
from typing import Any

from holdfast.core.entries import AttemptRecord
from holdfast.dialects.ask import Ask
from holdfast.dialects.chat import CHAT
from holdfast.errors import HoldfastError, UpstreamError, UpstreamStatus
from holdfast.generation.ticket import Caller
from holdfast.streams.stream import Stream

logger = logging.getLogger("holdfast.requests")

#: Most of an answer that is logged where content is, in bytes.
_MAX_CONTENT = 16 * 1024


class RequestLog:
    """`content` says whether prompts and answers are logged."""

    def __init__(self) -> None:
        self.content = False

    def refused(self, caller: Caller, ask: Ask, request_id: str | None, error: HoldfastError) -> None:
        """Nothing was started."""
        if logger.isEnabledFor(logging.INFO):
            fields = {"request": request_id, **_caller(caller), "model": ask.model, "error": error.code}
            _write(logging.INFO, "request refused", fields)

    def accepted(self, stream: Stream, ask: Ask) -> None:
        if self.content and logger.isEnabledFor(logging.INFO):
            _write(logging.INFO, "request content", {**_ids(stream), "prompt": CHAT.prompt_of(ask)})

    def ended(self, stream: Stream, now: float) -> None:
        end = stream.end
        if end is None or not logger.isEnabledFor(logging.INFO):
            return
        usage, error = end.usage, end.error
        last = end.attempts[-1] if end.attempts else None
        fields = {
            **_ids(stream),
            **_caller(stream.caller),
            "model": stream.origin.model,
            "status": end.status,
            "finish_reason": end.finish_reason,
            "error": None if error is None else error.code,
            "duration": round(now - stream.created, 3),
            "entries": stream.log.next - 1,
            "prompt_tokens": None if usage is None else usage.prompt_tokens,
            "completion_tokens": None if usage is None else usage.completion_tokens,
            "attempts": len(end.attempts),
            "provider": None if last is None else last.provider,
        }
        if self.content:
            payloads = stream.log.slice(stream.log.first, _MAX_CONTENT)
            fields["answer"] = b"\n".join(payloads).decode("utf-8", "replace")
        _write(logging.INFO, "request ended", fields)


def attempt_failed(stream: Stream, attempt: AttemptRecord, error: UpstreamError) -> None:
    """One try at a provider failed; another may follow."""
    # What a provider says may quote the prompt. What we say of its connection does not.
    is_quoted = isinstance(error, UpstreamStatus) or type(error) is UpstreamError
    fields = {
        **_ids(stream),
        "provider": attempt.provider,
        "model": attempt.model,
        "error": error.code,
        "http_status": attempt.status,
        "duration": attempt.duration_ms / 1000,
        "reason": None if is_quoted else error.message,
    }
    _write(logging.WARNING, "provider failed", fields)


def _ids(stream: Stream) -> dict[str, Any]:
    return {"request": stream.origin.request_id, "stream": stream.id}


def _caller(caller: Caller | None) -> dict[str, Any]:
    if caller is None:
        return {}
    return {
        "connection": caller.connection,
        "session": caller.session,
        "tenant": caller.tenant,
        "key": caller.key,
    }


def _write(level: int, message: str, fields: dict[str, Any]) -> None:
    logger.log(
        level, message, extra={"fields": {name: value for name, value in fields.items() if value is not None}}
    )
