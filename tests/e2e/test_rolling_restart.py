"""Gateways are replaced one after the other behind a real balancer, and no stream notices."""

from __future__ import annotations

import shutil

import pytest

from chaos.rolling_restart import Options, roll


@pytest.mark.timeout(120)
@pytest.mark.parametrize("balancer", ["haproxy", "nginx"])
def test_rolling_restart_loses_and_doubles_nothing(balancer: str) -> None:
    if shutil.which(balancer) is None:
        pytest.skip(f"{balancer} is not installed")
    result = roll(Options(streams=100, clients=20, seconds=4, balancer=balancer))
    assert result.faults == {}
    assert result.streams_running == 100
    assert result.streams_whole == result.streams_created == result.requests_at_the_provider >= 200
    assert result.clients_told_by_goaway == 20
    assert [restart.exit_code for restart in result.restarts] == [0, 0]
