"""All adapters, in the order in which reports show them."""

from __future__ import annotations

from collections.abc import Sequence

from bench.gateways import caddy, direct, haproxy, holdfast, litellm, nginx, portkey, smg
from bench.gateways.gateway import Adapter

ADAPTERS: dict[str, Adapter] = {
    "direct": direct,
    "nginx": nginx,
    "haproxy": haproxy,
    "caddy": caddy,
    "holdfast": holdfast,
    "smg": smg,
    "portkey": portkey,
    "litellm": litellm,
}


def found(names: Sequence[str] = ()) -> tuple[dict[str, Adapter], list[str]]:
    """Return the adapters that can be run, and a line for each that cannot; only `names`, where there are some.

    Raises ValueError for a name that is none.
    """
    unknown = [name for name in names if name not in ADAPTERS]
    if unknown:
        raise ValueError(f"unknown gateway {unknown[0]!r}; known are {', '.join(ADAPTERS)}")
    adapters, notes = {}, []
    for name, adapter in ADAPTERS.items():
        if names and name not in names:
            continue
        reason = adapter.available()
        if reason is None:
            adapters[name] = adapter
        else:
            notes.append(f"{name}: skipped: {reason}")
    return adapters, notes
