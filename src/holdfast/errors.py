"""The exception tree and the one table of error codes.

Every failure that Holdfast names, on the wire or in Python, is a class here. The code table of the
documentation and of PROTOCOL.md is generated from `ERRORS`.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple, Self


class HoldfastError(Exception):
    """Base of all errors that Holdfast raises or sends.

    `code` is stable: programs may compare it. `http_status` is the status of an HTTP answer with this error.
    `close_code` is the WebSocket close code if the error ends a connection; None if it never does. `retryable`
    says whether the same request may succeed later, and may be sent again. It is false for a request that the
    provider may have processed if the operator wants no request to be billed twice. `retry_after` is a hint in
    seconds. `param` names the field of the request that is wrong. `partial`, which only the SDK sets, is what a
    stream had delivered when it failed. What a provider has said of it is in `status`, `provider_code`,
    `provider_type` and `provider_request_id`, each None where it has not.
    """

    code: ClassVar[str] = "internal_error"
    http_status: ClassVar[int] = 500
    close_code: ClassVar[int | None] = 1011
    retryable: bool = True
    meaning: ClassVar[str] = "The gateway failed; the cause is in its log under the request id."
    status: int | None = None
    provider_code: str | None = None
    provider_type: str | None = None
    provider_request_id: str | None = None

    def __init__(self, message: str = "", *, retry_after: float | None = None, param: str | None = None) -> None:
        super().__init__(message or self.meaning)
        self.message = message or self.meaning
        self.retry_after = retry_after
        self.param = param
        self.partial: Any = None

    def with_note(self, note: str, *, retryable: bool) -> Self:
        """Return the same error with a longer message, which is or is not to be tried again."""
        other = type(self).__new__(type(self), self.message + note)
        other.__dict__ |= self.__dict__
        other.message = self.message + note
        other.retryable = retryable
        return other


class InternalError(HoldfastError):
    """An unexpected failure, as the supervisors report it."""


# -- the caller's faults -------------------------------------------------------------------------------


class InvalidRequest(HoldfastError):
    code = "invalid_request"
    http_status = 400
    close_code: ClassVar[int | None] = None
    retryable = False
    meaning = "The request has a missing, unknown or ill-typed field; the message names it."


class InvalidMessage(InvalidRequest):
    code = "invalid_message"
    close_code = 4400
    meaning = "A WebSocket message is not JSON, has an unknown type or an ill-typed field."


class HelloTimeout(HoldfastError):
    code = "hello_timeout"
    http_status = 408
    close_code = 4408
    retryable = False
    meaning = "The client opened a connection, but did not send its hello or a request in time."


class SessionSuperseded(HoldfastError):
    code = "session_superseded"
    http_status = 409
    close_code = 4409
    retryable = False
    meaning = "The same session was resumed on a newer connection; this one is closed."


class Unauthorized(HoldfastError):
    code = "unauthorized"
    http_status = 401
    close_code = 4401
    retryable = False
    meaning = "No valid credential came with the request."


class Forbidden(HoldfastError):
    code = "forbidden"
    http_status = 403
    close_code = 4403
    retryable = False
    meaning = "The credential does not allow this (origin, model or operation)."


class NotFound(HoldfastError):
    code = "not_found"
    http_status = 404
    close_code = None
    retryable = False
    meaning = "There is nothing at this path."


class MethodNotAllowed(HoldfastError):
    code = "method_not_allowed"
    http_status = 405
    close_code = None
    retryable = False
    meaning = "The path exists, but not with this method."


class PayloadTooLarge(HoldfastError):
    code = "payload_too_large"
    http_status = 413
    close_code = 1009
    retryable = False
    meaning = "The body or message is larger than the configured limit."


class DuplicateRequest(HoldfastError):
    code = "duplicate_request"
    http_status = 409
    close_code = None
    retryable = False
    meaning = "The request id was used before with a different request; use a new id."


class TooManyStreams(HoldfastError):
    code = "too_many_streams"
    http_status = 429
    close_code = None
    meaning = "The session has reached its limit of running streams."


# -- models and streams --------------------------------------------------------------------------------


class UnknownModel(HoldfastError):
    code = "model_not_found"
    http_status = 404
    close_code = None
    retryable = False
    meaning = "No model of that name is configured; GET /v1/models lists them."


class UnknownStream(HoldfastError):
    code = "unknown_stream"
    http_status = 404
    close_code = None
    retryable = False
    meaning = "No such stream: never created, expired, owned by somebody else, or lost with its process."


class UnknownEpoch(HoldfastError):
    code = "unknown_epoch"
    http_status = 409
    close_code = None
    retryable = False
    meaning = "The cursor names an epoch that this log never had."


class AheadOfLog(HoldfastError):
    code = "ahead_of_log"
    http_status = 416
    close_code = None
    retryable = False
    meaning = "The cursor lies beyond the end of the log."


class LogTrimmed(HoldfastError):
    code = "log_trimmed"
    http_status = 410
    close_code = None
    retryable = False
    meaning = "Entries after the cursor are no longer kept: resume is refused, or reading ends."


class Cancelled(HoldfastError):
    code = "cancelled"
    http_status = 499
    close_code = None
    retryable = False
    meaning = "The stream was cancelled by its owner, or nobody read it for the grace period."


# -- capacity ------------------------------------------------------------------------------------------


class RateLimited(HoldfastError):
    code = "rate_limited"
    http_status = 429
    close_code = None
    meaning = "A limit of the key or tenant is used up; retry_after says when to come back."


class QueueFull(HoldfastError):
    code = "queue_full"
    http_status = 503
    close_code = None
    meaning = "The model is busy and the queue is full; nothing was sent to a provider."


class QueueTimeout(HoldfastError):
    code = "queue_timeout"
    http_status = 503
    close_code = None
    meaning = "The request waited in the queue until its deadline; nothing was sent to a provider."


class Overloaded(HoldfastError):
    code = "overloaded"
    http_status = 503
    close_code = 1013
    meaning = "The gateway has no room for new work; nothing was sent to a provider."


class Draining(HoldfastError):
    code = "draining"
    http_status = 503
    close_code = 1012
    meaning = "This gateway process is shutting down; connect again."


class Shutdown(HoldfastError):
    code = "shutdown"
    http_status = 503
    close_code = None
    meaning = "The gateway process was stopped while the stream ran; the stream ends with what it had delivered."


# -- the provider --------------------------------------------------------------------------------------


class ProviderError(NamedTuple):
    """What a provider says of an error, in its own words: as hostile as all that it sends, but bounded.

    `message` has at most 1000 characters, the other texts 100; what it does not say is empty. `status` is the HTTP
    status that it means, where an answer with another one says so.
    """

    message: str = ""
    code: str = ""
    type: str = ""
    param: str = ""
    status: int | None = None


class UpstreamError(HoldfastError):
    """`told` is what the provider itself says. `same_endpoint_retry`: whether the same endpoint may do better.

    It is false where it has started an answer that cannot be read, and would start it once more. `detail`, such as
    an address, is for the log alone. `is_own_bound`: a bound of the gateway was met, which says nothing about the
    provider. Errors of one `incident`, whatever object that is, have one cause.
    """

    code = "upstream_error"
    http_status = 502
    close_code = None
    same_endpoint_retry: bool = True
    meaning = "The provider reported an error within the stream."
    detail: str | None = None
    is_own_bound: bool = False
    incident: object = None

    def __init__(self, message: str = "", *, told: ProviderError | None = None, **options: Any) -> None:
        super().__init__(message, **options)
        self.told = told
        if told is not None:
            self.param = self.param or told.param or None
            self.provider_code = told.code or None
            self.provider_type = told.type or None
            if told.status is not None:
                self.status = told.status
                self.retryable = is_passing(told.status)


class UpstreamStatus(UpstreamError):
    """The provider answered with an error status. An HTTP answer passes that `status` on."""

    code = "upstream_status"
    meaning = "The provider refused the request; `status` and the message are the provider's."
    status: int

    def __init__(self, message: str = "", *, status: int, body: bytes = b"", **options: Any) -> None:
        super().__init__(message, **options)
        self.status = status
        self.body = body
        self.retryable = is_passing(status)


class UpstreamRefused(UpstreamError):
    """The provider refuses the gateway itself; if `is_certain`, whatever is asked of it. `reason` is for the log.

    No `status` and none of the provider's words: they would tell the caller that its own credential is wrong.
    """

    code = "upstream_refused"
    retryable = False
    meaning = "The provider refused the gateway's own credential or quota; its operator has the cause in the log."

    def __init__(self, message: str = "", *, reason: str = "", is_certain: bool = True) -> None:
        super().__init__(message)
        self.reason = reason
        self.is_certain = is_certain


class UpstreamConnectError(UpstreamError):
    code = "upstream_connect_error"
    meaning = "No connection to the provider could be made."


class UpstreamReset(UpstreamError):
    """`processed` is False only if the provider certainly did not act on the request.

    `is_stale`: the connection had been kept alive, and ended without a byte of this answer. Most likely the
    provider was closing it as idle when the request was sent. `is_refused`: the provider takes no more requests
    on this connection for now, but the connection stays open.
    """

    code = "upstream_reset"
    meaning = "The provider's connection or stream was reset or cut before the answer was complete."

    def __init__(
        self,
        message: str = "",
        *,
        processed: bool = True,
        is_stale: bool = False,
        is_refused: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(message, **options)
        self.processed = processed
        self.is_stale = is_stale
        self.is_refused = is_refused


class CircuitOpen(UpstreamError):
    code = "circuit_open"
    http_status = 503
    meaning = "Every endpoint of the model has failed too often; retry_after says when one is tried again."


class LoopDetected(UpstreamError):
    code = "loop_detected"
    http_status = 508
    retryable = False
    #: It says nothing about the provider that the request was sent to.
    is_own_bound = True
    meaning = "The model's route leads back to a gateway that the request has passed; its operator has to mend it."


class NoRoomForAnswer(UpstreamError):
    code = "no_room_for_answer"
    http_status = 503
    is_own_bound = True
    meaning = "The gateway's memory is used up, so that it could not take the provider's answer."


class UpstreamTruncated(UpstreamError):
    code = "upstream_truncated"
    meaning = "The provider ended the answer without its terminal event."


class UpstreamMalformed(UpstreamError):
    code = "upstream_malformed"
    retryable = False
    same_endpoint_retry = False
    meaning = "The provider sent something that is not the documented format."

    @classmethod
    def too_large(cls, message: str) -> Self:
        error = cls(message)  # more than the gateway takes, which is no fault of the provider
        error.is_own_bound = True
        return error


class UpstreamTimeout(UpstreamError):
    code = "upstream_timeout"
    http_status = 504
    meaning = "A deadline for the provider passed."


class PoolTimeout(UpstreamTimeout):
    code = "pool_timeout"
    meaning = "No connection to the provider came free in time."


class ConnectTimeout(UpstreamTimeout):
    code = "connect_timeout"
    meaning = "Connecting to the provider (TCP, TLS, HTTP/2 preface) took too long."


class FirstByteTimeout(UpstreamTimeout):
    code = "first_byte_timeout"
    meaning = "The provider took the request, but did not begin to answer in time."


class AnswerTimeout(UpstreamTimeout):
    code = "answer_timeout"
    meaning = "An answer that is not streamed was not there in time."


class IdleTimeout(UpstreamTimeout):
    code = "idle_timeout"
    meaning = "The provider stopped sending in the middle of an answer."


class TotalTimeout(UpstreamTimeout):
    code = "total_timeout"
    retryable = False
    meaning = "The answer took longer than the total deadline."


# -- raised by the SDK ---------------------------------------------------------------------------------


class ConnectionLost(HoldfastError):
    """Raised by the SDK after `max_retries` consecutive failures; `partial` holds what was received."""

    code = "connection_lost"
    http_status = 502
    close_code = None
    meaning = "The connection to the gateway was lost and could not be made again."


class ProtocolError(HoldfastError):
    """The gateway broke PROTOCOL.md; raised by the SDK."""

    code = "protocol_error"
    http_status = 502
    close_code = 1002
    retryable = False
    meaning = "The peer broke the Holdfast protocol."


class StreamFailed(HoldfastError):
    """Raised by the SDK when a stream ends `failed` or `incomplete` with a code that it does not know."""

    code = "stream_failed"
    http_status = 502
    close_code = None
    meaning = "The stream ended with an error."


class ConfigError(HoldfastError):
    """The configuration cannot be used. The message names the file, the key, and what was expected."""

    code = "config_error"
    close_code = None
    retryable = False
    meaning = "The configuration is invalid."


def _tree(cls: type[HoldfastError]) -> list[type[HoldfastError]]:
    return [found for sub in cls.__subclasses__() for found in (sub, *_tree(sub))]


#: Every error by its code, in the order of this file.
ERRORS: dict[str, type[HoldfastError]] = {cls.code: cls for cls in _tree(HoldfastError)}


def is_passing(status: int) -> bool:
    """Whether a status says that the same request may succeed later."""
    return status in (408, 409, 425, 429) or status >= 500


def from_wire(
    code: str,
    message: str,
    *,
    retryable: bool | None = None,
    retry_after: float | None = None,
    status: int | None = None,
) -> HoldfastError:
    """Return the exception for an error that came over the wire; `StreamFailed` for an unknown code.

    `retryable` is the peer's word; None leaves it to the code.
    """
    cls = ERRORS.get(code)
    error: HoldfastError
    if cls is UpstreamStatus:
        error = UpstreamStatus(message, status=status or 502, retry_after=retry_after)
    elif cls is None:
        error = StreamFailed(f"{code}: {message}", retry_after=retry_after)
    else:
        error = cls(message)
        error.retry_after = retry_after
    if status is not None:
        error.status = status
    if retryable is not None:
        error.retryable = retryable
    return error
