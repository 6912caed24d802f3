"""What is left of a caller's rates, as OpenAI's API says it."""

from __future__ import annotations

import pytest

from holdfast.dialects.ask import RateLeft
from holdfast.dialects.chat import CHAT


def test_each_rate_has_its_limit_what_remains_and_its_reset() -> None:
    assert CHAT.rate_headers([RateLeft("tokens", 900, 12, 1.5)]) == [
        (b"x-ratelimit-limit-tokens", b"900"),
        (b"x-ratelimit-remaining-tokens", b"12"),
        (b"x-ratelimit-reset-tokens", b"1.5s"),
    ]
    assert CHAT.rate_headers([]) == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, b"0s"), (0.0001, b"1ms"), (0.12, b"120ms"), (1.0, b"1s"), (59.999, b"59.999s"), (360.0, b"6m0s")],
)
def test_reset_is_written_as_openai_does(seconds: float, text: bytes) -> None:
    assert CHAT.rate_headers([RateLeft("requests", 2, 1, seconds)])[-1] == (b"x-ratelimit-reset-requests", text)
