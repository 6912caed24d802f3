"""Collects every bound of this process and its present use, for `GET /v1/limits`."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from holdfast.admission.limiter import Account
from holdfast.admission.principal import Principal
from holdfast.admission.queue import Admission
from holdfast.config import Config
from holdfast.core.limits.budget import Budget, Kind
from holdfast.core.limits.rate_limit import Concurrency, RateLimit
from holdfast.core.session import messages as m
from holdfast.core.session.server import MAX_INVALID_MESSAGES
from holdfast.server.peers import Peers
from holdfast.streams.directory import Directory
from holdfast.upstream.statistics import ProviderStatistics

#: How many of those who hold most memory an admin is shown.
_LARGEST = 20
#: Seconds between two looks at every connection, log and tenant.
_LOOK_INTERVAL = 1.0


class Bound(Struct, frozen=True):
    """`used` is None for what is bounded each time anew, such as a message; `limit` None is no limit.

    `setting` is where it is configured, None for what PROTOCOL.md fixes. Of what each session or log has, `used`
    is that of the one which has most.
    """

    name: str
    limit: float | None
    used: int | None = None
    setting: str | None = None


class RateUse(Struct, frozen=True):
    """Use within the last minute. `held` is reserved by requests that wait. `reset_after` is in seconds."""

    limit: int
    used: int
    remaining: int
    held: int
    reset_after: float


class HoldUse(Struct, frozen=True):
    limit: int | None
    used: int


class AccountUse(Struct, frozen=True):
    """What one key or tenant uses. A rate without a limit is not counted, and is None."""

    requests: RateUse | None
    tokens: RateUse | None
    streams: HoldUse
    connections: HoldUse
    waiting: int | None = None


class ModelUse(Struct, frozen=True):
    model: str
    limit: int | None
    running: int
    waiting: int


class TenantMemory(Struct, frozen=True):
    tenant: str
    used: int


class MemoryUse(Struct, frozen=True, omit_defaults=True):
    """Bytes of `server.memory_bytes`, all and by what they are held for.

    `reclaimable` are of ended logs, which go where others need the memory. `tenant` is the caller's own share, as
    much as it is at this moment, and `largest` those who hold most, which only an admin is told.
    """

    limit: int
    used: int
    reclaimable: int
    kinds: dict[str, int]
    tenant: HoldUse
    strangers: HoldUse
    largest: list[TenantMemory] | None = None


class Bounds(Struct, frozen=True):
    """The answer. `key` and `tenant` are the caller's own accounts."""

    bounds: list[Bound]
    memory: MemoryUse
    models: list[ModelUse]
    key: AccountUse
    tenant: AccountUse
    refused: int
    queue_timeouts: int


class Largest:
    """What the one connection, log or tenant has that has most.

    To know it all of them are looked at: once in a while, however often callers ask.
    """

    def __init__(self, directory: Directory, peers: Peers, admission: Admission) -> None:
        self._directory = directory
        self._peers = peers
        self._admission = admission
        self._looked_at = -math.inf
        #: Bytes of a log, streams that a session reads, and requests of a tenant that wait.
        self.log = self.session = self.waiting = 0

    def look(self, now: float) -> None:
        """Look again where that was not done just now."""
        if now - self._looked_at >= _LOOK_INTERVAL:
            self._looked_at = now
            self.log = self._directory.largest_log
            self.session = self._peers.statistics().most_streams
            self.waiting = self._admission.queue.most_waiting


def collect(
    config: Config,
    directory: Directory,
    peers: Peers,
    admission: Admission,
    largest: Largest,
    *,
    providers: Sequence[ProviderStatistics],
    caller: Principal,
    now: float,
) -> Bounds:
    """Collect all bounds, in time that does not grow with what there is, but for admins."""
    largest.look(now)
    tenant, key = caller.tenant, caller.key_id
    key_account, tenant_account = admission.limiter.accounts(tenant, key, now)
    waiting = admission.queue.waiting_of(tenant)
    return Bounds(
        bounds=[
            *_process_bounds(config, directory, peers, admission, largest),
            *_provider_bounds(config, providers),
            *_protocol_bounds(config),
        ],
        memory=_memory(directory.budget, caller),
        models=[
            ModelUse(name, model.limit, model.used, admission.waiting_for(name))
            for name, model in admission.models.items()
        ],
        key=_account(key_account, now),
        tenant=_account(tenant_account, now, waiting=waiting),
        refused=admission.refused,
        queue_timeouts=admission.expired,
    )


