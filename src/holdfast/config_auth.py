"""The configuration of who may call. How it is used is told in `docs/how-to/authentication.md`."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from holdfast.config_limits import Count


class KeyConfig(Struct, forbid_unknown_fields=True, frozen=True):
    """`[keys.NAME]`: a caller. `hash` is what `holdfast keys create` prints."""

    hash: Annotated[str, Meta(description="SHA-256 of the key, `sha256:` and 64 hex digits.")]
    tenant: Annotated[str | None, Meta(description="Callers of one tenant share streams; default: the name.")] = (
        None
    )
    models: Annotated[list[str] | None, Meta(description="The only models that it may ask for. Default: all.")] = (
        None
    )
    max_tokens: Annotated[
        Count | None, Meta(description="Every request must say `max_tokens`, and no more than this.")
    ] = None

    def __repr__(self) -> str:
        return f"KeyConfig(tenant={self.tenant!r})"


class AuthConfig(Struct, forbid_unknown_fields=True, frozen=True):
    """`[auth]`: callers beyond those of `[keys]`."""

    key_store: Annotated[
        str | None,
        Meta(description="SQLite file of keys that come and go while the gateway runs (`holdfast keys --store`)."),
    ] = None

    def __repr__(self) -> str:
        return f"AuthConfig(key_store={self.key_store!r})"
