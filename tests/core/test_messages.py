"""The messages: decoding, encoding, and splicing of entries. `test_vectors` has a case for each field."""

from __future__ import annotations

import json
import tracemalloc

import pytest

from holdfast.core.entries import EndBody, ErrorBody, Usage, decode_end, encode_end, error_body
from holdfast.core.session import messages as m
from holdfast.core.session.framing import SESSION_FRAMING
from holdfast.errors import AheadOfLog, InvalidMessage, RateLimited, UpstreamStatus


def test_decoded_message_has_its_fields() -> None:
    message = m.decode_client_message('{"type":"attach","stream":"st_1","after":4,"credit":0}')
    assert message == m.Attach("st_1", after=4, credit=0)
    assert m.decode_server_message(b'{"type":"queued","stream":"st_1","position":2}') == m.Queued("st_1", 2)


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        (r"\ud83d", "\ufffd"),
        (r"\uDE00\ud83d", "\ufffd\ufffd"),
        (r"a\\\ud83d\n", "a\\\ufffd\n"),
        (r"\\ud83d\ud83d", "\\ud83d\ufffd"),
        (r"\ud83d\ude00\ude00é", "\U0001f600\ufffdé"),
        (r"\ud83d\u0041", "\ufffdA"),
    ],
)
def test_half_a_character_in_an_entry_costs_no_more_than_itself(sent: str, read: str) -> None:
    text = '{"type":"event","stream":"st_1","seq":3,"data":{"x":"' + sent + '"}}'
    for form in (text, text.encode()):
        message = m.decode_server_message(form)
        assert isinstance(message, m.Event)
        assert json.loads(bytes(message.data)) == {"x": read}
    with pytest.raises(InvalidMessage):
        m.decode_client_message(text)
    with pytest.raises(InvalidMessage):
        m.decode_server_message(text[:-1])


def test_invalid_message_says_what_and_where() -> None:
    with pytest.raises(InvalidMessage, match=r"Expected `int` >= -1 - at `\$.streams\[0\].after`"):
        m.decode_client_message('{"type":"hello","version":1,"streams":[{"stream":"a","after":-2}]}')


@pytest.mark.parametrize(
    "text",
    [
        "\ud800",
        '{"type":"ping","t":"\ud800"}',
        b"\xff",
        b'{"type":"detach","stream":"\xff"}',
        "[" * 100_000,
        '{"type":"ping","x":' + "[" * 100_000,
        '{"type":"create","request_id":"r","request":' + '{"a":' * 100_000,
        '{"type":"ping","t":' + "9" * 5000 + "}",
        '{"type":"ping","t":1e999}',
    ],
)
def test_hostile_text_is_invalid_and_nothing_else(text: str | bytes) -> None:
    with pytest.raises(InvalidMessage):
        m.decode_client_message(text)


@pytest.mark.parametrize(
    ("text", "separator", "item"),
    [
        ('{"type":"ack","streams":{%s}}', ",", '"%06d":1'),
        ('{"type":"hello","version":1,"streams":[%s]}', ",", '{"stream":"%06d"}'),
    ],
)
def test_large_message_that_is_no_create_is_not_decoded(text: str, separator: str, item: str) -> None:
    """A million small members would take seconds, and a hundred times their size."""
    large = text % separator.join(item % number for number in range(200_000))
    tracemalloc.start()
    try:
        with pytest.raises(InvalidMessage, match=r"only a `create` may have more than 262144 bytes"):
            m.decode_client_message(large)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_large_create_is_kept_to_the_letter_and_the_largest_hello_is_no_large_message() -> None:
    request = b'{"a":[' + b",".join([b"{}"] * 200_000) + b"]}"
    create = m.decode_client_message(b'{"request_id":"r","request":%b,"type":"create"}' % request)
    assert isinstance(create, m.Create)
    assert bytes(create.request) == request
    streams = [m.Resume("st_" + "0" * 32, m.MAX_SEQ, 2**53, m.MAX_CREDIT)] * m.MAX_STREAMS_PER_MESSAGE
    assert len(m.encode(m.Hello(1, "x" * 256, "x" * 256, streams))) < m.MAX_SMALL_MESSAGE // 2


