"""LiteLLM's proxy, with one worker and without a database, as its documentation starts it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from bench.gateways.gateway import PEERS, Running, peer_missing
from bench.processes import free_port, serving

_COMMAND = PEERS / "litellm" / "bin" / "litellm"
#: It does not start without one.
_KEY = "sk-bench"
_CONFIG = """\
model_list:
  - model_name: demo
    litellm_params:
      model: openai/demo
      api_base: {provider_url}
      api_key: none
litellm_settings:
  telemetry: false
"""
_ENVIRONMENT = {
    "LITELLM_MASTER_KEY": _KEY,
    # It would ask for a list of prices over the network, three times, before it begins.
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOG": "ERROR",
    "NO_DOCS": "True",
}


def available() -> str | None:
    return peer_missing(_COMMAND)


@contextmanager
def start(provider_url: str, core: int) -> Iterator[Running]:
    port = free_port()
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(_CONFIG.format(provider_url=provider_url))
        file.flush()
        command = [str(_COMMAND), "--config", file.name, "--host", "127.0.0.1", "--port", str(port)]
        with serving(command, core, port, environment=_ENVIRONMENT) as server:
            yield Running(server.url, server.pid, {"authorization": f"Bearer {_KEY}"})
