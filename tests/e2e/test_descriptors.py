"""`holdfast serve` where few descriptors may be open: it says so, and probes get in whatever clients hold."""

from __future__ import annotations

import json
import os
import socket
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from websockets.sync.client import connect as ws_connect
from websockets.typing import Subprotocol

from tests.support.command_line import DEADLINE, Server, serve
from tests.support.gateway_client import chat

NOFILE = 256
HANDSHAKE = (
    b"GET /v1/ws/stream HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


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
        with httpx.Client(trust_env=False, timeout=DEADLINE) as client:
            bounds = client.get(f"{server.url}/v1/limits").json()["bounds"]
        (shown,) = [bound for bound in bounds if bound["name"] == "connections"]
        assert shown["limit"] == 128


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
    with server, ExitStack() as stack:
        callers = [stack.enter_context(connect(server)) for _ in range(128)]
        for caller in callers:
            caller.sendall(HANDSHAKE)
            assert caller.recv(65536).startswith(b"HTTP/1.1 101")
        for _ in range(50):
            stack.enter_context(connect(server))
        assert ask(server, "/healthz") == 200
        assert ask(server, "/v1/models") == 503
        assert server.descriptors < NOFILE
        assert "Traceback" not in server.errors


def test_descriptors_that_run_out_are_said_once_and_keep_no_probe_out(tmp_path: Path) -> None:
    """It inherits so many that they run out before the slots do, as they might by connections to providers."""
    with ExitStack() as stack:
        inherited = [os.dup(0) for _ in range(110)]
        for descriptor in inherited:
            stack.callback(os.close, descriptor)
        server = stack.enter_context(serve(cwd=tmp_path, nofile=NOFILE, pass_fds=inherited))
        answers = []
        for _ in range(128):
            caller = stack.enter_context(connect(server))
            caller.sendall(HANDSHAKE)
            answers.append(caller.recv(65536)[9:12])
        assert answers[:90] == [b"101"] * 90
        assert answers[-1] == b"503"
        assert server.descriptors > NOFILE - 32
        assert [ask(server, "/healthz") for _ in range(20)] == [200] * 20
        assert server.errors.count("descriptors are in use, nearly as many as may be") == 1
        assert "Traceback" not in server.errors


def test_soft_limit_is_raised_to_the_hard_one(tmp_path: Path) -> None:
    with serve(cwd=tmp_path, nofile="256:4096") as server:
        limits = Path(f"/proc/{server.process.pid}/limits").read_text()
        (line,) = [line for line in limits.splitlines() if line.startswith("Max open files")]
        assert line.split()[3:5] == ["4096", "4096"]


def test_connections_to_providers_leave_the_last_descriptors_to_probes(tmp_path: Path) -> None:
    """One caller with one connection has more streams than there are descriptors, each with a connection."""
    simulated = Server("simulate", "--port", "0", "--http1-only", cwd=tmp_path, last_line="Ctrl-C")
    with simulated:
        (tmp_path / "holdfast.toml").write_text(
            f'[providers.p]\nbase_url = "{simulated.url}/v1"\nmax_concurrency = 1000\n'
            '[models.m]\nroute = ["p/demo"]\n'
        )
        stall = {"tokens": 5, "fault": {"kind": "stall", "after_tokens": 1}}
        with (
            serve("--config", "holdfast.toml", cwd=tmp_path, nofile=NOFILE) as server,
            ws_connect(f"ws{server.url[4:]}/v1/ws/stream", subprotocols=[Subprotocol("holdfast.v1")]) as session,
        ):
            session.send(json.dumps({"type": "hello", "version": 1}))
            for number in range(NOFILE):
                request = {**chat(stall), "model": "m"}
                session.send(json.dumps({"type": "create", "request_id": f"r-{number}", "request": request}))
            codes: list[int] = []
            while len(codes) < 20:  # of those for which there is no connection
                message = json.loads(session.recv(DEADLINE))
                if message["type"] == "end":
                    codes.append(message["error"]["code"])
            assert set(codes) == {"upstream_connect_error"}  # which is nothing against the provider
            assert ask(server, "/healthz") == 200
            assert ask(server, "/readyz") == 200
            assert server.descriptors < NOFILE - 32