def test_numbers_that_can_be_read_can_be_written() -> None:
    ping = m.decode_client_message(b'{"type":"ping","t":%b}' % (b"9" * 4300))
    assert isinstance(ping, m.Ping)
    assert m.encode(m.Pong(t=ping.t)) == b'{"type":"pong","t":%b}' % (b"9" * 4300)


def test_defaults_are_not_sent() -> None:
    assert m.encode(m.Attach("st_1")) == b'{"type":"attach","stream":"st_1"}'
    assert m.encode(m.Hello(1)) == b'{"type":"hello","version":1}'


def test_request_and_data_are_kept_to_the_letter() -> None:
    create = m.decode_client_message('{"type":"create","request_id":"r","request": { "x" : 1.50 } }')
    assert isinstance(create, m.Create)
    assert bytes(create.request) == b'{ "x" : 1.50 }'
    events = m.decode_server_message('{"type":"events","stream":"s","seq":0,"data":[ 1.0 ,"\\u00e9", [ ] ]}')
    assert isinstance(events, m.Events)
    assert list(map(bytes, events.data)) == [b"1.0", b'"\\u00e9"', b"[ ]"]


def test_one_entry_is_an_event() -> None:
    text = SESSION_FRAMING.entries(b"st_1", 1, 7, [b'{"a":1}'])
    assert text == b'{"type":"event","stream":"st_1","seq":7,"data":{"a":1}}'
    assert isinstance(m.decode_server_message(text), m.Event)


def test_several_entries_are_events() -> None:
    text = SESSION_FRAMING.entries(b"st_1", 1, 7, [b'{"a":1}', b"null"])
    assert text == b'{"type":"events","stream":"st_1","seq":7,"data":[{"a":1},null]}'
    assert isinstance(m.decode_server_message(text), m.Events)


def test_end_is_spliced_from_its_entry() -> None:
    body = EndBody("failed", usage=Usage(total_tokens=3), error=ErrorBody("x", "y"), attempts=[])
    text = SESSION_FRAMING.end(b"st_1", 1, 9, encode_end(body), body)
    end = m.decode_server_message(text)
    assert end == m.End("st_1", 9, "failed", usage=Usage(total_tokens=3), error=ErrorBody("x", "y"))
    assert decode_end(encode_end(body)) == body


def test_error_becomes_a_message() -> None:
    message = m.error_message(RateLimited("slow", retry_after=2.5), request_id="r1")
    assert json.loads(m.encode(message)) == {
        "type": "error",
        "code": "rate_limited",
        "message": "slow",
        "retryable": True,
        "retry_after": 2.5,
        "request_id": "r1",
    }
    assert m.error_message(AheadOfLog(param="after"), stream="st_1").param == "after"


def test_error_becomes_part_of_an_end() -> None:
    assert error_body(AheadOfLog("no", param="after")) == ErrorBody("ahead_of_log", "no", param="after")
    body = error_body(UpstreamStatus("busy", status=429, retry_after=1))
    assert body == ErrorBody("upstream_status", "busy", retryable=True, retry_after=1, status=429)


@pytest.mark.parametrize("text", ['{"type":"%s"}' % ("x" * 100_000), '{"type":"ping","t":"%s"}' % ("x" * 257)])
def test_error_quotes_little_of_what_it_refuses(text: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        m.decode_client_message(text)
    assert len(caught.value.message) < 250
    assert "$." in caught.value.message  # it still says where


def test_longest_t_of_a_ping_is_taken() -> None:
    assert m.decode_client_message('{"type":"ping","t":"%s"}' % ("x" * m.MAX_PING)) == m.Ping("x" * m.MAX_PING)
