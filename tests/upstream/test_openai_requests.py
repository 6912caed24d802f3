"""What the gateway sends to an OpenAI-compatible provider, and what it takes for an answer."""

from __future__ import annotations

import uuid

from holdfast.dialects.chat import CHAT, StreamReader
from holdfast.dialects.endpoint import Endpoint
from holdfast.errors import UpstreamTruncated

REQUEST = CHAT.parse(b'{"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": true}')


def test_request_id_of_a_stream_is_a_uuid_without_dashes() -> None:
    """llama-cpp-python's server answers 400 with an empty body to any other `x-request-id`."""
    endpoint = Endpoint(base_url="http://provider/v1")
    stream_id = "st_" + uuid.uuid4().hex
    headers = dict(endpoint.exchange(REQUEST, "m", stream_id=stream_id, max_entry=1000)[0].headers)
    assert uuid.UUID(headers[b"x-request-id"].decode()).hex == stream_id.removeprefix("st_")


ANSWER = b'data: {"choices": [{"delta": {"content": "Hold"}, "finish_reason": null}]}\n\n'
DONE = b"data: [DONE]\n\n"


def test_answer_without_a_finish_reason_is_truncated() -> None:
    """llama-cpp-python's server ends a running answer so when a new request interrupts it."""
    reader = StreamReader(max_event=10_000, hide_usage=False)
    assert len(reader.receive([ANSWER + DONE])) == 1
    assert not reader.is_finished
    assert isinstance(reader.error, UpstreamTruncated)


def test_answer_without_a_finish_reason_is_taken_where_the_provider_never_sends_one() -> None:
    reader = StreamReader(max_event=10_000, hide_usage=False, requires_finish_reason=False)
    reader.receive([ANSWER + DONE])
    assert reader.is_finished


def test_empty_answer_needs_no_finish_reason() -> None:
    reader = StreamReader(max_event=10_000, hide_usage=False)
    assert reader.receive([DONE]) == []
    assert reader.is_finished
