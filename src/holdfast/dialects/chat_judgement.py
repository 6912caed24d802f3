"""What an error of a chat completions API means: whether the request is refused, or the gateway itself."""

from __future__ import annotations

from typing import Final

from holdfast.errors import UpstreamError, UpstreamRefused, is_passing

#: Codes and types by which providers say that nothing more can be had for the account.
_QUOTA: Final = frozenset(
    ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "insufficient_balance")
)
#: A refusal with 403 that is about what was asked, and no sign of a bad credential.
_CONTENT: Final = frozenset(("content_filter", "content_policy_violation", "moderation", "moderation_blocked"))
_CONTENT_WORDS: Final = ("flagged", "moderation", "content policy")
#: A refusal with 403 that is about one model: others may be asked for.
_ONE_MODEL: Final = frozenset(("model_not_found", "model_not_available"))
#: The status that a code or type stands for, where an error comes without one: within an answer of 200.
_MEANS: Final = {
    "invalid_api_key": 401,
    "authentication_error": 401,
    "permission_error": 403,
    "permission_denied": 403,
    "context_length_exceeded": 400,
    "invalid_request_error": 400,
    "content_filter": 400,
    "model_not_found": 404,
    "not_found_error": 404,
    "rate_limit_exceeded": 429,
    "rate_limit_error": 429,
    "overloaded_error": 529,
}


def judged(error: UpstreamError) -> UpstreamError:
    """Give an error the status that it means, or make the refusal of the gateway itself that it is."""
    told = error.told
    words = set() if told is None else {told.code.lower(), told.type.lower()}
    if error.status is None and told is not None:
        status = next((status for word, status in _MEANS.items() if word in words), None)
        if status is not None:
            error.status = status
            error.retryable = is_passing(status)
    if words & _QUOTA:
        return _refused(error, "the gateway's quota at the provider is used up")
    if error.status in (401, 407):  # 407 is of a proxy on the way
        return _refused(error, "the provider refused the gateway's own credential")
    if error.status == 403:
        if _is_of_the_content(error, words):
            error.status = 400  # an HTTP answer with 403 would be about the caller's credential
            return error
        if told is None:
            # Most likely a firewall before the API, which dislikes this one prompt: no caller shall be able to
            # have the provider put aside for all.
            return _refused(error, "the provider refused the request without saying why", is_certain=False)
        return _refused(
            error, "the provider refused the gateway's own credential", is_certain=not words & _ONE_MODEL
        )
    if error.status == 402:
        # It may be that this request alone costs more than is left.
        return _refused(error, "the gateway's quota at the provider does not suffice", is_certain=False)
    return error


def _is_of_the_content(error: UpstreamError, words: set[str]) -> bool:
    text = error.message.lower()
    return bool(words & _CONTENT) or any(word in text for word in _CONTENT_WORDS)


def _refused(error: UpstreamError, message: str, *, is_certain: bool = True) -> UpstreamRefused:
    said = [str(error.status)] if error.status is not None else []
    said += filter(None, (error.provider_code, error.provider_type))
    return UpstreamRefused(message, reason=f"{message} ({' '.join(said)})", is_certain=is_certain)
