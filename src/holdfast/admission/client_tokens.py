"""Short-lived tokens that an application's server requests for its browsers. Nothing stores them.

They are JWTs that the gateway signs and checks. Their own type, issuer and prefix ensure that no token of an
external issuer is taken for one of them, nor the other way round.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from typing import Annotated, Any

import jwt
import msgspec
from msgspec import Meta

from holdfast.admission.compact import is_compact
from holdfast.admission.keys import KeyTable
from holdfast.admission.principal import SUBJECT_PREFIX, Principal, Scopes, is_name
from holdfast.errors import Forbidden, InvalidRequest, PayloadTooLarge, Unauthorized

PREFIX = "hft_"
#: The longest life of a token, and its default life, in seconds.
MAX_LIFE = 3600
DEFAULT_LIFE = 300
#: The largest body of a request about credentials, in bytes.
MAX_BODY = 256 * 1024
_ISSUER = "holdfast"
_TYPE = "holdfast-client+jwt"
_ALGORITHM = "HS256"
_INVALID = "the client token is not valid here: its "


class TokenRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The body of `POST /v1/client_tokens`. The defaults are those of the server's own credential."""

    models: Annotated[list[str], Meta(min_length=1, max_length=100)] | None = None
    max_tokens: Annotated[int, Meta(ge=1, lt=2**53)] | None = None
    subject: str | None = None
    origin: str | None = None
    expires_in: Annotated[int, Meta(ge=1, le=MAX_LIFE)] = DEFAULT_LIFE


class IssuedToken(msgspec.Struct, frozen=True):
    token: str
    #: In Unix seconds.
    expires_at: int
    expires_in: int

    def __repr__(self) -> str:
        return f"IssuedToken(expires_at={self.expires_at!r})"


class _Claims(msgspec.Struct, frozen=True, omit_defaults=True):
    """The claims of a token. `kid` and `gen` name the key that requested it: the token ends with that key."""

    iss: str
    iat: int
    exp: int
    ten: str
    kid: str | None = None
    gen: int = 0
    sub: str | None = None
    models: list[str] | None = None
    max: int | None = None
    origin: str | None = None


def check_size(raw: bytes) -> None:
    """Raise `PayloadTooLarge` for a body that would be many small values, decoded one by one."""
    if len(raw) > MAX_BODY:
        raise PayloadTooLarge(f"the body is larger than {MAX_BODY} bytes")


def parse_token_request(raw: bytes) -> TokenRequest:
    """Parse the body of a request for a token. Raises `InvalidRequest` that names the field, `PayloadTooLarge`."""
    check_size(raw)
    try:
        request = msgspec.json.decode(raw or b"{}", type=TokenRequest)
    except msgspec.ValidationError as exc:
        raise InvalidRequest(str(exc)) from exc
    except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
        raise InvalidRequest(f"the body is not valid JSON: {exc}") from exc
    for name in ("subject", "origin"):
        value = getattr(request, name)
        if value is not None and not is_name(value):
            raise InvalidRequest(f"`{name}` must have 1 to 256 printable characters", param=name)
    for model in request.models or ():
        if not is_name(model):
            raise InvalidRequest("`models` must be names of 1 to 256 printable characters", param="models")
    return request


class ClientTokens:
    """Issues and reads client tokens.

    Processes that accept each other's tokens share one `secret`. A token is valid only while the table has the key
    that requested it.
    """

    def __init__(self, secret: str | None, table: KeyTable, *, clock: Callable[[], float]) -> None:
        # The label separates this key from others that may be derived from the same secret.
        material = secrets.token_bytes(32) if secret is None else secret.encode()
        self._key = hashlib.sha256(b"holdfast client token\n" + material).digest()
        self._table = table
        self._clock = clock

    def issue(self, caller: Principal, request: TokenRequest) -> IssuedToken:
        """Issue a token that allows no more than the caller may do. Raises `Forbidden`."""
        caller.require_server()
        scopes = caller.scopes
        if scopes.is_admin:
            raise Forbidden("an admin has no streams that a page could read; ask with a tenant's key")
        models = request.models
        if models is None:
            models = None if scopes.models is None else sorted(scopes.models)
        else:
            for model in models:
                if not scopes.allows_model(model):
                    raise Forbidden(f"your credential does not allow the model {model[:100]!r}", param="models")
        bound = request.max_tokens if request.max_tokens is not None else scopes.max_tokens
        if scopes.max_tokens is not None and bound is not None and bound > scopes.max_tokens:
            raise Forbidden(
                f"your credential allows `max_tokens` of at most {scopes.max_tokens}", param="max_tokens"
            )
        if caller.subject is not None and request.subject not in (None, caller.subject):
            raise Forbidden("your credential is for one subject alone", param="subject")
        now = int(self._clock())
        expires = now + request.expires_in
        if caller.expires is not None:
            expires = min(expires, int(caller.expires))
        claims = _Claims(
            iss=_ISSUER,
            iat=now,
            exp=expires,
            ten=caller.tenant,
            kid=caller.key_id,
            gen=caller.generation,
            sub=caller.subject or request.subject,
            models=models,
            max=bound,
            origin=request.origin,
        )
        payload: dict[str, Any] = msgspec.to_builtins(claims)
        token = jwt.encode(payload, self._key, algorithm=_ALGORITHM, headers={"typ": _TYPE})
        return IssuedToken(PREFIX + token, expires, expires - now)

    def read(self, token: str, origin: str | None) -> Principal:
        """Return the token's principal. Raises `Unauthorized`, or `Forbidden` for a page of another origin."""
        compact = token.removeprefix(PREFIX)
        if not is_compact(compact):
            raise Unauthorized(_INVALID + "format is wrong")
        try:
            decoded = jwt.decode_complete(
                compact,
                self._key,
                algorithms=[_ALGORITHM],
                issuer=_ISSUER,
                # The times are compared below, with our own clock.
                options={"verify_exp": False, "verify_iat": False, "verify_nbf": False},
            )
            if decoded["header"].get("typ") != _TYPE:
                raise Unauthorized("this is not a client token")
            claims = msgspec.convert(decoded["payload"], _Claims)
        except (jwt.PyJWTError, msgspec.ValidationError, ValueError) as exc:
            # Not chained: the cause may show parts of the token.
            raise _invalid(exc) from None
        if claims.exp <= self._clock():
            raise Unauthorized("the client token has expired")
        models = None if claims.models is None else frozenset(claims.models)
        scopes = Scopes(models=models, max_tokens=claims.max, is_server=False)
        limits = None
        if claims.kid is not None and not claims.kid.startswith(SUBJECT_PREFIX):
            key = self._table.get((claims.kid, claims.gen))
            if key is None or key.principal.tenant != claims.ten:
                raise Unauthorized("the key that made this client token is no longer good")
            # What the key allows may have become less since.
            scopes = scopes.narrowed(key.principal.scopes)
            limits = key.principal.limits
        if claims.origin is not None and claims.origin != origin:
            raise Forbidden("this client token is for pages of another origin")
        return Principal(
            tenant=claims.ten,
            key_id=claims.kid,
            subject=claims.sub,
            scopes=scopes,
            limits=limits,
            generation=claims.gen,
            expires=float(claims.exp),
        )


def _invalid(exc: Exception) -> Unauthorized:
    what = "signature is wrong" if isinstance(exc, jwt.InvalidSignatureError) else "format is wrong"
    return Unauthorized(_INVALID + what)
