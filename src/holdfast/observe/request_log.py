"""What the log says of requests and connections: one line at each end, one for each refusal and failed attempt."""

from __future__ import annotations

import logging
from typing import Any

from holdfast.core.entries import ErrorBody
from holdfast.errors import UpstreamError, UpstreamRefused, UpstreamStatus
from holdfast.observe.events import (
    AttemptEnded,
    Caller,
    ConnectionEnded,
    Event,
    RequestEnded,
    RequestRefused,
    RequestStarted,
)

_requests = logging.getLogger("holdfast.requests")
_connections = logging.getLogger("holdfast.connections")

#: Most of an answer that is logged where content is, in bytes.
_MAX_CONTENT = 16 * 1024


class RequestLog:
    """`content` says whether prompts and answers are logged."""

    def __init__(self, *, content: bool = False) -> None:
        self.content = content

    def observe(self, event: Event) -> None:
        match event:
            case AttemptEnded(error=error) if error is not None:
                _attempt_failed(event, error)
            case RequestEnded():
                self._ended(event)
            case RequestStarted() if self.content and _requests.isEnabledFor(logging.INFO):
                _write(_requests, logging.INFO, "request content", {**_ids(event), "prompt": event.prompt()})
            case RequestRefused():
                _refused(event)
            case ConnectionEnded():
                _connection_ended(event)
            case _:
                pass

    def _ended(self, event: RequestEnded) -> None:
        if not _requests.isEnabledFor(logging.INFO):
            return
        end = event.end
        usage, error = end.usage, end.error
        last = end.attempts[-1] if end.attempts else None
        fields = {
            **_ids(event),
            **_caller(event.caller),
            "model": event.model,
            "status": end.status,
            "finish_reason": end.finish_reason,
            "error": None if error is None else error.code,
            **_said(error),
            "duration": round(event.duration, 3),
            "queued": round(event.queued, 3) or None,
            "entries": event.entries,
            "prompt_tokens": None if usage is None else usage.prompt_tokens,
            "completion_tokens": None if usage is None else usage.completion_tokens,
            "attempts": len(end.attempts),
            "provider": None if last is None else last.provider,
            "provider_request": None if last is None else last.provider_request_id,
        }
        if last is not None and last.error == "cancelled":
            # Who has given up wants to know whom the request was waiting for, and how long.
            fields["waited"] = last.duration_ms / 1000
        if self.content:
            fields["answer"] = b"\n".join(event.answer(_MAX_CONTENT)).decode("utf-8", "replace")
        _write(_requests, logging.INFO, "request ended", fields)


def _refused(event: RequestRefused) -> None:
    if _requests.isEnabledFor(logging.INFO):
        fields = {
            "request": event.request_id,
            **_caller(event.caller),
            "model": event.model,
            "error": event.error.code,
        }
        _write(_requests, logging.INFO, "request refused", fields)


def _attempt_failed(event: AttemptEnded, error: UpstreamError) -> None:
    # What a provider says may quote the prompt. What we say of its connection does not.
    is_quoted = isinstance(error, UpstreamStatus) or type(error) is UpstreamError
    record = event.record
    fields = {
        **_ids(event),
        "provider": record.provider,
        "model": record.model,
        "error": error.code,
        "http_status": record.status,
        **_said(error),
        "duration": record.duration_ms / 1000,
        "reason": None if is_quoted else _reason(error),
        "provider_request": record.provider_request_id,
    }
    _write(_requests, logging.WARNING, "provider failed", fields)


def _reason(error: UpstreamError) -> str:
    """What we say of it, with what is for the log alone."""
    if isinstance(error, UpstreamRefused):
        return error.reason
    return error.message if error.detail is None else f"{error.message} ({error.detail})"


def _said(error: UpstreamError | ErrorBody | None) -> dict[str, Any]:
    """What the provider calls the error: codes, and none of its text."""
    if error is None:
        return {}
    return {"provider_code": error.provider_code, "provider_type": error.provider_type}


def _connection_ended(event: ConnectionEnded) -> None:
    if _connections.isEnabledFor(logging.INFO):
        fields = {
            **_caller(event.caller),
            "duration": round(event.duration, 3),
            "close_code": event.close_code,
            "streams_left": event.streams_left,
        }
        _write(_connections, logging.INFO, "connection ended", fields)


def _ids(event: RequestStarted | AttemptEnded | RequestEnded) -> dict[str, Any]:
    return {"request": event.request_id, "stream": event.stream}


def _caller(caller: Caller | None) -> dict[str, Any]:
    if caller is None:
        return {}
    return {
        "connection": caller.connection,
        "session": caller.session,
        "tenant": caller.tenant,
        "key": caller.key,
    }


def _write(logger: logging.Logger, level: int, message: str, fields: dict[str, Any]) -> None:
    logger.log(
        level, message, extra={"fields": {name: value for name, value in fields.items() if value is not None}}
    )
