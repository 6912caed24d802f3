"""Tokens of an external issuer: which JWTs are accepted, and which principal each of them stands for.

This follows RFC 8725: the configuration, not the token, names the algorithms; each key is used only with its own
algorithm; issuer and audience are always checked. `none` and HMAC cannot be configured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jwt

from holdfast.admission.compact import is_compact
from holdfast.admission.jwks import Jwks
from holdfast.admission.principal import SUBJECT_PREFIX, Principal, Scopes, is_name
from holdfast.config.auth import JwtConfig
from holdfast.errors import Forbidden, Unauthorized

#: The longest token that is verified, since the time for a signature grows with it.
_MAX_LENGTH = 8192
_SCOPE = "holdfast:"


class JwtVerifier:
    """Checks tokens against the keys of one issuer."""

    def __init__(self, config: JwtConfig, keys: Jwks, *, clock: Callable[[], float]) -> None:
        self._config = config
        self._keys = keys
        self._clock = clock
        self._audience = [config.audience] if isinstance(config.audience, str) else list(config.audience)

    def verify(self, token: str) -> Principal:
        """Return the token's principal.

        Raises `Unauthorized`; `Forbidden` for a token without a usable tenant or with an unknown scope; and
        `KeysPending` while the issuer's keys are being fetched: then await it, and try again.
        """
        if len(token) > _MAX_LENGTH:
            raise Unauthorized(f"the token is longer than {_MAX_LENGTH} characters")
        if not is_compact(token):
            raise Unauthorized("the token is not a valid JWT")
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError) as exc:
            raise Unauthorized("the token is not a valid JWT") from exc
        algorithm, kid = header.get("alg"), header.get("kid")
        if algorithm not in self._config.algorithms:
            raise Unauthorized(f"the token's algorithm is none of {', '.join(self._config.algorithms)}")
        # RFC 7515 section 4.1.11: "If any of the listed extension Header Parameters are not understood and
        # supported by the recipient, then the JWS is invalid." We support none.
        if "crit" in header:
            raise Unauthorized("the token has critical headers that are not understood here")
        key = self._keys.find(kid if isinstance(kid, str) else None, algorithm)
        if key is None:
            raise Unauthorized("the token is signed with a key that its issuer does not publish")
        return self._principal(self._claims(token, key, algorithm))

    def _claims(self, token: str, key: jwt.PyJWK, algorithm: str) -> dict[str, Any]:
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                audience=self._audience,
                issuer=self._config.issuer,
                options={
                    "require": ["exp", "iss", "aud", "sub"],
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                },
            )
            self._check_times(claims)
        except jwt.InvalidAudienceError as exc:
            raise Unauthorized("the token is for another audience") from exc
        except jwt.InvalidIssuerError as exc:
            raise Unauthorized("the token is of another issuer") from exc
        except jwt.InvalidSignatureError as exc:
            raise Unauthorized("the token's signature is wrong") from exc
        except jwt.MissingRequiredClaimError as exc:
            raise Unauthorized(f"the token has no claim `{exc.claim}`") from exc
        except (jwt.PyJWTError, ValueError) as exc:
            raise Unauthorized("the token is not valid") from exc
        return claims

    def _check_times(self, claims: Mapping[str, Any]) -> None:
        """Check the times with our own clock, so that the whole gateway uses one."""
        now, leeway = self._clock(), self._config.leeway
        for name in ("exp", "nbf", "iat"):
            value = claims.get(name)
            if value is None and name != "exp":
                continue
            if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < 2**53:
                raise Unauthorized(f"the token's claim `{name}` is not a time")
        if claims["exp"] + leeway <= now:
            raise Unauthorized("the token has expired")
        if max(claims.get("nbf") or now, claims.get("iat") or now) - leeway > now:
            raise Unauthorized("the token is not valid yet")

    def _principal(self, claims: Mapping[str, Any]) -> Principal:
        config = self._config
        subject = claims["sub"]
        if not isinstance(subject, str) or not is_name(subject):
            raise Unauthorized("the token's claim `sub` must have 1 to 256 printable characters")
        if config.tenant_claim is None:
            # The prefix keeps it apart from the tenants of keys, since users may choose their own names.
            tenant = SUBJECT_PREFIX + subject
        else:
            named = claims.get(config.tenant_claim)
            if not isinstance(named, str) or not is_name(named):
                raise Forbidden(f"the token's claim `{config.tenant_claim}` does not name a tenant")
            tenant = named
        return Principal(
            tenant=tenant,
            # Each subject has the limits of one key.
            key_id=SUBJECT_PREFIX + subject,
            subject=subject,
            scopes=_scopes(claims.get(config.scopes_claim)),
            expires=float(claims["exp"]) + config.leeway,
        )


def _scopes(claim: object) -> Scopes:
    """Parse `holdfast:model:NAME`, `holdfast:max_tokens:N` and `holdfast:server`; ignore other scopes."""
    names = claim.split() if isinstance(claim, str) else claim if isinstance(claim, list) else []
    models: set[str] = set()
    bounds: list[int] = []
    is_server = False
    for name in names:
        if not isinstance(name, str) or not name.startswith(_SCOPE):
            continue
        kind, _, value = name.removeprefix(_SCOPE).partition(":")
        if kind == "model" and is_name(value):
            models.add(value)
        elif kind == "max_tokens" and value.isascii() and value.isdigit() and int(value[:16]) > 0:
            bounds.append(int(value[:16]))
        elif kind == "server" and not value:
            is_server = True
        else:
            # A scope that restricts must not be ignored because it is misspelt.
            raise Forbidden(f"the token's scope {name[:100]!r} is not understood")
    return Scopes(
        models=frozenset(models) if models else None,
        max_tokens=min(bounds) if bounds else None,
        is_server=is_server,
    )
