"""The one place where generations begin: parses, authorizes, admits and starts what a surface is asked for."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from msgspec import Struct

from holdfast.admission.principal import Principal
from holdfast.dialects.dialect import Dialect
from holdfast.errors import HoldfastError
from holdfast.generation.ticket import Caller
from holdfast.streams.registry import Done, Registry
from holdfast.streams.stream import Stream


class Terms(Struct, frozen=True):
    """What a surface decides about a generation, beside what the request says.

    `detach_grace` is in seconds: how long it goes on without a reader. `stream` overrides the request's own choice.
    `connection` and `session` are for the log.
    """

    detach_grace: float
    request_id: str | None = None
    stream: bool | None = None
    keeps_running: bool = False
    connection: int | None = None
    session: str | None = None


class Started(NamedTuple):
    """The stream that a request has started; of a duplicate, the one that an earlier request had."""

    stream: Stream
    is_duplicate: bool


class Launcher:
    """Starts generations."""

    def __init__(self, registry: Registry, *, clock: Callable[[], float] = time.time) -> None:
        self._registry = registry
        self._clock = clock

    @property
    def models(self) -> list[str]:
        return self._registry.models

    def create(
        self,
        principal: Principal,
        dialect: Dialect,
        raw: bytes | str,
        terms: Terms,
        done: Done[Started | HoldfastError],
    ) -> None:
        """Start a generation, or find the one that this request id has started.

        `done` is called once with it, or with what refuses it; then nothing was sent to a provider and nothing is
        held.
        """
        try:
            ask = dialect.parse(raw, stream=terms.stream)
            principal.authorize(ask.model, ask.bounds, self._clock())
            stream, is_duplicate = self._registry.create(
                principal.owner,
                ask,
                request_id=terms.request_id,
                detach_grace=terms.detach_grace,
                keeps_running=terms.keeps_running,
                caller=Caller(principal.tenant, principal.key_id, terms.connection, terms.session),
            )
        except HoldfastError as exc:
            done(exc)
        else:
            done(Started(stream, is_duplicate))
