"""Masks secrets in texts that were written by others: a provider may quote what it was sent.

It decides only. What the secrets are is said by the configuration (`holdfast.config.secrets`).
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import quote, quote_plus

from holdfast.errors import UpstreamError, UpstreamRefused, UpstreamStatus

MASK: Final = "***"
#: A shorter secret is not masked: it would be found in any text.
MIN_SECRET: Final = 8
#: At most so many characters of the beginning of a secret are taken for it: a bound may have cut the rest off.
_BEGINNING: Final = 12
#: Most secrets that are remembered. Those that a reload has replaced stay, and the oldest go first.
_MAX_SECRETS: Final = 1000
#: Characters that secrets and their encodings are made of.
_REST: Final = re.compile(r"[\w\-+/=.~%&:\\]+")


class Masking:
    """Replaces secrets by `***`: as they are, within JSON and URLs, and as base64.

    Every word that begins like a secret is masked, so a text may be cut before. A secret that is replaced while
    the process runs is still masked: a provider may know it yet.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._secrets: dict[str, None] = {}
        # The forms of secrets by their first characters.
        self._forms: dict[str, list[str]] = {}
        self.add(secrets)

    def add(self, secrets: Iterable[str]) -> None:
        """Mask these as well from now on."""
        for secret in secrets:
            if len(secret) >= MIN_SECRET:
                self._secrets.pop(secret, None)
                self._secrets[secret] = None
        while len(self._secrets) > _MAX_SECRETS:
            del self._secrets[next(iter(self._secrets))]
        forms: dict[str, set[str]] = {}
        for secret in self._secrets:
            for form in _forms(secret):
                beginning = form[: min(max(MIN_SECRET, len(form) // 2), _BEGINNING)]
                forms.setdefault(beginning, set()).add(form)
        self._forms = {beginning: sorted(found) for beginning, found in forms.items()}

    def mask(self, text: str) -> str:
        """Return the text without secrets."""
        for beginning, forms in self._forms.items():
            if beginning in text:
                text = _masked(text, beginning, forms)
        return text

    def mask_error(self, error: UpstreamError) -> None:
        """Take secrets out of all that an error says."""
        error.message = self.mask(error.message)
        error.args = (error.message,)
        error.param = self._optional(error.param)
        error.provider_code = self._optional(error.provider_code)
        error.provider_type = self._optional(error.provider_type)
        error.provider_request_id = self._optional(error.provider_request_id)
        error.detail = self._optional(error.detail)
        # Both were read, and have the same words.
        error.told = None
        if isinstance(error, UpstreamStatus):
            error.body = b""
        elif isinstance(error, UpstreamRefused):
            error.reason = self.mask(error.reason)

    def _optional(self, text: str | None) -> str | None:
        return None if text is None else self.mask(text)


def _masked(text: str, beginning: str, forms: list[str]) -> str:
    parts = []
    start = 0
    while (found := text.find(beginning, start)) >= 0:
        parts += [text[start:found], MASK]
        start = found + max(_common(text, found, form, len(beginning)) for form in forms)
        # What follows may be more of it, in a form that is not known.
        rest = _REST.match(text, start)
        start = start if rest is None else rest.end()
    parts.append(text[start:])
    return "".join(parts)


def _common(text: str, at: int, form: str, count: int) -> int:
    """How many characters of the text from `at` on are those of the form: the first `count` are."""
    end = min(len(form), len(text) - at)
    while count < end and text[at + count] == form[count]:
        count += 1
    return count


def _forms(secret: str) -> set[str]:
    raw = secret.encode(errors="replace")
    forms = {secret}
    for is_ascii in (True, False):
        within = json.dumps(secret, ensure_ascii=is_ascii)[1:-1]
        forms |= {within, within.replace("/", "\\/")}
    for url in (quote(raw, safe=""), quote(raw), quote_plus(raw)):
        forms |= {url, _lower_hex(url)}
    # As the password of Basic authentication without a user, and as its user (see `config.secrets` for both), and
    # as the whole value of the header that it is sent in.
    for text in (raw, b":" + raw, raw + b":", b"Bearer " + raw):
        forms.add(base64.b64encode(text).decode().rstrip("="))
        forms.add(base64.urlsafe_b64encode(text).decode().rstrip("="))
    return forms


def _lower_hex(url: str) -> str:
    return re.sub("%[0-9A-F]{2}", lambda found: found[0].lower(), url)
