"""What an API means, on the client's side and on the provider's: the interface of a dialect.

A dialect does no I/O and has no state. Where a provider is, how it is reached and whether it is well is the matter
of `holdfast.upstream`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from holdfast.core.entries import Usage
from holdfast.core.http.request import Headers, HttpRequest
from holdfast.core.json_object import Members
from holdfast.core.log import Framing
from holdfast.dialects.ask import Ask, RateLeft
from holdfast.errors import HoldfastError, UpstreamError, UpstreamStatus


class AnswerReader(Protocol):
    """Reads one answer of a provider: bytes of the body in, entries of the log out.

    However the bytes are split, the entries are the same. After each call `is_finished` says that the answer is
    complete, and `error` what was wrong with it; what came before an error is still returned. `is_answered` says
    that all of it is there but for what a caller can do without, such as the usage or the terminal event: `end`
    completes it then.
    """

    is_answered: bool
    is_finished: bool
    error: UpstreamError | None
    finish_reason: str | None
    usage: Usage | None
    #: About how many tokens have come: what counts where the provider does not say the usage.
    units: int

    def begin(self, content_type: bytes) -> None:
        """The head of a good answer has come: its content type, b"" without one. May set `error`."""

    def receive(self, chunks: Sequence[bytes]) -> list[bytes]:
        """Take body bytes, and return the entries that they complete.

        What shows a caller nothing yet may be held back: before the first entry, another provider can be asked.
        """

    def end(self) -> list[bytes]:
        """The body is over, or is not waited for where `is_answered`.

        Return what was held back, or set `error` where the answer is not complete.
        """


class SseFraming(Framing, Protocol):
    """The form of a dialect's Server-Sent Events, its end and its failures included."""

    @property
    def starts_at_once(self) -> bool:
        """Whether the head of the answer is sent before the first entry, so that no refusal can be its status."""

    def failure(self, error: HoldfastError) -> bytes | None:
        """Write that this reader may not read on, which is not the stream's end.

        None where the form cannot say it: then the answer has to be cut.
        """


class Dialect(Protocol):
    """One API. `name` is how the configuration and the table of dialects call it."""

    @property
    def name(self) -> str: ...

    # -- of clients --

    @property
    def framing(self) -> SseFraming: ...

    def parse(self, raw: bytes | str, *, stream: bool | None = None, found: Members | None = None) -> Ask:
        """Check a request and keep it whole. `stream` overrides the request's own choice. `found` are its
        members where they are known already.

        It takes time in proportion to the size, and little memory: callers may pay for neither yet. Raises
        `InvalidRequest` that names the field and what was expected.
        """

    def least_text(self, raw: bytes) -> int:
        """Return how many bytes of a request are certainly no encoded media, without decoding it.

        A large request is refused for it before anything else of it is looked at, so it is 0 in doubt.
        """

    def prompt_of(self, ask: Ask) -> object:
        """Return the part of a request that is logged where content is."""

    def error_body(self, error: HoldfastError, status: int) -> bytes:
        """Write an error as the body of an HTTP answer with this status."""

    def rate_headers(self, rates: Sequence[RateLeft]) -> Headers:
        """Write what is left of the caller's rates as headers of an answer."""

    # -- of providers --

    def options(self, raw: Mapping[str, Any]) -> Any:
        """Check a provider's `options`. Raises `msgspec.ValidationError`."""

    def credentials(self, key: str) -> Headers:
        """Return the headers that carry the provider's API key, on requests and on health checks."""

    def request(self, ask: Ask, model: str, options: Any, *, path: str, stream_id: str) -> HttpRequest:
        """Write the provider's request, with the headers that this API asks for.

        `path` is that of the base URL. `stream_id` lets the provider's logs be matched with ours.
        """

    def reader(self, ask: Ask, options: Any, *, max_entry: int) -> AnswerReader:
        """Make the reader for the answer; an entry has at most `max_entry` bytes."""

    def request_id(self, headers: Headers) -> str | None:
        """Return what the provider calls the request, for its support; None where it does not say."""

    def status_error(self, status: int, body: bytes, *, retry_after: float | None) -> UpstreamStatus:
        """Make the error for an answer with an error status; the provider's own message is kept."""

    def judged(self, error: UpstreamError) -> UpstreamError:
        """Say what an error of this API means: give it its status, or make it `UpstreamRefused`.

        That is what becomes of a word about the gateway's own credential or quota. Its text stays out of it.
        """


def header_text(headers: Headers, name: bytes, *, limit: int = 256) -> str | None:
    """Return a header that a provider chose freely, if it can be shown: at most `limit` printable characters."""
    value = next((value for key, value in headers if key == name), b"")[:limit].decode("latin-1")
    return value if value and value.isprintable() else None
