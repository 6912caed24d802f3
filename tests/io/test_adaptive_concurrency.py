"""The adaptive limit of a provider over real sockets: who waits for a place, and that each is given back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from holdfast.app import Gateway
from holdfast.config import Config
from holdfast_tools.simulate.server import SimulatedProvider
from tests.support.gateway_client import Http, Session, ask, chat
from tests.support.waiting import eventually

COMPLETIONS = "/v1/chat/completions"
ENDLESS = {"tokens": 2, "interval_ms": 3_600_000, "ttft_ms": 3_600_000}
#: The first entry comes at once, the second never.
BEGUN = {"tokens": 2, "interval_ms": 3_600_000}
QUICK = {"tokens": 3}
ONE = {"enabled": True, "min": 1, "initial": 1, "max": 1}


class World:
    """A gateway with the providers `a` and `b`, and its settings as the file would have them."""

    def __init__(self, providers: dict[str, SimulatedProvider]) -> None:
        self.providers = providers
        self.gateway: Gateway | None = None

    def config(self, *, a: Any = None, b: Any = None, provider: Any = None, **rest: Any) -> Config:
        """`a` and `b` are their adaptive settings, `provider` what both have."""
        tables = {
            name: {"base_url": self.providers[name].base_url, "adaptive_concurrency": adaptive or {}}
            | (provider or {})
            for name, adaptive in (("a", a), ("b", b))
        }
        settings = {
            "server": {"port": 0},
            "streams": {"detach_grace": 0},  # a session that closes ends its streams
            "providers": tables,
            "models": {"demo": {"route": ["a/demo"]}},
        }
        return msgspec.convert(settings | rest, Config)

    async def start(self, **settings: Any) -> Gateway:
        self.gateway = Gateway(self.config(**settings))
        await self.gateway.start()
        return self.gateway

    @property
    def url(self) -> str:
        assert self.gateway is not None
        return self.gateway.url

    def asked(self, name: str = "a") -> int:
        return self.providers[name].statistics().requests

    @property
    def waiting(self) -> int:
        assert self.gateway is not None
        return self.gateway.admission.held["places"]

    async def concurrency(self, name: str = "a") -> Any:
        """What `GET /v1/pool` shows of it."""
        shown = (await ask(self.url, "GET", "/v1/pool")).json()["providers"]
        return next(entry for entry in shown if entry["provider"] == name)["concurrency"]

    async def at_rest(self) -> None:
        assert self.gateway is not None
        admission = self.gateway.admission

        def is_at_rest() -> bool:
            held = sum(count for name, count in admission.held.items() if name != "connections")
            return not held and not sum(in_flight(self.gateway))

        await eventually(is_at_rest, "the end of all streams")


def in_flight(gateway: Gateway | None) -> list[int]:
    assert gateway is not None
    shown = [entry.concurrency for entry in gateway.pool_statistics()]
    return [entry.in_flight for entry in shown if entry is not None]


@pytest.fixture
async def world() -> AsyncIterator[World]:
    providers = {"a": SimulatedProvider(), "b": SimulatedProvider()}
    for provider in providers.values():
        await provider.start()
    world = World(providers)
    yield world
    if world.gateway is not None:
        await world.gateway.aclose()
        assert not any(in_flight(world.gateway))
        assert not any(world.gateway.admission.held.values())
    for provider in providers.values():
        await provider.aclose()


async def test_limit_is_off_by_default(world: World) -> None:
    await world.start()
    async with await Session.open(world.url) as session:
        for number in range(40):
            assert "queue_position" not in await session.create(f"r-{number}", chat(ENDLESS))
        await eventually(lambda: world.asked() == 40)
    assert await world.concurrency() is None


async def test_request_beyond_the_limit_is_told_its_place_and_served_in_its_turn(world: World) -> None:
    await world.start(a=ONE)
    async with await Session.open(world.url) as session:
        first = await session.create("r-0", chat(ENDLESS))
        assert "queue_position" not in first
        second = await session.create("r-1", chat(ENDLESS))
        third = await session.create("r-2", chat(QUICK))
        assert (second["queue_position"], third["queue_position"]) == (0, 1)
        await eventually(lambda: world.asked() == 1)
        shown = await world.concurrency()
        assert (shown["limit"], shown["in_flight"]) == (1, 1)
        await session.send(type="cancel", stream=first["stream"])
        assert (await session.expect("end"))["stream"] == first["stream"]
        moved = await session.expect("queued")
        assert (moved["stream"], moved["position"]) == (third["stream"], 0)
        await session.send(type="cancel", stream=second["stream"])
        assert (await session.expect("end"))["stream"] == second["stream"]
        _, end = await session.read()
        assert (end["stream"], end["status"]) == (third["stream"], "completed")
    await world.at_rest()
    assert world.asked() == 3


async def test_provider_never_has_more_requests_than_its_limit(world: World) -> None:
    await world.start(a={"enabled": True, "min": 3, "initial": 3, "max": 3})
    most = 0

    async def one() -> int:
        nonlocal most
        async with await Http.open(world.url) as http:
            http.request("POST", COMPLETIONS, chat({"tokens": 5, "interval_ms": 1}))
            assert (await http.head()).status == 200
            most = max(most, world.providers["a"].statistics().streaming)
            return len([event async for event in http.events()])

    assert len(set(await asyncio.gather(*[one() for _ in range(30)]))) == 1
    assert most == 3
    await world.at_rest()


async def test_answer_that_is_not_streamed_takes_a_place_and_is_no_sample(world: World) -> None:
    await world.start(a=ONE)
    async with await Http.open(world.url) as http, await Session.open(world.url) as session:
        http.request("POST", COMPLETIONS, chat({"tokens": 3, "ttft_ms": 3_600_000}, stream=False))
        await eventually(lambda: world.asked() == 1)
        assert "queue_position" in await session.create("r-0", chat(ENDLESS))
    await world.at_rest()
    for _ in range(5):
        assert (await ask(world.url, "POST", COMPLETIONS, chat(QUICK, stream=False))).status == 200
    assert (await world.concurrency())["recent_ttft"] is None


async def test_time_to_first_token_is_measured(world: World) -> None:
    await world.start(a=ONE)
    for _ in range(3):
        assert (await ask(world.url, "POST", COMPLETIONS, chat({"tokens": 3, "ttft_ms": 20}))).status == 200
    await world.at_rest()
    shown = await world.concurrency()
    assert 0.02 <= shown["recent_ttft"] == shown["baseline_ttft"] < 5.0
    assert not shown["is_measuring"]
    bounds = (await ask(world.url, "GET", "/v1/limits")).json()["bounds"]
    (bound,) = [bound for bound in bounds if bound["name"] == "requests in flight at a"]
    assert bound == {
        "name": "requests in flight at a",
        "limit": 1,
        "used": 0,
        "setting": "providers.a.adaptive_concurrency",
    }


async def test_fixed_limit_of_a_provider_is_shown_with_its_own_setting(world: World) -> None:
    await world.start(provider={"max_concurrency": 3})
    bounds = (await ask(world.url, "GET", "/v1/limits")).json()["bounds"]
    shown = {bound["setting"]: bound["limit"] for bound in bounds if bound["name"] == "requests in flight at a"}
    assert shown == {"providers.a.max_concurrency": 3}


async def test_limit_that_grows_lets_the_next_in(world: World) -> None:
    """No request ends: the first tokens alone show that there is room for one more."""
    await world.start(a={"enabled": True, "min": 4, "initial": 4, "tolerance": 1000})
    async with await Session.open(world.url) as session:
        for number in range(8):  # two windows of four, which set the baseline
            await session.create(f"quick-{number}", chat(QUICK))
            await session.read()
        for number in range(12):
            await session.send(type="create", request_id=f"r-{number}", request=chat(BEGUN))
        await eventually(lambda: world.asked() > 8 + 4)
    await world.at_rest()


async def test_other_endpoint_of_the_route_is_taken_where_one_is_at_its_limit(world: World) -> None:
    await world.start(a=ONE, b=ONE, models={"demo": {"route": ["a/demo", "b/demo"]}})
    async with await Session.open(world.url) as session:
        for number in range(2):
            assert "queue_position" not in await session.create(f"r-{number}", chat(ENDLESS))
        await eventually(lambda: (world.asked("a"), world.asked("b")) == (1, 1))
        assert (await session.create("r-2", chat(ENDLESS)))["queue_position"] == 0
    await world.at_rest()


async def test_endpoint_without_a_limit_takes_what_the_others_cannot(world: World) -> None:
    await world.start(a=ONE, models={"demo": {"route": ["a/demo", "b/demo"]}})
    async with await Session.open(world.url) as session:
        for number in range(5):
            assert "queue_position" not in await session.create(f"r-{number}", chat(ENDLESS))
        await eventually(lambda: (world.asked("a"), world.asked("b")) == (1, 4))
    await world.at_rest()


async def test_models_that_share_a_provider_are_served_in_turn(world: World) -> None:
    models = {name: {"route": ["a/demo"]} for name in ("one", "two")}
    await world.start(a=ONE, models=models)
    async with await Session.open(world.url) as session:
        first = await session.create("r-0", chat(ENDLESS, model="one"))
        names = {}
        for number, model in enumerate(["one", "one", "one", "two", "two"]):
            accepted = await session.create(f"w-{number}", chat(QUICK, model=model))
            names[accepted["stream"]] = model
        await session.send(type="cancel", stream=first["stream"])
        order: list[str] = []
        while len(order) < 5:
            message = await session.receive()
            if message["type"] == "end" and message["stream"] in names:
                order.append(names[message["stream"]])
    assert order == ["one", "two", "one", "two", "one"]
    await world.at_rest()


async def test_client_that_leaves_gives_up_its_place_and_nothing_is_sent(world: World) -> None:
    await world.start(a=ONE)
    async with await Session.open(world.url) as session:
        await session.create("r-0", chat(ENDLESS))
        async with await Http.open(world.url) as leaver:
            leaver.request("POST", COMPLETIONS, chat(QUICK))
            await eventually(lambda: world.waiting == 1)
        await eventually(lambda: world.waiting == 0)
    await world.at_rest()
    assert world.asked() == 1


async def test_stream_that_is_cancelled_before_it_begins_leaves_no_place_taken(world: World) -> None:
    gateway = await world.start(a=ONE)
    async with await Session.open(world.url) as session:
        await session.socket.send(
            msgspec.json.encode({"type": "create", "request_id": "r-0", "request": chat(QUICK)}).decode()
        )
        await session.send(type="cancel", request_id="r-0")  # in the same read, before the pump's first step
        await session.expect("accepted")
        assert (await session.expect("end"))["status"] == "cancelled"
        await world.at_rest()
    assert in_flight(gateway) == [0]


async def test_deadline_ends_the_wait_with_the_documented_error(world: World) -> None:
    await world.start(a=ONE, queue={"deadline": 0.2})
    async with await Session.open(world.url) as session:
        await session.create("r-0", chat(ENDLESS))
        refused = await ask(world.url, "POST", COMPLETIONS, chat(QUICK))
        assert (refused.status, refused.error["code"]) == (503, "queue_timeout")
    assert world.asked() == 1


async def test_full_queue_refuses_at_once(world: World) -> None:
    await world.start(a=ONE, queue={"max_waiting": 0})
    async with await Session.open(world.url) as session:
        await session.create("r-0", chat(ENDLESS))
        refused = await ask(world.url, "POST", COMPLETIONS, chat(QUICK))
        assert (refused.status, refused.error["code"]) == (503, "queue_full")


# -- failures --------------------------------------------------------------------------------------------


async def test_overload_signal_lowers_the_limit_and_the_request_is_tried_again(world: World) -> None:
    await world.start(a={"enabled": True, "min": 1, "initial": 20})
    fault = {"kind": "status", "status": 503, "times": 1}
    response = await ask(world.url, "POST", COMPLETIONS, chat({"tokens": 3, "fault": fault}, user="u"))
    assert response.status == 200
    shown = await world.concurrency()
    assert (shown["limit"], shown["overloads"]) == (7, 1)
    await world.at_rest()


async def test_refusal_of_the_request_itself_leaves_the_limit(world: World) -> None:
    await world.start(a={"enabled": True})
    for status in (400, 500):
        fault = {"kind": "status", "status": status}
        await ask(world.url, "POST", COMPLETIONS, chat({"fault": fault}))
    assert (await world.concurrency())["overloads"] == 0
    await world.at_rest()


async def test_refused_h2_stream_lowers_the_limit(world: World) -> None:
    await world.start(a={"enabled": True}, provider={"http2": "prior-knowledge"})
    fault = {"kind": "reset", "before_head": True, "error_code": 7, "times": 1}
    response = await ask(world.url, "POST", COMPLETIONS, chat({"tokens": 3, "fault": fault}, user="u"))
    assert response.status == 200
    assert (await world.concurrency())["overloads"] == 1
    await world.at_rest()


async def test_timeout_before_the_first_byte_lowers_the_limit(world: World) -> None:
    await world.start(a={"enabled": True}, provider={"timeouts": {"first_byte": 0.1}})
    response = await ask(world.url, "POST", COMPLETIONS, chat({"fault": {"kind": "no_answer"}}))
    assert response.error["code"] == "first_byte_timeout"
    assert (await world.concurrency())["overloads"] == 1
    await world.at_rest()


FAILOVER: dict[str, Any] = {
    "models": {"demo": {"route": ["a/demo", "b/demo"]}, "other": {"route": ["b/demo"]}},
    # What has timed out is not asked again there: only the other endpoint is left.
    "provider": {"timeouts": {"first_byte": 0.1}},
}


async def test_failover_to_an_endpoint_at_its_limit_waits_and_is_served(world: World) -> None:
    await world.start(a=ONE, b=ONE, **FAILOVER)
    async with await Session.open(world.url) as session:
        request = chat({"tokens": 3, "fault": {"kind": "no_answer", "times": 1}}, user="u")
        # Each provider counts for itself: the second one has had its fault.
        assert (await ask(world.url, "POST", COMPLETIONS, request | {"model": "other"})).status == 504
        first = await session.create("r-0", chat(BEGUN, model="other"))
        await session.entries(1)
        second = await session.create("r-1", request)
        assert "queue_position" not in second
        moved = await session.expect("queued")
        assert (moved["stream"], moved["position"]) == (second["stream"], 0)
        shown = (await ask(world.url, "GET", "/v1/limits")).json()["models"]
        assert [(model["model"], model["running"], model["waiting"]) for model in shown] == [
            ("demo", 0, 1),
            ("other", 1, 0),
        ]
        # Its place at the first endpoint is free for others meanwhile.
        assert (await ask(world.url, "POST", COMPLETIONS, chat(QUICK))).status == 200
        assert (world.asked("a"), world.asked("b")) == (2, 2)
        await session.send(type="cancel", stream=first["stream"])
        ends: dict[str, dict[str, Any]] = {}
        while len(ends) < 2:
            message = await session.receive()
            if message["type"] == "end":
                ends[message["stream"]] = message
        end = ends[second["stream"]]
        assert end["status"] == "completed"
        assert [attempt["provider"] for attempt in end["attempts"]] == ["a", "b"]
    await world.at_rest()


async def test_failover_that_waits_in_vain_ends_with_what_had_failed(world: World) -> None:
    await world.start(a=ONE, b=ONE, queue={"deadline": 0.3}, **FAILOVER)
    async with await Session.open(world.url) as session:
        await session.create("r-0", chat(BEGUN, model="other"))
        await session.entries(1)
        refused = await ask(world.url, "POST", COMPLETIONS, chat({"fault": {"kind": "no_answer"}}))
        assert (refused.status, refused.error["code"]) == (504, "first_byte_timeout")
    await world.at_rest()


async def test_failover_without_room_in_the_queue_ends_with_what_had_failed(world: World) -> None:
    await world.start(a=ONE, b=ONE, queue={"max_waiting": 0}, **FAILOVER)
    async with await Session.open(world.url) as session:
        await session.create("r-0", chat(BEGUN, model="other"))
        await session.entries(1)
        refused = await ask(world.url, "POST", COMPLETIONS, chat({"fault": {"kind": "no_answer"}}))
        assert (refused.status, refused.error["code"]) == (504, "first_byte_timeout")
    await world.at_rest()


async def test_client_that_leaves_while_its_failover_waits_leaves_nothing(world: World) -> None:
    await world.start(a=ONE, b=ONE, **FAILOVER)
    async with await Session.open(world.url) as session:
        await session.create("r-0", chat(BEGUN, model="other"))
        await session.entries(1)
        async with await Http.open(world.url) as leaver:
            leaver.request("POST", COMPLETIONS, chat({"fault": {"kind": "no_answer"}}))
            await eventually(lambda: world.waiting == 1)
        await eventually(lambda: world.waiting == 0)
        assert world.asked("b") == 1
    await world.at_rest()


async def test_request_waits_no_longer_than_its_endpoints_are_tried(world: World) -> None:
    """The breaker opens while it waits: it is told so at once, though the place is still taken."""
    gateway = await world.start(
        a={"enabled": True, "min": 2, "initial": 2, "max": 2}, provider={"breaker": {"failures": 1}}
    )
    async with await Session.open(world.url) as session:
        await session.create("r-0", chat(ENDLESS))
        failing = await session.create("r-1", chat(BEGUN | {"fault": {"kind": "reset", "before_head": True}}))
        second = await session.create("r-2", chat(QUICK))
        ends: dict[str, str] = {}
        while len(ends) < 2:
            message = await session.receive()
            if message["type"] == "end":
                ends[message["stream"]] = message["error"]["code"]
        assert ends == {failing["stream"]: "upstream_reset", second["stream"]: "circuit_open"}
        assert in_flight(gateway) == [1]


async def test_request_that_waits_is_let_in_when_a_breaker_lets_requests_through_again(world: World) -> None:
    models = {"demo": {"route": ["a/demo", "b/demo"]}, "only": {"route": ["a/demo"]}}
    provider = {"breaker": {"failures": 1, "open_for": 1.0}, "retry_budget": {"ratio": 0, "floor": 0}}
    await world.start(a=ONE, b=ONE, provider=provider, models=models)
    failed = await ask(world.url, "POST", COMPLETIONS, chat({"fault": {"kind": "status"}}, model="only"))
    assert failed.status == 503
    async with await Session.open(world.url) as session:
        await session.create("r-0", chat(ENDLESS))
        second = await session.create("r-1", chat(QUICK))
        assert second["queue_position"] == 0
        _, end = await session.read()
        assert (end["stream"], end["status"]) == (second["stream"], "completed")
        assert [attempt["provider"] for attempt in end["attempts"]] == ["a"]
        assert world.asked("b") == 1
    await world.at_rest()


# -- reload and shutdown ---------------------------------------------------------------------------------


async def test_reload_lets_in_who_waited_for_a_place(world: World) -> None:
    gateway = await world.start(a=ONE)
    async with await Session.open(world.url) as session:
        await session.create("r-0", chat(BEGUN))
        await session.entries(1)
        second = await session.create("r-1", chat(QUICK))
        assert second["queue_position"] == 0
        gateway.reload(world.config())
        while (message := await session.receive())["type"] != "end":
            assert message["stream"] == second["stream"]
        assert (message["stream"], message["status"]) == (second["stream"], "completed")
        assert await world.concurrency() is None
    await world.at_rest()


async def test_reload_brings_a_limit_that_counts_new_requests(world: World) -> None:
    gateway = await world.start()
    async with await Session.open(world.url) as session:
        await session.create("r-0", chat(ENDLESS))
        gateway.reload(world.config(a=ONE))
        assert "queue_position" not in await session.create("r-1", chat(ENDLESS))
        assert (await session.create("r-2", chat(ENDLESS)))["queue_position"] == 0
        await eventually(lambda: in_flight(gateway) == [1])


async def test_unchanged_limit_keeps_what_it_has_learned_over_a_reload(world: World) -> None:
    gateway = await world.start(a={"enabled": True, "min": 1, "initial": 20})
    fault = {"kind": "status", "status": 503, "times": 1}
    await ask(world.url, "POST", COMPLETIONS, chat({"tokens": 3, "fault": fault}, user="u"))
    gateway.reload(world.config(a={"enabled": True, "min": 1, "initial": 20}, queue={"deadline": 7}))
    assert (await world.concurrency())["limit"] == 7


async def test_gateway_that_closes_leaves_nobody_waiting_and_no_place_taken(world: World) -> None:
    gateway = await world.start(a=ONE)
    async with await Session.open(world.url) as session:
        for number in range(5):
            await session.create(f"r-{number}", chat(ENDLESS))
        await eventually(lambda: world.asked() == 1)
        assert world.waiting == 4
        await gateway.launcher.aclose()
        await world.at_rest()
    assert world.asked() == 1