def _process_bounds(
    config: Config, directory: Directory, peers: Peers, admission: Admission, largest: Largest
) -> list[Bound]:
    server, streams, queue = config.server, config.streams, config.queue
    use = directory.statistics()
    rate = server.max_connections_per_second_per_address
    memory = directory.budget.used
    return [
        # The setting, or less where too few descriptors may be open.
        Bound("connections", peers.max_connections, len(peers), "server.max_connections"),
        Bound(
            "connections of an address",
            server.max_connections_per_address,
            None,
            "server.max_connections_per_address",
        ),
        Bound(
            "new connections per second and address", rate, None, "server.max_connections_per_second_per_address"
        ),
        Bound("bytes that clients make it hold", server.memory_bytes, memory, "server.memory_bytes"),
        Bound("streams that are kept", streams.max_streams, use.streams, "streams.max_streams"),
        Bound("bytes of a log", streams.log_bytes, largest.log, "streams.log_bytes"),
        Bound("waiting requests", queue.max_waiting, len(admission.queue), "queue.max_waiting"),
        Bound(
            "waiting requests of a tenant",
            queue.max_waiting_per_tenant,
            largest.waiting,
            "queue.max_waiting_per_tenant",
        ),
        Bound("seconds in the queue", queue.deadline, None, "queue.deadline"),
        Bound(
            "streams that a session reads",
            server.max_streams_per_session,
            largest.session,
            "server.max_streams_per_session",
        ),
    ]


def _provider_bounds(config: Config, providers: Sequence[ProviderStatistics]) -> list[Bound]:
    bounds = []
    for provider in providers:
        name, concurrency = provider.provider, provider.concurrency
        if concurrency is not None:
            is_fixed = config.providers[name].max_concurrency is not None
            setting = "max_concurrency" if is_fixed else "adaptive_concurrency"
            bounds.append(
                Bound(
                    f"requests in flight at {name}",
                    concurrency.limit,
                    concurrency.in_flight,
                    f"providers.{name}.{setting}",
                )
            )
    return bounds


def _protocol_bounds(config: Config) -> list[Bound]:
    server = config.server
    return [
        Bound("bytes of a message or body", server.max_body, None, "server.max_body"),
        Bound("seconds to the first message", server.hello_timeout, None, "server.hello_timeout"),
        Bound(
            "ends that wait for their ack", server.max_streams_per_session, None, "server.max_streams_per_session"
        ),
        Bound("characters of a name", m.MAX_NAME),
        Bound("streams in one hello, members of one ack", m.MAX_STREAMS_PER_MESSAGE),
        Bound("sequence number", m.MAX_SEQ),
        Bound("bytes of outstanding credit of a reading", m.MAX_CREDIT),
        Bound("invalid messages on a connection", MAX_INVALID_MESSAGES),
    ]


def _memory(budget: Budget, caller: Principal) -> MemoryUse:
    own, strangers = budget.account(caller.owner.tenant), budget.strangers
    largest = None
    if caller.owner.is_admin:
        users = heapq.nlargest(_LARGEST, budget.accounts(), key=lambda account: account.used)
        largest = [TenantMemory(account.tenant or "", account.used) for account in users if account.used]
    return MemoryUse(
        limit=budget.limit,
        used=budget.used,
        reclaimable=budget.reclaimable,
        kinds={kind.name.lower(): budget.by_kind[kind] for kind in Kind},
        tenant=HoldUse(own.bound, own.used),
        strangers=HoldUse(strangers.bound, strangers.used),
        largest=largest,
    )


def _account(account: Account[Any], now: float, *, waiting: int | None = None) -> AccountUse:
    return AccountUse(
        requests=_rate(account.requests, now),
        tokens=_rate(account.tokens, now),
        streams=_hold(account.streams),
        connections=_hold(account.connections),
        waiting=waiting,
    )


def _rate(rate: RateLimit | None, now: float) -> RateUse | None:
    if rate is None:
        return None
    return RateUse(
        rate.limit, rate.used(now), rate.remaining(now), rate.held, round(max(rate.reset_after(now), 0.0), 3)
    )


def _hold(concurrency: Concurrency) -> HoldUse:
    return HoldUse(concurrency.limit, concurrency.used)
