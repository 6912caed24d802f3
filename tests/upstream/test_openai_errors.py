from __future__ import annotations

import pytest

from holdfast.dialects.chat import CompletionReader, StreamReader
from holdfast.errors import UpstreamError


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (b'{"message":"Out of tokens.","type":"server_error","code":null}', "Out of tokens."),
        (b'"Out of tokens."', "Out of tokens."),
        (b"{}", "the provider reported an error"),
        (b"17", "the provider reported an error"),
    ],
)
def test_error_within_an_answer_is_the_providers_own(error: bytes, message: str) -> None:
    stream = StreamReader(max_event=10_000, hide_usage=False)
    assert stream.receive([b'data: {"error":' + error + b"}\n\n"]) == []
    whole = CompletionReader(max_size=10_000)
    whole.receive([b'{"error":' + error + b"}"])
    assert whole.end() == []
    for found in (stream.error, whole.error):
        assert type(found) is UpstreamError
        assert found.message == message


def test_null_in_the_place_of_an_error_is_none() -> None:
    stream = StreamReader(max_event=10_000, hide_usage=False)
    assert stream.receive([b'data: {"choices":[],"error":null}\n\n']) == [b'{"choices":[],"error":null}']
    assert stream.error is None
