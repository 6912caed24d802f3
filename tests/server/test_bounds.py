"""`Largest`: what callers of `GET /v1/limits` cost does not grow with what there is, however often they ask."""

from __future__ import annotations

from holdfast.admission.queue import Admission
from holdfast.config import LimitsConfig, QueueConfig
from holdfast.server.peers import Peers
from holdfast.server.surfaces.bounds import Largest
from holdfast.timers import Timers
from tests.streams.test_directory import Script
from tests.support.clock import Clock


def test_all_there_is_is_looked_at_once_in_a_second() -> None:
    with Clock().running() as clock:  # type: ignore[abstract] # what it lacks is never called
        timers = Timers(clock)
        script = Script(timers)
        admission = Admission(LimitsConfig(), QueueConfig(), {}, timers)
        largest = Largest(script.directory, Peers(timers, max_connections=10), admission)
        stream = script.add()
        largest.look(0.0)
        stream.offer([b"0"])
        largest.look(0.9)
        assert largest.log == 0
        largest.look(1.0)
        assert largest.log == stream.log.bytes > 0
        script.directory.aclose()
