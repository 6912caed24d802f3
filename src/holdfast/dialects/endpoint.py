"""How one configured provider is asked: its dialect, its credentials and options, and what translates for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from holdfast.core.http.request import Headers, HttpRequest
from holdfast.dialects.ask import Ask
from holdfast.dialects.dialect import AnswerReader
from holdfast.dialects.table import DIALECTS, Dialects
from holdfast.errors import UpstreamError, UpstreamStatus


class Endpoint:
    """Makes the requests for one provider and the readers of its answers, for clients of any dialect."""

    def __init__(
        self,
        *,
        base_url: str,
        api: str = "chat",
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        options: Mapping[str, Any] | None = None,
        dialects: Dialects = DIALECTS,
    ) -> None:
        """Raises `ConfigError` for an API that there is not, `msgspec.ValidationError` for wrong options."""
        self._dialects = dialects
        self._dialect = dialects.get(api)
        self._options = self._dialect.options(options or {})
        self._path = urlsplit(base_url).path.rstrip("/")
        self._headers: Headers = [(b"user-agent", b"holdfast")]
        if api_key:
            self._headers += self._dialect.credentials(api_key)
        self._headers += [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]

    def accepts(self, dialect: str) -> bool:
        """Whether clients of that dialect can be answered from here."""
        return self._dialects.can_answer(dialect, self._dialect.name)

    def exchange(
        self, ask: Ask, model: str, *, stream_id: str, max_entry: int
    ) -> tuple[HttpRequest, AnswerReader]:
        """Return the request to send, and the reader of its answer: entries in the client's dialect.

        Raises `InvalidRequest` where the request asks for what this provider's API has no form for.
        """
        translation = self._dialects.translation(ask.dialect, self._dialect.name)
        own = ask if translation is None else translation.ask(ask)
        request = self._dialect.request(own, model, self._options, path=self._path, stream_id=stream_id)
        request = HttpRequest(request.method, request.path, [*self._headers, *request.headers], request.body)
        reader = self._dialect.reader(own, self._options, max_entry=max_entry)
        return request, reader if translation is None else translation.reader(ask, reader)

    def probe(self, path: str) -> HttpRequest:
        """Return the request of a health check."""
        return HttpRequest("GET", path, [*self._headers, (b"accept", b"*/*")])

    def request_id(self, headers: Headers) -> str | None:
        """Return what the provider calls the request; None where it does not say."""
        return self._dialect.request_id(headers)

    def status_error(self, status: int, body: bytes, *, retry_after: float | None) -> UpstreamStatus:
        """Make the error for an answer with an error status."""
        return self._dialect.status_error(status, body, retry_after=retry_after)

    def judged(self, error: UpstreamError) -> UpstreamError:
        """Say what an error of its answers means."""
        return self._dialect.judged(error)
