"""The configuration of who may call. How it is used is told in `docs/how-to/authentication.md`."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from holdfast.config.units import Count, Grace, Seconds


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


class JwtConfig(Struct, forbid_unknown_fields=True, frozen=True):
    """`[auth.jwt]`: callers with tokens (JWT) of an issuer such as your identity provider."""

    issuer: Annotated[str, Meta(min_length=1, description="What the claim `iss` must be.")]
    audience: Annotated[
        str | list[str], Meta(description="What the claim `aud` must be or hold; of several one is enough.")
    ]
    jwks_url: Annotated[
        str | None, Meta(description="Where the issuer publishes its keys; `https`, or `http` on this machine.")
    ] = None
    jwks_file: Annotated[str | None, Meta(description="A file with the keys instead.")] = None
    algorithms: Annotated[
        list[Literal["RS256", "ES256", "EdDSA"]],
        Meta(min_length=1, description="Signatures that are accepted. Default: all three."),
    ] = field(default_factory=lambda: ["RS256", "ES256", "EdDSA"])
    leeway: Annotated[Grace, Meta(description="How far the issuer's clock may differ.")] = 30.0
    refresh: Annotated[
        Seconds,
        Meta(description="The keys are fetched anew after this. A token with an unknown key causes that sooner."),
    ] = 300.0
    tenant_claim: Annotated[
        str | None, Meta(description="Claim that names the tenant. Default: each subject is one of its own.")
    ] = None
    scopes_claim: Annotated[
        str, Meta(description="Claim with scopes such as `holdfast:model:NAME`, as a list or separated by spaces.")
    ] = "scope"


class AuthConfig(Struct, forbid_unknown_fields=True, frozen=True):
    """`[auth]`: callers beyond those of `[keys]`."""

    key_store: Annotated[
        str | None,
        Meta(description="SQLite file of keys that come and go while the gateway runs (`holdfast keys --store`)."),
    ] = None

    admin_key: Annotated[
        str | None,
        Meta(description="Key of the admin API, or its hash, `sha256:` and 64 hex digits; use `env:NAME`."),
    ] = None
    token_secret: Annotated[
        str | None,
        Meta(
            description="Signs client tokens, 32 characters or more; use `env:NAME`. Processes that share it take "
            "each other's tokens. Default: random, and tokens end with the process."
        ),
    ] = None
    jwt: JwtConfig | None = None

    def __repr__(self) -> str:
        return f"AuthConfig(key_store={self.key_store!r})"
