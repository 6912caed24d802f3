"""Steering the simulated provider from outside: the faults of connections, and storms."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

import msgspec

from holdfast_tools.simulate.exchange import Exchange, Request, Wire
from holdfast_tools.simulate.faults import (
    ConnectionFault,
    ConnectionFaultOrder,
    HangHandshake,
    RandomFailures,
    ResetConnection,
    Status,
)
from holdfast_tools.simulate.request import RequestError, field_of

_T = TypeVar("_T")

#: A connection that a storm resets has sent fewer bytes than this.
RESET_WITHIN = 20_000


class Armable(Protocol):
    def arm(self, fault: ConnectionFault) -> None:
        """Let `fault` happen to this connection."""


class FaultPlan:
    """Which faults the next connections and requests get."""

    def __init__(self) -> None:
        self._next: deque[ConnectionFault] = deque()
        self._every: list[ConnectionFault] = []
        self._storm: RandomFailures | None = None
        self._connection_random = random.Random()
        self._request_random = random.Random()

    def arm_next(self, fault: ConnectionFault, count: int) -> None:
        """Give `fault` to each of the next `count` connections; what was armed before comes first."""
        self._next.extend([fault] * count)

    def arm_every(self, fault: ConnectionFault) -> None:
        """Give `fault` to every connection from now on."""
        self._every.append(fault)

    def disarm(self) -> None:
        """Take back what has not been given out."""
        self._next.clear()
        self._every.clear()

    def storm(self, failures: RandomFailures | None) -> None:
        """Begin a storm, anew from its seed, or end it."""
        self._storm = failures
        seed = failures.seed if failures is not None else 0
        # Two sequences, so that what connections get does not depend on when requests come.
        self._connection_random.seed(f"connections {seed}")
        self._request_random.seed(f"requests {seed}")

    def for_connection(self) -> list[ConnectionFault]:
        """Return the faults of a connection that was accepted now."""
        faults = list(self._every)
        if self._next:
            faults.append(self._next.popleft())
        if self._storm is not None:
            drawn = self._connection_random.random()
            after_bytes = self._connection_random.randrange(RESET_WITHIN)
            if drawn < self._storm.hang_handshake:
                faults.append(HangHandshake())
            elif drawn < self._storm.hang_handshake + self._storm.reset:
                faults.append(ResetConnection(after_bytes=after_bytes))
        return faults

    def for_request(self) -> Status | None:
        """Return the refusal that a storm has for a request that came now."""
        if self._storm is None:
            return None
        drawn = self._request_random.random()
        for status, probability in self._storm.status.items():
            if drawn < probability:
                return Status(status=status, retry_after=self._storm.retry_after)
            drawn -= probability
        return None


class Control:
    """The control endpoints."""

    def __init__(self, plan: FaultPlan, others: Callable[[Wire], Iterable[Armable]]) -> None:
        self._plan = plan
        self._others = others

    def arm(self, request: Request, exchange: Exchange) -> None:
        """`POST /control/connection-faults`: arm a fault for the next connections or the current ones."""
        order = _decode(request.body, ConnectionFaultOrder)
        if order.connections == "next":
            self._plan.arm_next(order.fault, order.count)
            exchange.reply(200, msgspec.json.encode({"armed": order.count}))
            return
        # The connection that brought the order is spared, or its answer would be hit.
        others = list(self._others(exchange.wire))
        exchange.reply(200, msgspec.json.encode({"armed": len(others)}))
        for connection in others:
            connection.arm(order.fault)

    def disarm(self, request: Request, exchange: Exchange) -> None:
        """`DELETE /control/connection-faults`: take back what no connection has got yet."""
        self._plan.disarm()
        exchange.reply(200, b"{}")

    def storm(self, request: Request, exchange: Exchange) -> None:
        """`POST /control/random-failures`: begin a storm."""
        self._plan.storm(_decode(request.body, RandomFailures))
        exchange.reply(200, b"{}")

    def calm(self, request: Request, exchange: Exchange) -> None:
        """`DELETE /control/random-failures`: end the storm."""
        self._plan.storm(None)
        exchange.reply(200, b"{}")


def _decode(body: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as exc:
        raise RequestError(f"Invalid order: {exc}", param=field_of(str(exc))) from exc
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise RequestError(f"The order is not valid JSON: {exc}") from exc
