"""What differs in a new configuration, by name, and what it may not lose. It reads no file."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from holdfast.config import Config
from holdfast.config.limits import LimitConfig
from holdfast.config.names import dotted

#: Sections whose absence lets callers in, or lets them do more.
_GUARDED = ("limits", "keys", "auth")
_LIMITS = ("requests_per_minute", "tokens_per_minute", "concurrent_streams", "connections")


def changes(old: Config, new: Config) -> list[str]:
    """Name every setting that differs. Values are shown of numbers and switches alone: others may be secret."""
    return list(_differences(msgspec.to_builtins(old), msgspec.to_builtins(new), ()))


def _differences(old: Any, new: Any, path: tuple[str, ...]) -> Iterator[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in dict.fromkeys([*old, *new]):
            place = (*path, str(name))
            if name not in new:
                yield f"{dotted(place)} removed"
            elif name not in old:
                yield f"{dotted(place)} added"
            else:
                yield from _differences(old[name], new[name], place)
    elif old != new:
        shown = f": {_value(old)} -> {_value(new)}" if _is_plain(old) and _is_plain(new) else " changed"
        yield f"{dotted(path)}{shown}"


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, bool | int | float)


def _value(value: object) -> str:
    return "none" if value is None else str(value).lower()


def refusal(old: tuple[str, Config] | None, new: tuple[str, Config], *, is_asked: bool) -> str | None:
    """Say why a configuration is not taken although it is valid; None where nothing speaks against it.

    Each is the text of a file and what it says; `old` is None where none was read. The beginning of a file is a
    valid file, most of the time: one that is still being written, or was cut short, would take limits and keys
    away without a word. `is_asked`: an operator has sent SIGHUP, and so says that the file is as meant. What goes
    on such a word alone is single limits; a whole section has to be there, if only as an empty table.
    """
    if old is None:
        return None
    before, now = tomllib.loads(old[0]), tomllib.loads(new[0])
    gone = [name for name in _GUARDED if before.get(name) and name not in now]
    if gone:
        shown = ", ".join(f"[{name}]" for name in gone)
        return (
            f"{shown} is gone altogether, as from a file that was cut short; if it is meant, leave it there empty"
        )
    if is_asked:
        return None
    if not new[0].endswith("\n"):
        return "it does not end with a line end, as a file that was cut short; add one, or send SIGHUP"
    lost = ["every key"] if old[1].keys and not new[1].keys else []
    lost += lost_limits(old[1], new[1])
    if lost:
        shown = ", ".join(lost[:5]) + (f" and {len(lost) - 5} more" if len(lost) > 5 else "")
        return f"{shown} is gone, as from a file that was cut short; send SIGHUP to say that it is meant"
    return None


def lost_limits(old: Config, new: Config) -> Iterator[str]:
    """Name every limit of `old` that `new` has not. Another number is no loss, nor is 0, which says "no limit".

    A limit of a key, model or provider that is gone as well is not lost.
    """
    yield from _lost_by_callers(old, new)
    for name, key in old.keys.items():
        kept = new.keys.get(name)
        if kept is not None:
            for field in ("models", "max_tokens", "tenant"):
                if getattr(key, field) is not None and getattr(kept, field) is None:
                    yield dotted(("keys", name, field))
    for name, provider in old.providers.items():
        provider_now = new.providers.get(name)
        if provider_now is not None and _bounds(provider) and not _bounds(provider_now):
            yield dotted(("providers", name, "max_concurrency"))
    for name, model in old.models.items():
        model_now = new.models.get(name)
        if model_now is not None and model.max_concurrency is not None and model_now.max_concurrency is None:
            yield dotted(("models", name, "max_concurrency"))
    for per_address in ("max_connections_per_second_per_address", "max_connections_per_address"):
        if getattr(old.server, per_address) is not None and getattr(new.server, per_address) is None:
            yield f"server.{per_address}"


def _bounds(provider: Any) -> bool:
    return provider.max_concurrency is not None or provider.adaptive_concurrency.enabled


def _lost_by_callers(old: Config, new: Config) -> Iterator[str]:
    """Compare what holds for each: a limit of its own may be replaced by one for all."""
    before, now = old.limits, new.limits
    gone = old.keys.keys() - new.keys.keys()
    gone_tenants = _tenants(old) - _tenants(new)
    yield from _lost(("limits",), before.of_key(None), now.of_key(None), (now,))
    yield from _lost(("limits", "tenant"), before.of_tenant(""), now.of_tenant(""), (now.tenant,))
    for name in before.keys.keys() - gone:
        own = now.keys.get(name, LimitConfig())
        yield from _lost(("limits", "keys", name), before.keys[name], now.of_key(name), (own, now))
    for name in before.tenants.keys() - gone_tenants:
        own = now.tenants.get(name, LimitConfig())
        yield from _lost(("limits", "tenants", name), before.tenants[name], now.of_tenant(name), (own, now.tenant))


def _tenants(config: Config) -> set[str]:
    return {key.tenant or name for name, key in config.keys.items()}


def _lost(
    path: tuple[str, ...], before: LimitConfig, now: LimitConfig, said: tuple[LimitConfig, ...]
) -> Iterator[str]:
    """`now` is what holds; `said` is what says so in the file, the nearest first."""
    for field in _LIMITS:
        is_lifted = any(getattr(limits, field) == 0 for limits in said)
        if getattr(before, field) and getattr(now, field) is None and not is_lifted:
            yield dotted((*path, field))
