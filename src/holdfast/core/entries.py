"""What a log holds beside the entries of an answer: its end, the attempts behind it, and whose it is.

These records are stored and sent to clients; PROTOCOL.md has their fields.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

import msgspec

from holdfast.errors import HoldfastError, from_wire

EndStatus = Literal["completed", "failed", "incomplete", "cancelled"]


class Owner(NamedTuple):
    """Whose a stream is: a tenant's, and within the tenant a subject's if the caller named one.

    An admin is nobody's tenant, whatever a tenant is called.
    """

    tenant: str
    subject: str | None = None
    is_admin: bool = False

    def looks_on(self, owner: Owner) -> bool:
        """Whether this is an admin who reads what is somebody else's: it decides nothing for that stream."""
        return self.is_admin and self != owner

    def may_read(self, owner: Owner) -> bool:
        """Whether this caller may read and cancel that owner's streams.

        A tenant may those of its subjects, an admin everybody's.
        """
        if self.is_admin or owner.is_admin:
            return self.is_admin
        return self.tenant == owner.tenant and self.subject in (None, owner.subject)


class Position(NamedTuple):
    """What a reader has: every entry up to and including `seq`. `epoch` None stands for the one in force."""

    seq: int = -1
    epoch: int | None = None


#: Before the first entry.
START = Position()


class ErrorBody(msgspec.Struct, omit_defaults=True):
    """What went wrong. `retry_after` is in seconds.

    `status` is the provider's HTTP status, `provider_code` and `provider_type` what it calls the error, and
    `provider_request_id` what it calls the request, each where it has said so; `param` may be the provider's too.
    """

    code: str
    message: str
    retryable: bool = False
    retry_after: float | None = None
    param: str | None = None
    status: int | None = None
    provider_code: str | None = None
    provider_type: str | None = None
    provider_request_id: str | None = None


#: The largest count that is taken from a provider: every client can read it exactly (RFC 7493 section 2.2).
MAX_COUNT: Final = 2**53 - 1


class Usage(msgspec.Struct, omit_defaults=True):
    """What an answer took, in tokens, whatever its API calls them.

    The prompt includes what was read from a cache (`cached_tokens`) and written to it (`cache_write_tokens`); the
    completion includes `reasoning_tokens`.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def billed(self) -> int:
        """The sum that limits count, also where the provider does not say it. It is a count, whatever it says."""
        return min(max(self.total_tokens or self.prompt_tokens + self.completion_tokens, 0), MAX_COUNT)


class AttemptRecord(msgspec.Struct, omit_defaults=True):
    """One try at a provider. `error` is a code of the table, None where the try succeeded.

    `unconfirmed`: it failed before the first entry, and the provider may have processed the request all the same.
    `provider_request_id` is what the provider calls it.
    """

    provider: str
    model: str
    started_ms: int = 0
    duration_ms: int = 0
    status: int | None = None
    error: str | None = None
    unconfirmed: bool = False
    provider_request_id: str | None = None


class EndBody(msgspec.Struct, omit_defaults=True):
    """The last entry of every log."""

    status: EndStatus
    finish_reason: str | None = None
    usage: Usage | None = None
    error: ErrorBody | None = None
    attempts: list[AttemptRecord] = []


_encoder = msgspec.json.Encoder()
_end_decoder = msgspec.json.Decoder(EndBody)


def encode_end(end: EndBody) -> bytes:
    """Encode the payload of a log's last entry."""
    return _encoder.encode(end)


def decode_end(payload: bytes) -> EndBody:
    """Decode what `encode_end` has made."""
    return _end_decoder.decode(payload)


def error_body(error: HoldfastError) -> ErrorBody:
    """Describe an error for a log or a message."""
    return ErrorBody(
        code=error.code,
        message=error.message,
        retryable=error.retryable,
        retry_after=error.retry_after,
        param=error.param,
        status=error.status,
        provider_code=error.provider_code,
        provider_type=error.provider_type,
        provider_request_id=error.provider_request_id,
    )


def error_of(body: ErrorBody) -> HoldfastError:
    """Make the exception for an error that came over the wire: the reverse of `error_body`."""
    error = from_wire(
        body.code, body.message, retryable=body.retryable, retry_after=body.retry_after, status=body.status
    )
    error.param = body.param
    error.provider_code = body.provider_code
    error.provider_type = body.provider_type
    error.provider_request_id = body.provider_request_id
    return error
