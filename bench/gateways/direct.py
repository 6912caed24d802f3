"""No gateway: the load talks to the provider. What the others add is measured against this."""

from __future__ import annotations

from contextlib import AbstractContextManager

from bench.gateways.gateway import Running, in_between


def available() -> str | None:
    return None


def start(provider_url: str, core: int) -> AbstractContextManager[Running]:
    return in_between(Running(provider_url, None))
