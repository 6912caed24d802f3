"""What the end of a stream that did not complete is to an HTTP client."""

from __future__ import annotations

from holdfast.core.entries import EndBody, error_of
from holdfast.errors import HoldfastError, from_wire


def end_error(end: EndBody) -> HoldfastError:
    """Return the error that an end tells of."""
    if end.error is None:
        return from_wire("stream_failed", f"the stream ended {end.status}")
    return error_of(end.error)


def end_http_status(end: EndBody) -> int:
    """Return the HTTP status for an end without any entry: a provider's refusal of the request is passed on."""
    error = end.error
    if error is not None and error.status is not None and 400 <= error.status < 600:
        # The provider's 401 and 403 are about the gateway's credentials, not the caller's.
        return 502 if error.status in (401, 403) else error.status
    return end_error(end).http_status
