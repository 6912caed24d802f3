"""What the gateway sends to an OpenAI-compatible provider."""

from __future__ import annotations

import uuid

from holdfast.upstream.providers.openai import Endpoint, parse_request

REQUEST = parse_request(b'{"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": true}')


def test_request_id_of_a_stream_is_a_uuid_without_dashes() -> None:
    """llama-cpp-python's server answers 400 with an empty body to any other `x-request-id`."""
    endpoint = Endpoint(base_url="http://provider/v1", api_key=None, headers={}, stream_usage=True)
    stream_id = "st_" + uuid.uuid4().hex
    headers = dict(endpoint.completion(REQUEST, "m", stream_id=stream_id).headers)
    assert uuid.UUID(headers[b"x-request-id"].decode()).hex == stream_id.removeprefix("st_")
