"""What the suites measure with: a tree of processes, its CPU and memory, and its end."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import httpx
import pytest

from bench.gateways import direct
from bench.gateways import holdfast as adapter
from bench.gateways.registry import ADAPTERS, found
from bench.processes import (
    ProcessFailed,
    cpu_ns,
    free_port,
    holdfast,
    is_running,
    resident,
    serving,
    simulated_provider,
    tree,
)

CORE = min(os.sched_getaffinity(0))
#: A server whose child burns CPU, and which listens when the child has begun to.
PARENT = """
import socket, subprocess, sys
burn = "print(flush=True)\\nwhile True: pass"
child = subprocess.Popen([sys.executable, "-c", burn], stdout=subprocess.PIPE)
child.stdout.readline()
sock = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True: sock.accept()
"""


def test_children_count_as_part_of_the_tree_and_end_with_it() -> None:
    port = free_port()
    with serving([sys.executable, "-c", PARENT, str(port)], CORE, port) as server:
        members = tree(server.pid)
        assert len(members) == 2
        child = members[1]
        before = cpu_ns(child)
        while cpu_ns(child) == before:  # it burns CPU whenever it is scheduled
            pass
        assert cpu_ns(server.pid) >= cpu_ns(child) > before
        assert resident(server.pid) > resident(child) > 0
        assert os.sched_getaffinity(child) == {CORE}
    assert not Path(f"/proc/{server.pid}").exists()
    assert not is_running(child)


def test_process_that_ends_at_once_is_shown_with_what_it_said() -> None:
    port = free_port()
    command = [sys.executable, "-c", "import sys; sys.exit('no such option')"]
    with pytest.raises(ProcessFailed, match="status 1: no such option"), serving(command, CORE, port):
        pass


def test_holdfast_that_does_not_start_is_shown_with_what_it_said(tmp_path: Path) -> None:
    missing = tmp_path / "missing.toml"
    with (
        pytest.raises(ProcessFailed, match=r"holdfast serve ended with status 2: .*missing\.toml"),
        holdfast(["serve", "--config", str(missing)], CORE),
    ):
        pass


def test_gateway_with_a_key_takes_it_and_no_other_caller() -> None:
    with adapter.start(None, CORE, has_key=True, settings={"server": {"max_connections": 7}}) as gateway:
        url = f"{gateway.url}/models"
        assert httpx.get(url, headers=gateway.headers).status_code == 200
        assert httpx.get(url).status_code == 401


def test_simulated_provider_listens_when_it_is_given_and_is_gone_afterwards() -> None:
    with simulated_provider(CORE) as provider:
        assert tree(provider.pid) == [provider.pid]
        assert provider.url == f"http://127.0.0.1:{provider.port}/v1"
    assert not Path(f"/proc/{provider.pid}").exists()


def test_gateways_are_found_by_name_and_absent_ones_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ADAPTERS["caddy"], "available", lambda: "caddy is not installed")
    adapters, notes = found(["direct", "caddy"])
    assert adapters == {"direct": direct}
    assert notes == ["caddy: skipped: caddy is not installed"]
    with pytest.raises(ValueError, match="unknown gateway 'envoy'; known are direct"):
        found(["envoy"])
