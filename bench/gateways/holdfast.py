"""The gateway of this repository, from the environment that runs the benchmark."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from bench.gateways.gateway import Running
from bench.processes import holdfast

Tables = Mapping[str, Mapping[str, object]]

#: The API key of a gateway that takes one.
_KEY = "hf_" + "bench" * 8
#: Short, or the logs and the streams that one visit leaves behind would be memory that the next one lacks.
_STREAMS = {"detach_grace": 0.5, "retention": 0.5, "retention_acknowledged": 0.5}


def available() -> str | None:
    return None


@contextmanager
def start(
    provider_url: str | None,
    core: int | None,
    *,
    http2: bool = True,
    has_key: bool = False,
    settings: Tables | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Running]:
    """Run it in front of a provider, or of its own demo. With `has_key` it takes that of `Running.headers` alone.

    `settings` are tables of its configuration by name, which take the place of those that are written here.
    """
    tables: dict[str, Mapping[str, object]] = {"streams": _STREAMS}
    if provider_url is not None:
        tables["providers.sim"] = {
            "base_url": provider_url,
            "http2": "prior-knowledge" if http2 else "off",
        }
        tables["models.demo"] = {"route": ["sim/demo"]}
    if has_key:
        tables["keys.bench"] = {"hash": f"sha256:{hashlib.sha256(_KEY.encode()).hexdigest()}"}
    tables |= settings or {}
    tables["server"] = {"port": 0, **tables.get("server", {})}
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write("".join(_toml(name, table) for name, table in tables.items()))
        file.flush()
        arguments = ["serve", "--config", file.name, "--log-level", "error"]
        with holdfast(arguments, core, environment=environment) as server:
            headers = {"authorization": f"Bearer {_KEY}"} if has_key else {}
            yield Running(server.url, server.pid, headers)


def _toml(name: str, table: Mapping[str, object]) -> str:
    # Numbers, strings and lists of strings are written in TOML as in JSON.
    lines = [f"{key} = {json.dumps(value)}" for key, value in table.items()]
    return f"[{name}]\n" + "\n".join(lines) + "\n"
