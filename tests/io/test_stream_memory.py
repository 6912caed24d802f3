"""A stream that is forgotten leaves nothing behind, at once: the collector of cycles runs rarely in a gateway."""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable, Iterator

import pytest

from holdfast.core.log import Log
from tests.support.gateway_client import Http, Session, chat
from tests.support.gateway_path import GatewayPath, MakePath
from tests.support.waiting import eventually

pytestmark = pytest.mark.usefixtures("no_descriptor_left", "no_collector")

COMPLETIONS = "/v1/chat/completions"
ENDLESS = {"tokens": 1_000_000, "interval_ms": 2}
SHORT = {"retention": 0.1, "retention_acknowledged": 0.1, "detach_grace": 0.1, "detach_grace_http": 0.0}


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def logs_alive() -> int:
    return sum(type(found) is Log for found in gc.get_objects())


async def completed(path: GatewayPath) -> None:
    async with await Session.open(path.url) as session:
        await session.create("r-1", chat({"tokens": 20, "interval_ms": 0}))
        await session.read()


async def cancelled(path: GatewayPath) -> None:
    async with await Session.open(path.url) as session:
        stream = (await session.create("r-1", chat(ENDLESS)))["stream"]
        await session.entries(5)
        await session.send(type="cancel", stream=stream)
        await session.expect("end")


async def cut_at_the_provider(path: GatewayPath) -> None:
    async with await Session.open(path.url) as session:
        await session.create("r-1", chat({"tokens": 20, "fault": {"kind": "cut", "after_tokens": 5}}))
        await session.read()


async def refused_by_the_provider(path: GatewayPath) -> None:
    async with await Session.open(path.url) as session:
        await session.create("r-1", chat({"fault": {"kind": "status", "status": 400}}))
        await session.read()


async def dropped(path: GatewayPath) -> None:
    async with await Session.open(path.url) as session:
        await session.create("r-1", chat(ENDLESS))
        await session.entries(5)
        await session.drop()


async def left_by_its_sse_reader(path: GatewayPath) -> None:
    async with await Http.open(path.url) as http:
        http.request("POST", COMPLETIONS, chat(ENDLESS))
        await http.head()


@pytest.mark.parametrize(
    "end", [completed, cancelled, cut_at_the_provider, refused_by_the_provider, dropped, left_by_its_sse_reader]
)
@pytest.mark.parametrize("protocol", ["http1", "h2c"])
async def test_forgotten_stream_leaves_no_log(
    make_path: MakePath, end: Callable[[GatewayPath], Awaitable[None]], protocol: str
) -> None:
    path = await make_path(
        streams=SHORT, provider={"http2": "prior-knowledge"} if protocol == "h2c" else {"http2": "off"}
    )
    await end(path)
    directory = path.gateway.directory
    await eventually(lambda: directory.statistics().streams == 0, "the stream is forgotten")
    await eventually(lambda: logs_alive() == 0, "its log is freed")
