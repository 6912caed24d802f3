"""A stream that was forgotten is freed at once, however it ended: no cycle waits for the garbage collector."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import pytest

from holdfast.core.log import Log
from holdfast.dialects.ask import Ask
from holdfast.dialects.chat import CHAT
from holdfast.errors import UpstreamReset
from holdfast.generation.generation import Generation
from holdfast.generation.launcher import Started, Terms
from holdfast.generation.pump import Pump
from holdfast.observe.events import Observers
from tests.support.clock import Clock
from tests.support.generating import ALICE, Gateway, request
from tests.support.reading import Reading


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.freeze()  # what other tests keep is none of this one's
    gc.disable()
    yield
    gc.enable()
    gc.unfreeze()


def alive() -> dict[str, int]:
    """What is alive of what one request makes."""
    found = [type(known).__name__ for known in gc.get_objects() if type(known) in (Log, Ask, Generation, Pump)]
    return {name: found.count(name) for name in found}


def completed(gateway: Gateway) -> None:
    reading = Reading(gateway.start())
    gateway.upstream().call.answer("Hi")
    gateway.settle()
    reading.stream.release(reading.cursor)


def failed_over(gateway: Gateway) -> None:
    gateway.start()
    for _ in range(3):
        gateway.upstream().call.refuse(503)
        gateway.clock.advance(10.0)
    gateway.upstream().call.answer("Hi")


def broken_off(gateway: Gateway) -> None:
    gateway.start()
    gateway.upstream().call.head().tokens("Hi").fail(UpstreamReset("cut"))


def cancelled(gateway: Gateway) -> None:
    stream = gateway.start()
    gateway.upstream().call.head().tokens("Hi")
    stream.cancel()


def cancelled_before_its_first_step(gateway: Gateway) -> None:
    answers: list[object] = []
    gateway.launcher.create(ALICE, CHAT, request(), Terms(60.0), answers.append)
    assert isinstance(answers[0], Started)
    answers[0].stream.cancel()


def cancelled_while_connecting(gateway: Gateway) -> None:
    gateway.upstream().connects = False
    gateway.start().cancel()


def abandoned(gateway: Gateway) -> None:
    stream = gateway.start(grace=1.0)
    stream.lose(Reading(stream).cursor)
    gateway.clock.pass_by(1.0)


def refused(gateway: Gateway) -> None:
    gateway.launcher.drain()
    gateway.create()


def queued_then_cancelled(gateway: Gateway) -> None:
    first, second = gateway.start(), gateway.start()
    assert second.status == "queued"
    second.cancel()
    first.cancel()


def queued_then_abandoned(gateway: Gateway) -> None:
    first, second = gateway.start(), gateway.start(grace=1.0)
    second.lose(Reading(second).cursor)
    gateway.clock.pass_by(1.0)
    assert second.is_ended
    first.cancel()


def queued_then_expired(gateway: Gateway) -> None:
    first, second = gateway.start(), gateway.start()
    gateway.clock.pass_by(5.0)
    assert second.is_ended
    first.cancel()


def queued_then_admitted(gateway: Gateway) -> None:
    gateway.start()
    gateway.start()
    gateway.upstream().call.answer("Hi")
    gateway.settle()
    gateway.upstream().call.answer("Ho")


def queued_then_sealed(gateway: Gateway) -> None:
    gateway.start()
    gateway.start()
    gateway.launcher.seal()
    gateway.upstream().call.fail(UpstreamReset("cut"))


END = Callable[[Gateway], None]


@pytest.mark.parametrize(
    "end",
    [
        completed,
        failed_over,
        broken_off,
        cancelled,
        cancelled_before_its_first_step,
        cancelled_while_connecting,
        abandoned,
        refused,
        queued_then_cancelled,
        queued_then_abandoned,
        queued_then_expired,
        queued_then_admitted,
        queued_then_sealed,
    ],
)
def test_forgotten_stream_leaves_nothing(clock: Clock, end: END) -> None:
    gateway = Gateway(clock, limits={"sim": 1}, queue={"deadline": 5.0}, streams={"retention": 10.0})
    gateway.launcher._observer = Observers()  # the recorder would keep what it was told
    end(gateway)
    gateway.settle()
    gateway.upstream().calls.clear()
    gateway.clock.pass_by(10.0)
    assert gateway.directory.statistics().streams == 0
    assert alive() == {}
    assert gateway.held == {}


def test_ended_stream_keeps_its_log_and_nothing_of_its_request(clock: Clock) -> None:
    gateway = Gateway(clock)
    gateway.launcher._observer = Observers()
    completed(gateway)
    gateway.upstream().calls.clear()
    assert alive() == {"Log": 1}
