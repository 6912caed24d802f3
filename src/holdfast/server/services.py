"""What a surface is given to serve its paths, and what it gives back: routes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import msgspec

from holdfast.config import Config
from holdfast.core.limits.budget import Budget
from holdfast.core.limits.rate_limit import Lease
from holdfast.dialects.ask import RateLeft
from holdfast.generation.launcher import Launcher
from holdfast.observe.events import Observer
from holdfast.server.delivery.flusher import Flusher
from holdfast.server.delivery.sse import SseDelivery
from holdfast.server.listener.turns import Turns
from holdfast.server.listener.websocket import Liveness
from holdfast.server.peers import Peers
from holdfast.server.router import Route
from holdfast.streams.directory import Directory
from holdfast.timers import Timers


class SurfaceLimits(msgspec.Struct, frozen=True):
    """Bounds and times of a client's conversation. Sizes are in bytes, times in seconds."""

    max_message: int
    max_streams: int
    log_bytes: int
    hello_timeout: float
    detach_grace: float
    detach_grace_http: float
    liveness: Liveness
    message_timeout: float = 60.0

    @classmethod
    def of(cls, config: Config) -> SurfaceLimits:
        server, streams = config.server, config.streams
        return cls(
            max_message=server.max_body,
            max_streams=server.max_streams_per_session,
            log_bytes=streams.log_bytes,
            hello_timeout=server.hello_timeout,
            detach_grace=streams.detach_grace,
            detach_grace_http=streams.detach_grace_http,
            liveness=Liveness(server.ping_interval, server.ping_timeout),
            message_timeout=server.body_timeout,
        )


def _no_rates(tenant: str, key: str | None) -> list[RateLeft]:
    return []


def _uncounted(tenant: str, key: str | None) -> Sequence[Lease]:
    return ()


@dataclass(slots=True)
class Services:
    """The objects of one process that surfaces share. `limits` alone changes, with the configuration.

    `rates` tells what is left of the limits of a tenant and key, `connect` counts a connection that lasts against
    them. `clock` gives Unix seconds. `gateway_id` names this process to gateways among the providers.
    """

    launcher: Launcher
    directory: Directory
    timers: Timers
    turns: Turns
    budget: Budget
    flusher: Flusher
    sse: SseDelivery
    peers: Peers
    observer: Observer
    limits: SurfaceLimits
    rates: Callable[[str, str | None], list[RateLeft]] = _no_rates
    connect: Callable[[str, str | None], Sequence[Lease]] = _uncounted
    clock: Callable[[], float] = time.time
    gateway_id: str = ""


#: Something that clients can speak with: a function or a class that makes its routes.
Surface: TypeAlias = Callable[[Services], Iterable[Route]]
