"""What a request asks for, in the terms that every API shares: what limits, scopes, routes and logs go by."""

from __future__ import annotations

import msgspec

from holdfast.core.json_object import Members


class Bounds(msgspec.Struct, frozen=True):
    """How much a request may take. A dialect reads it from the fields that its API obeys, and from no others.

    `max_output` bounds the answer of each of `choices`, in tokens; None where the request does not bound it.
    `size` is the length of the request in bytes or characters, without the encoded `media` (images, recordings,
    files). `output_field` and `choices_field` are what messages to the caller name; `unclear` is the first of such
    fields whose value is no positive integer, which a provider may read as it likes.
    """

    max_output: int | None
    choices: int
    media: int
    size: int
    output_field: str
    choices_field: str = ""
    unclear: str | None = None


class RateLeft(msgspec.Struct, frozen=True):
    """What is left of a rate limit. `what` is `requests` or `tokens`; it is whole again after `reset` seconds."""

    what: str
    limit: int
    remaining: int
    reset: float


class Ask(msgspec.Struct, frozen=True):
    """One request of a client. `body` is all of it as it came, in UTF-8.

    `wants_usage` says whether the caller asked to be told the usage. `hops` are the gateways that the request has
    passed: see `core.hops`. `members` are those of a large body, which is looked through once.
    """

    dialect: str
    model: str
    stream: bool
    body: bytes
    bounds: Bounds
    wants_usage: bool
    hops: bytes = b""
    members: Members | None = None
