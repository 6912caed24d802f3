"""`holdfast serve` where few descriptors may be open: it says so, and probes get in whatever clients hold."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as ws_connect
from websockets.typing import Subprotocol

from tests.support.command_line import DEADLINE, Server, serve
from tests.support.gateway_client import chat

NOFILE = 256


@pytest.fixture
def server(tmp_path: Path) -> Server:
    (tmp_path / "holdfast.toml").write_text("[server]\nmax_connections = 20000\n")
    return serve("--config", "holdfast.toml", cwd=tmp_path, nofile=NOFILE)


def ask(server: Server, path: str) -> int:
    with httpx.Client(trust_env=False, timeout=DEADLINE) as client:
        return client.get(f"{server.url}{path}").status_code


def connect(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=DEADLINE)


def test_fewer_connections_than_configured_are_said_once_at_the_start(server: Server) -> None:
    with server:
        (warning,) = [line for line in server.errors.splitlines() if "WARNING" in line]
        assert "server.max_connections is 20000" in warning
        assert f"only {NOFILE} descriptors may be open" in warning
        assert "128 connections are accepted" in warning


def test_idle_connections_never_use_up_the_descriptors(server: Server) -> None:
    with server, ExitStack() as stack:
        for number in range(2 * NOFILE):
            stack.enter_context(connect(server))
            if number % 50 == 0:
                assert ask(server, "/healthz") == 200
        assert ask(server, "/healthz") == 200
        assert ask(server, "/v1/models") == 200
        assert server.descriptors < NOFILE - 64
        assert "Traceback" not in server.errors


def test_probes_get_in_while_callers_hold_as_many_connections_as_there_may_be(server: Server) -> None:
    handshake = (
        b"GET /v1/ws/stream HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
        b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    with server, ExitStack() as stack:
        callers = [stack.enter_context(connect(server)) for _ in range(128)]
        for caller in callers:
            caller.sendall(handshake)
            assert caller.recv(65536).startswith(b"HTTP/1.1 101")
        for _ in range(50):
            stack.enter_context(connect(server))
        assert ask(server, "/healthz") == 200
        assert ask(server, "/v1/models") == 503
        assert server.descriptors < NOFILE
        assert "Traceback" not in server.errors


def test_soft_limit_is_raised_to_the_hard_one(tmp_path: Path) -> None:
    with serve(cwd=tmp_path, nofile="256:4096") as server:
        limits = Path(f"/proc/{server.process.pid}/limits").read_text()
        (line,) = [line for line in limits.splitlines() if line.startswith("Max open files")]
        assert line.split()[3:5] == ["4096", "4096"]


@contextmanager
def providers(tmp_path: Path) -> Iterator[tuple[Server, ClientConnection]]:
    """A gateway with a provider `p` that needs a connection for each stream, and a session there.

    The provider `q` has one for all. `m` is served by `p`, `both` by `q` where `p` fails, and `other` by `q`.
    """
    text = "".join(
        f"[models.{model}]\nroute = {json.dumps(route)}\n"
        for model, route in {"m": ["p/demo"], "both": ["p/demo", "q/demo"], "other": ["q/demo"]}.items()
    )
    with Server("simulate", "--port", "0", cwd=tmp_path, last_line="Ctrl-C") as simulated:
        for name, http2 in {"p": "off", "q": "prior-knowledge"}.items():
            text += (
                f'[providers.{name}]\nbase_url = "{simulated.url}/v1"\nmax_concurrency = 1000\n'
                f'http2 = "{http2}"\nstreams_per_connection = 1000\n'
            )
        (tmp_path / "holdfast.toml").write_text(text)
        with (
            serve("--config", "holdfast.toml", cwd=tmp_path, nofile=NOFILE) as server,
            ws_connect(f"ws{server.url[4:]}/v1/ws/stream", subprotocols=[Subprotocol("holdfast.v1")]) as session,
        ):
            session.send(json.dumps({"type": "hello", "version": 1}))
            yield server, session


def create(session: ClientConnection, model: str, count: int) -> None:
    """Ask for streams that never end."""
    request = {**chat({"tokens": 5, "fault": {"kind": "stall", "after_tokens": 1}}), "model": model}
    for number in range(count):
        session.send(json.dumps({"type": "create", "request_id": f"{model}-{number}", "request": request}))


def test_connections_to_providers_leave_the_last_descriptors_to_probes(tmp_path: Path) -> None:
    """One caller with one connection has more streams than there are descriptors, each with a connection."""
    with providers(tmp_path) as (server, session):
        create(session, "m", NOFILE)
        codes: list[str] = []
        while len(codes) < 20:  # of those for which there is no connection
            message = json.loads(session.recv(DEADLINE))
            if message["type"] == "end":
                codes.append(message["error"]["code"])
        assert set(codes) == {"upstream_connect_error"}  # which is nothing against the provider
        assert ask(server, "/healthz") == 200
        assert ask(server, "/readyz") == 200
        assert server.descriptors < NOFILE - 32


def test_want_of_descriptors_is_made_up_for_by_a_provider_with_a_connection(tmp_path: Path) -> None:
    with providers(tmp_path) as (_, session):
        create(session, "other", 1)
        begun: set[str] = set()
        while not begun:
            message = json.loads(session.recv(DEADLINE))
            if message["type"].startswith("event"):
                begun.add(message["stream"])
        create(session, "both", NOFILE)
        while len(begun) < 1 + NOFILE:
            message = json.loads(session.recv(DEADLINE))
            assert message["type"] != "end", message["error"]
            if message["type"].startswith("event"):
                begun.add(message["stream"])
