"""What providers of chat completions say of an error, in any of the shapes that they and their proxies use.

    {"error": {"message", "type", "code", "param"}}     most; `code` may be an HTTP status
    {"error": "text"}                                   small servers
    {"detail": "text"}, {"detail": [{"loc", "msg"}]}    FastAPI
    {"object": "error", "message", ...}                 older servers
    {"message", "code"}                                 gateways; within a stream only under `event: error`

All of it is as hostile as the rest of an answer: every text is bounded, and can be encoded again.
"""

from __future__ import annotations

from typing import Any, Final

from holdfast.dialects.chat_lenient import decoded
from holdfast.errors import ProviderError, UpstreamError, UpstreamMalformed

_MAX_MESSAGE: Final = 1000
_MAX_WORD: Final = 100
#: Most items of a list of errors that are shown.
_MAX_ITEMS: Final = 5


def told_in(body: bytes) -> ProviderError | None:
    """Read the body of an answer with an error status; None where it says nothing."""
    return told(decoded(body), is_error=True)


def told(said: object, *, is_error: bool = False) -> ProviderError | None:
    """Return the error that a decoded answer or event is; None where it is none, or says nothing.

    `is_error`: something else, such as the status, says that it is one.
    """
    if isinstance(said, list):
        # At least one API wraps its error so.
        return told(said[0], is_error=is_error) if said and isinstance(said[0], dict) else None
    if not isinstance(said, dict):
        return _spoken(_detail(said)) if is_error else None
    error = said.get("error")
    if not is_empty(error):
        return _spoken(_detail(error)) or ProviderError()
    if not is_error and said.get("object") != "error":
        return None
    detail = said.get("detail")
    if not is_empty(detail):
        return _spoken(_validation(detail))
    errors = said.get("errors")
    if isinstance(errors, list) and errors:
        return _spoken(_detail(errors[0]))
    return _spoken(_detail(said)) or (None if is_error else ProviderError())


def error_within(told: ProviderError | None) -> UpstreamError:
    """Make the error that a provider reports in an answer whose status was good."""
    message = told.message if told is not None else ""
    return UpstreamError(message or "the provider reported an error", told=told)


def error_in(payload: bytes, name: bytes) -> UpstreamError | None:
    """Return the error that an event or a body is; None where it is none."""
    said = decoded(payload)
    if name == b"error":
        if said is None:
            said = payload.decode(errors="replace").strip()
        return error_within(told(said, is_error=True))
    if said is None:
        return UpstreamMalformed.too_large("the provider's answer has too many parts to look for an error in")
    found = told(said)
    return None if found is None else error_within(found)


def not_an_answer(said: object) -> UpstreamError:
    """Make the error for a whole answer in JSON which is no completion: perhaps it says why."""
    found = told(said, is_error=True)
    if found is not None and found.message:
        return error_within(found)
    return UpstreamMalformed("the provider's answer is not a chat completion")


def is_empty(error: object) -> bool:
    """Whether a field for an error says that there is none, as some servers write into every chunk.

    An object without any field is an error about which nothing is said.
    """
    if isinstance(error, dict):
        return bool(error) and not any(error.values())
    return error is None or error is False or error == ""


def _detail(error: object) -> ProviderError:
    if not isinstance(error, dict):
        if isinstance(error, str):
            return ProviderError(_text(error))
        return ProviderError(code=_text(error, _MAX_WORD), status=_status(error))
    code, kind, status = error.get("code"), error.get("type"), error.get("status")
    return ProviderError(
        message=_text(error.get("message")) or _text(error.get("msg")) or _text(error.get("detail")),
        code=_text(code, _MAX_WORD),
        type=_text(kind or (status if isinstance(status, str) else None), _MAX_WORD),
        param=_text(error.get("param"), _MAX_WORD),
        status=_status(status) or _status(error.get("status_code")) or _status(code),
    )


def _validation(detail: object) -> ProviderError:
    """Read FastAPI's `detail`: a text, an object, or a list of what is wrong with which field."""
    if not isinstance(detail, list):
        return _detail(detail)
    texts = []
    param = kind = ""
    for item in detail[:_MAX_ITEMS]:
        place = ""
        if isinstance(item, dict):
            where = item.get("loc")
            place = _place(where) if isinstance(where, list) else ""
            param, kind = param or place, kind or _text(item.get("type"), _MAX_WORD)
            item = item.get("msg")
        texts.append(f"{place}: {_text(item)}" if place else _text(item))
    return ProviderError(_text("; ".join(filter(None, texts))), type=kind, param=param)


def _place(where: list[Any]) -> str:
    parts = [_text(part, _MAX_WORD) for part in where[:10]]
    return ".".join(parts[1:] if parts[:1] == ["body"] else parts)[:_MAX_WORD]


def _spoken(told: ProviderError) -> ProviderError | None:
    return told if any(told) else None


def _text(value: object, limit: int = _MAX_MESSAGE) -> str:
    if isinstance(value, str):
        return value[:limit].encode(errors="replace").decode()
    # A number of any length would take long to write.
    if type(value) is int and abs(value) < 1 << 64:
        return str(value)
    return ""


def _status(value: object) -> int | None:
    """Read an HTTP status of an error; some servers write it as a text."""
    if isinstance(value, str) and len(value) == 3 and value.isdecimal():
        value = int(value)
    return value if type(value) is int and 400 <= value < 600 else None
