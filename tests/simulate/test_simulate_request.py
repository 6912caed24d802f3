from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_tools.simulate import faults
from holdfast_tools.simulate.request import ChatRequest, RequestError, Simulation, decode_request, error_type

VALID = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
names = st.sampled_from(["model", "messages", "stream", "stream_options", "max_tokens", "user", "sim"])
sim_names = st.sampled_from(["tokens", "interval_ms", "ttft_ms", "seed", "burst", "timestamps", "fault"])


def accepted_or_refused(body: bytes) -> None:
    decoded: ChatRequest | RequestError
    try:
        decoded = decode_request(body)
    except RequestError as exc:
        decoded = exc
    assert isinstance(decoded, ChatRequest) or (decoded.status == 400 and decoded.message)


@given(st.binary(max_size=200))
def test_any_bytes_are_accepted_or_refused(body: bytes) -> None:
    accepted_or_refused(body)


@given(st.dictionaries(names, json_values))
def test_any_fields_are_accepted_or_refused(fields: dict[str, Any]) -> None:
    accepted_or_refused(json.dumps(VALID | fields).encode())


@given(st.dictionaries(sim_names, json_values))
def test_any_sim_fields_are_accepted_or_refused(fields: dict[str, Any]) -> None:
    accepted_or_refused(json.dumps(VALID | {"sim": fields}).encode())


def test_deep_nesting_is_refused() -> None:
    accepted_or_refused(b'{"x":' * 200_000)


def test_unknown_fields_of_the_api_are_ignored() -> None:
    request = decode_request(json.dumps(VALID | {"temperature": 0.5, "tools": [], "sim": None}).encode())
    assert (request.model, request.sim, request.include_usage, request.token_limit) == ("m", None, False, None)


def test_content_in_parts_is_read() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "image_url"}, {"type": "text", "text": "two"}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": None}]
    request = decode_request(json.dumps(VALID | {"messages": messages}).encode())
    assert request.last_user_text() == "one two"


def test_last_message_speaks_where_no_user_did() -> None:
    messages = [{"role": "system", "content": "a"}, {"role": "developer", "content": "b"}]
    assert decode_request(json.dumps(VALID | {"messages": messages}).encode()).last_user_text() == "b"


def test_newer_name_of_the_token_limit_wins() -> None:
    request = decode_request(json.dumps(VALID | {"max_tokens": 5, "max_completion_tokens": 3}).encode())
    assert request.token_limit == 3


@pytest.mark.parametrize("fault", faults.AnyRequestFault.__args__)
def test_every_fault_can_be_asked_for_by_its_kind(fault: Any) -> None:
    body = json.dumps(VALID | {"sim": {"fault": {"kind": fault.__struct_config__.tag}}}).encode()
    request = decode_request(body)
    assert request.sim is not None
    assert type(request.sim.fault) is fault


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (429, "rate_limit_error"),
        (500, "server_error"),
        (503, "server_error"),
    ],
)
def test_error_type_follows_the_status(status: int, expected: str) -> None:
    assert error_type(status) == expected


def test_reference_describes_every_field_of_every_fault() -> None:
    reference = (Path(__file__).parents[2] / "docs/reference/simulate.md").read_text()
    rows = {line.split("|")[1].strip(" `"): line for line in reference.splitlines() if line.startswith("| `")}
    for fault in (*faults.AnyRequestFault.__args__, *faults.AnyConnectionFault.__args__):
        config = fault.__struct_config__
        row = "".join(line for line in reference.splitlines() if line.startswith(f"| `{config.tag}` |"))
        for field in set(fault.__struct_fields__) - {"times", "after_streams", "after_bytes"}:
            assert f"`{field}`" in row, (config.tag, field)
    for field in Simulation.__struct_fields__:
        assert field in rows


def prompt(text: str) -> bytes:
    return json.dumps(VALID | {"messages": [{"role": "user", "content": text}]}).encode()


def test_prompt_that_begins_with_sim_steers_like_the_field() -> None:
    assert decode_request(prompt('sim:{"tokens": 3, "seed": 9}')).sim == Simulation(tokens=3, seed=9)
    assert decode_request(prompt('about sim:{"tokens": 3}')).sim is None


def test_field_goes_before_the_prompt() -> None:
    body = json.loads(prompt('sim:{"tokens": 3}')) | {"sim": {"tokens": 5}}
    assert decode_request(json.dumps(body).encode()).sim == Simulation(tokens=5)


@pytest.mark.parametrize(
    ("text", "named"), [("sim:{", "truncated"), ('sim:{"token": 3}', "unknown field `token`")]
)
def test_bad_steering_in_the_prompt_is_refused(text: str, named: str) -> None:
    with pytest.raises(RequestError, match=named) as caught:
        decode_request(prompt(text))
    assert (caught.value.status, caught.value.param) == (400, "messages")
