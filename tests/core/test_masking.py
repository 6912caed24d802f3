from __future__ import annotations

import base64
import json
import re
from urllib.parse import quote, quote_plus

import pytest

from holdfast.core.masking import Masking
from holdfast.errors import ProviderError, UpstreamError, UpstreamRefused, UpstreamReset, UpstreamStatus

KEY = 'sk-proj-Ab/9"+ü end-0123456789abcdef'
PLAIN = "sk-proj-0123456789abcdefghijklmnop"

FORMS = {
    "itself": KEY,
    "JSON": json.dumps(KEY)[1:-1],
    "JSON with letters as they are": json.dumps(KEY, ensure_ascii=False)[1:-1],
    "JSON with escaped slashes": json.dumps(KEY)[1:-1].replace("/", "\\/"),
    "URL": quote(KEY, safe=""),
    "path of a URL": quote(KEY),
    "form": quote_plus(KEY),
    "URL in lower case": re.sub("%..", lambda found: found[0].lower(), quote(KEY, safe="")),
    "URL of both cases": quote(KEY, safe="").replace("%2F", "%2f"),
    "base64": base64.b64encode(KEY.encode()).decode(),
    "Basic, as the password": base64.b64encode(b":" + KEY.encode()).decode().rstrip("="),
    "Basic, as the user": base64.b64encode(KEY.encode() + b":").decode().rstrip("="),
    "the value of its header": base64.b64encode(b"Bearer " + KEY.encode()).decode().rstrip("="),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_secret_is_masked_in_every_form_that_it_travels_in(form: str) -> None:
    masked = Masking([KEY]).mask(f"Incorrect API key provided: {form}. And {form}!")
    assert form[:12] not in masked
    assert form[-8:].rstrip("=") not in masked
    assert masked.startswith("Incorrect API key provided: ***")


@pytest.mark.parametrize("length", [12, 20, len(PLAIN) - 1])
def test_secret_that_a_bound_has_cut_is_masked_wherever_the_cut_is(length: int) -> None:
    masking = Masking([PLAIN])
    assert masking.mask(f"wrong key {PLAIN[:length]}") == "wrong key ***"
    assert masking.mask(f"content type {PLAIN[:length]!r}, expected json") == "content type '***', expected json"


def test_text_without_a_secret_stays_as_it_is() -> None:
    text = "the model sk-other is not sk-proj- of yours"
    assert Masking([PLAIN]).mask(text) == text
    assert Masking().mask(text) == text


def test_short_secret_is_not_masked_since_any_text_has_it() -> None:
    assert Masking(["a", "1234567"]).mask("a banana for 1234567") == "a banana for 1234567"


def test_longest_of_two_secrets_with_one_beginning_is_masked_whole() -> None:
    masking = Masking([PLAIN, PLAIN + "-and-more"])
    assert masking.mask(f"[{PLAIN}-and-more] [{PLAIN}]") == "[***] [***]"


def test_secret_that_was_replaced_is_still_masked() -> None:
    masking = Masking([PLAIN])
    masking.add(["another-secret-altogether"])
    assert masking.mask(f"{PLAIN} another-secret-altogether") == "*** ***"


def test_oldest_secrets_are_forgotten_beyond_the_bound() -> None:
    masking = Masking([PLAIN])
    masking.add(f"{number:04d}-of-many-secrets" for number in range(1000))
    assert masking.mask(PLAIN) == PLAIN
    assert masking.mask("0000-of-many-secrets") == "***"


def test_all_that_an_error_says_is_masked() -> None:
    told = ProviderError(f"key {PLAIN}", f"c {PLAIN}", f"t {PLAIN}", f"p {PLAIN}")
    error = UpstreamStatus(told.message, status=400, body=PLAIN.encode(), told=told)
    error.provider_request_id = f"r {PLAIN}"
    error.detail = f"d {PLAIN}"
    Masking([PLAIN]).mask_error(error)
    assert (str(error), error.message, error.param) == ("key ***", "key ***", "p ***")
    assert (error.provider_code, error.provider_type) == ("c ***", "t ***")
    assert (error.provider_request_id, error.detail) == ("r ***", "d ***")
    assert PLAIN not in repr(vars(error))


def test_reason_of_a_refusal_is_masked() -> None:
    error = UpstreamRefused("no", reason=f"401 {PLAIN}")
    Masking([PLAIN]).mask_error(error)
    assert error.reason == "401 ***"


@pytest.mark.parametrize("error", [UpstreamError("no"), UpstreamReset("cut")])
def test_error_without_a_secret_stays_as_it_is(error: UpstreamError) -> None:
    Masking([PLAIN]).mask_error(error)
    assert (error.provider_code, error.param, error.detail) == (None, None, None)
    assert error.message in ("no", "cut")
