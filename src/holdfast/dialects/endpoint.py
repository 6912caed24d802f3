"""How one configured provider is asked: its dialect, its credentials and options, and what translates for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from holdfast.core.hops import HEADER
from holdfast.core.http.request import Headers, HttpRequest
from holdfast.dialects.ask import Ask
from holdfast.dialects.dialect import AnswerReader
from holdfast.dialects.table import DIALECTS, Dialects
from holdfast.errors import LoopDetected, UpstreamError, UpstreamStatus


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
        gateway_id: str = "",
    ) -> None:
        """`gateway_id` names this process to gateways among the providers.

        Raises `ConfigError` for an API that there is not, `msgspec.ValidationError` for wrong options."""
        self._dialects = dialects
        self._dialect = dialects.get(api)
        self._options = self._dialect.options(options or {})
        self._path = urlsplit(base_url).path.rstrip("/")
        # Answers are read as they come: an encoded one would have to be decoded with bounds, for nothing.
        fields = {b"user-agent": b"holdfast", b"accept-encoding": b"identity"}
        if api_key:
            fields.update(self._dialect.credentials(api_key))
        self._gateway_id = gateway_id.encode()
        if gateway_id:
            fields[HEADER] = self._gateway_id
        # What is configured replaces what the gateway or the dialect would send.
        self._configured = {name.lower().encode(): value.encode() for name, value in (headers or {}).items()}
        self._headers: Headers = list((fields | self._configured).items())

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
        headers = self._headers if not ask.hops else self._passing_on(ask.hops)
        request = HttpRequest(
            request.method, request.path, self._with_ours(request.headers, headers), request.body
        )
        reader = self._dialect.reader(own, self._options, max_entry=max_entry)
        return request, reader if translation is None else translation.reader(ask, reader)

    def _passing_on(self, hops: bytes) -> Headers:
        """Return the headers of a request that has passed other gateways."""
        passed = b"%b,%b" % (hops, self._gateway_id)
        return [(name, passed if name == HEADER else value) for name, value in self._headers]

    def probe(self, path: str) -> HttpRequest:
        """Return the request of a health check."""
        return HttpRequest("GET", path, self._with_ours([(b"accept", b"*/*")], self._headers))

    def _with_ours(self, headers: Headers, ours: Headers) -> Headers:
        return [*ours, *(field for field in headers if field[0] not in self._configured)]

    def request_id(self, headers: Headers) -> str | None:
        """Return what the provider calls the request; None where it does not say."""
        return self._dialect.request_id(headers)

    def status_error(
        self, status: int, body: bytes, *, retry_after: float | None, location: bytes = b""
    ) -> UpstreamStatus | LoopDetected:
        """Make the error for an answer with an error status.

        A redirection, to `location`, is not followed; but it shows what is wrong with the base URL.
        """
        if status == LoopDetected.http_status and LoopDetected.code.encode() in body:
            return LoopDetected()  # the provider is a gateway, and leads back here
        error = self._dialect.status_error(status, body, retry_after=retry_after)
        if 300 <= status < 400 and location:
            error = error.with_note(f"; it redirects to {_path(location)}: is `base_url` right?", retryable=False)
            error.same_endpoint_retry = False  # but another provider may have a right address
        return error

    def judged(self, error: UpstreamError) -> UpstreamError:
        """Say what an error of its answers means."""
        return self._dialect.judged(error)


def _path(location: bytes) -> str:
    """Where a redirection leads, without the host: that may be an internal one."""
    try:
        url = urlsplit(location[:1000].decode("ascii"))
    except ValueError:
        return "an address that is none"
    if "@" in location.decode("ascii"):
        return "another host or port"  # with a user and a password, which may reach into the path
    path = url.path[:200] or "/"
    return f"{path} on another host or port" if url.netloc else path
