"""`holdfast serve` with TLS, on the loop that it has there: clients that are gone before anything begins."""

from __future__ import annotations

import socket
import ssl
import struct
from pathlib import Path

import httpx
import pytest

from holdfast_tools.simulate.certificate import self_signed
from tests.support.command_line import DEADLINE, Server, serve
from tests.support.waiting import eventually


@pytest.fixture
def server(tmp_path: Path) -> Server:
    pem, key = self_signed()
    (tmp_path / "certificate.pem").write_bytes(pem + key)
    (tmp_path / "holdfast.toml").write_text(
        '[server]\ntls_cert = "certificate.pem"\ntls_key = "certificate.pem"\nheader_timeout = 1\n'
    )
    return serve("--config", "holdfast.toml", cwd=tmp_path)


def connections(client: httpx.Client, server: Server) -> int:
    bounds = client.get(f"{server.url}/v1/limits").json()["bounds"]
    return int(next(bound["used"] for bound in bounds if bound["name"] == "connections"))


async def test_clients_that_reset_their_connection_before_their_handshake_give_their_slots_back(
    server: Server, tmp_path: Path
) -> None:
    trust = ssl.create_default_context(cafile=tmp_path / "certificate.pem")
    with server, httpx.Client(trust_env=False, timeout=DEADLINE, verify=trust) as client:
        assert connections(client, server) == 1
        for _ in range(500):
            with socket.create_connection(("127.0.0.1", server.port), timeout=DEADLINE) as own:
                own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await eventually(lambda: connections(client, server) == 1)
