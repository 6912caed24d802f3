"""The configuration of authentication. `docs/how-to/authentication.md` explains how to use it."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from holdfast.config.units import Count, Grace, Seconds


class KeyConfig(Struct, forbid_unknown_fields=True, frozen=True):
    """`[keys.NAME]`: a caller. `hash` is what `holdfast keys create` prints."""

    hash: Annotated[str, Meta(description="SHA-256 of the key, `sha256:` and 64 hex digits.")]
    tenant: Annotated[
        str | None, Meta(description="Callers of one tenant share streams. Default: the key's name.")
    ] = None
    models: Annotated[
        list[str] | None, Meta(description="The only models that the key may use. Default: all.")
    ] = None
    max_tokens: Annotated[
        Count | None, Meta(description="Every request must set `max_tokens`, to this at most.")
    ] = None

    def __repr__(self) -> str:
        return f"KeyConfig(tenant={self.tenant!r})"


class JwtConfig(Struct, forbid_unknown_fields=True, frozen=True):
    """`[auth.jwt]`: callers with tokens (JWT) of an issuer, such as your identity provider."""

    issuer: Annotated[str, Meta(min_length=1, description="The value that the claim `iss` must have.")]
    audience: Annotated[
        str | list[str],
        Meta(description="The value that the claim `aud` must have or contain; one of several is enough."),
    ]
    jwks_url: Annotated[
        str | None, Meta(description="URL of the issuer's public keys; `https`, or `http` on this machine.")
    ] = None
    jwks_file: Annotated[str | None, Meta(description="A file with the keys, instead of a URL.")] = None
    algorithms: Annotated[
        list[Literal["RS256", "ES256", "EdDSA"]],
        Meta(min_length=1, description="The accepted signature algorithms. Default: all three."),
    ] = field(default_factory=lambda: ["RS256", "ES256", "EdDSA"])
    leeway: Annotated[Grace, Meta(description="How much the issuer's clock may differ from ours.")] = 30.0
    refresh: Annotated[
        Seconds,
        Meta(
            description="How often the keys are fetched again. A token with an unknown key makes that happen "
            "sooner. Keys that could not be fetched for 12 times as long are forgotten."
        ),
    ] = 300.0
    tenant_claim: Annotated[
        str | None,
        Meta(description="The claim that names the tenant. Default: each subject is a tenant of its own."),
    ] = None
    scopes_claim: Annotated[
        str,
        Meta(description="The claim with scopes such as `holdfast:model:NAME`, as a list or separated by spaces."),
    ] = "scope"


class AuthConfig(Struct, forbid_unknown_fields=True, frozen=True):
    """`[auth]`: callers other than those of `[keys]`."""

    key_store: Annotated[
        str | None,
        Meta(description="SQLite file of keys that can change while the gateway runs (`holdfast keys --store`)."),
    ] = None

    admin_key: Annotated[
        str | None,
        Meta(
            description="Key of the admin, or its hash, `sha256:` and 64 hex digits; use `env:NAME`. The admin "
            "may read and cancel everybody's streams, see `/v1/limits` and, then as the only one, `/v1/pool`, and "
            "administer the keys."
        ),
    ] = None
    token_secret: Annotated[
        str | None,
        Meta(
            description="Signs client tokens; 32 characters or more; use `env:NAME`. Processes that share it "
            "accept each other's tokens. Default: random, so that tokens end with the process."
        ),
    ] = None
    jwt: JwtConfig | None = None

    def __repr__(self) -> str:
        return f"AuthConfig(key_store={self.key_store!r})"
