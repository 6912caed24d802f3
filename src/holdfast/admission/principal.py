"""The caller of a request, and what it may do."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from holdfast.config.limits import LimitConfig
from holdfast.core.entries import Owner
from holdfast.dialects.ask import Bounds
from holdfast.errors import Forbidden, Unauthorized

#: Begins the key id of a caller who has no key but a subject, and the tenant where the subject is one of its own.
SUBJECT_PREFIX = "sub:"


class Scopes(msgspec.Struct, frozen=True):
    """What a credential allows. None is: without this bound."""

    models: frozenset[str] | None = None
    #: Largest number of tokens that one request may ask for, over all its choices.
    max_tokens: int | None = None
    #: Whether it is a server's: it may make client tokens and see the operations' pages.
    is_server: bool = True
    #: Whether it may administer: read everybody's streams, and use the admin API.
    is_admin: bool = False

    def allows_model(self, model: str) -> bool:
        return self.models is None or model in self.models

    def narrowed(self, other: Scopes) -> Scopes:
        """Return these scopes without the models and tokens that the others do not allow."""
        named = [models for models in (self.models, other.models) if models is not None]
        models = frozenset.intersection(*named) if named else None
        bounds = [bound for bound in (self.max_tokens, other.max_tokens) if bound is not None]
        return msgspec.structs.replace(self, models=models, max_tokens=min(bounds, default=None))

    def filter_models(self, models: Iterable[str]) -> list[str]:
        return [model for model in models if self.allows_model(model)]


class Principal(msgspec.Struct, frozen=True):
    """The caller of one request. Streams belong to the tenant, and within it to the subject if there is one.

    `key_id` is the API key that the credential is, or was made with, and of an issuer's token `sub:` and the
    subject. `generation` says which of the key's secrets.
    `expires` (Unix seconds) is set where the credential is a token.
    """

    tenant: str
    key_id: str | None = None
    subject: str | None = None
    scopes: Scopes = Scopes()
    #: The key's own limits, where it does not have them from `[limits.keys]`.
    limits: LimitConfig | None = None
    generation: int = 0
    expires: float | None = None

    @property
    def owner(self) -> Owner:
        """Whose request ids and sessions these are: two subjects of a tenant cannot meet each other's."""
        return Owner(self.tenant, self.subject, self.scopes.is_admin)

    def authorize(self, model: str, bounds: Bounds, now: float) -> None:
        """Check one generation against the scopes. Raises `Forbidden`, or `Unauthorized` for an expired token.

        A session may outlive the token that it was opened with, so the expiry is checked here as well.
        """
        self.check_expiry(now)
        scopes = self.scopes
        if not scopes.allows_model(model):
            raise Forbidden(f"this credential does not allow the model {model[:100]!r}", param="model")
        if scopes.max_tokens is not None:
            _check_tokens(scopes.max_tokens, bounds)

    def check_expiry(self, now: float) -> None:
        if self.expires is not None and self.expires <= now:
            raise Unauthorized("the token has expired; connect again with a new one")

    def require_server(self) -> None:
        """Raises `Forbidden` for credentials of browsers and the like."""
        if not self.scopes.is_server:
            raise Forbidden("this needs a server's credential, not a client token")

    def require_admin(self) -> None:
        """Raises `Unauthorized` for any other credential than the admin key."""
        if not self.scopes.is_admin:
            raise Unauthorized("this needs the admin key, as `Authorization: Bearer ...`")


def _check_tokens(limit: int, bounds: Bounds) -> None:
    """A field that the request's API does not obey is no bound: the dialect has read those that count."""
    output, choices = bounds.output_field, bounds.choices_field
    if bounds.unclear is not None:
        raise Forbidden(
            f"`{bounds.unclear}` must be a positive integer with this credential", param=bounds.unclear
        )
    if bounds.max_output is None:
        raise Forbidden(f"this credential needs `{output}` in the request, at most {limit}", param=output)
    if bounds.max_output * bounds.choices > limit:
        what = f"`{output}`" if bounds.choices == 1 else f"`{output}` times `{choices}`"
        raise Forbidden(f"this credential allows at most {limit} for {what}", param=output)


def is_name(text: str) -> bool:
    """Whether a tenant's or subject's name can be used: 1 to 256 printable characters."""
    return 1 <= len(text) <= 256 and text.isprintable()
