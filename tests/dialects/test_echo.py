"""A second dialect from outside the package goes the whole way, and clients of it are answered by chat as well."""

from __future__ import annotations

import json
from typing import Any

import pytest

from holdfast.config import Config, parse
from holdfast.core.entries import START, EndBody, ErrorBody, Usage
from holdfast.core.http.request import HttpRequest
from holdfast.core.log import Framing, Log
from holdfast.core.session.framing import SESSION_FRAMING
from holdfast.dialects.ask import Ask
from holdfast.dialects.dialect import AnswerReader, Dialect
from holdfast.dialects.endpoint import Endpoint
from holdfast.errors import (
    ConfigError,
    Forbidden,
    InvalidRequest,
    UpstreamError,
    UpstreamMalformed,
    UpstreamStatus,
    UpstreamTruncated,
)
from tests.dialects.echo import BOTH, ECHO

SAY: dict[str, Any] = {"say": ["hold", "fast"], "to": "parrot", "at_most": 2}
WORDS = b'{"word":"hold"}\n{"word":"fast"}\n'
TOTAL = b'{"total":{"heard":2,"said":2,"why":"all said"}}\n'


def ask(**fields: Any) -> Ask:
    return ECHO.parse(json.dumps({**SAY, **fields}))


def endpoint(api: str = "echo", **settings: Any) -> Endpoint:
    return Endpoint(base_url="http://provider/v2/", api=api, dialects=BOTH, **settings)


def exchange(request: Ask, api: str = "echo", **settings: Any) -> tuple[HttpRequest, AnswerReader]:
    return endpoint(api, **settings).exchange(request, "parrot-7b", stream_id="st_1", max_entry=1000)


def answered(reader: AnswerReader, body: bytes) -> Log:
    """Take an answer into a log, a byte at a time, and seal it by what the reader says."""
    log = Log("st_1", max_bytes=10_000)
    for byte in body:
        log.append(reader.receive([bytes([byte])]))
    log.append(reader.end())
    error = reader.error
    if error is None:
        log.seal(EndBody("completed", reader.finish_reason, reader.usage))
    else:
        log.seal(EndBody("incomplete", error=ErrorBody(error.code, error.message)))
    return log


def written(log: Log, framing: Framing) -> bytes:
    cursor, out = log.cursor(START), b""
    while (part := cursor.read(framing, 1000)) is not None:
        out += part
    return out


# -- the whole way -------------------------------------------------------------------------------------


def test_dialect_is_one() -> None:
    dialect: Dialect = ECHO
    assert BOTH.get(dialect.name) is dialect


def test_request_goes_to_the_provider_in_the_form_of_its_api() -> None:
    request, _ = exchange(ask(), api_key="k", headers={"X-Team": "a"}, options={"loud": True})
    assert (request.method, request.path) == ("PUT", "/v2/echo/st_1")
    assert request.headers[2:] == [(b"x-echo-key", b"k"), (b"x-team", b"a")]
    assert json.loads(request.body) == {**SAY, "to": "PARROT-7B"}
    assert json.loads(exchange(ask())[0].body)["to"] == "parrot-7b"


def test_answer_becomes_named_events_with_an_end_of_its_own() -> None:
    log = answered(exchange(ask())[1], WORDS + TOTAL)
    assert written(log, ECHO.framing) == (
        b'event: word\nid: 1.0\ndata: [0,"hold"]\n\n'
        b'event: word\nid: 1.1\ndata: [1,"fast"]\n\n'
        b'event: said\ndata: {"why":"all said"}\n\n'
    )
    assert log.end is not None
    assert log.end.usage == Usage(2, 2)


def test_answer_becomes_messages_of_a_session_without_a_change() -> None:
    log = answered(exchange(ask())[1], WORDS + TOTAL)
    cursor = log.cursor()
    events, end = (json.loads(cursor.read(SESSION_FRAMING, 1000) or b"") for _ in range(2))
    assert (events["type"], events["seq"], events["data"]) == ("events", 0, [[0, "hold"], [1, "fast"]])
    assert (end["type"], end["status"], end["finish_reason"]) == ("end", "completed", "all said")


def test_answer_that_is_not_streamed_is_one_entry() -> None:
    log = answered(exchange(ask(live=False))[1], WORDS + TOTAL)
    assert log.cursor().read_payloads(1000)[0] == b'{"said":["hold","fast"]}'


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (WORDS + b'{"oops":"hoarse"}\n' + WORDS, UpstreamError("hoarse")),
        (WORDS + b"{}\nword\n", UpstreamMalformed()),
        (WORDS + b"x" * 1001, UpstreamMalformed()),
        (WORDS + TOTAL[:-1], UpstreamTruncated()),
    ],
)
def test_answer_that_fails_keeps_its_words_and_ends_with_oops(body: bytes, error: UpstreamError) -> None:
    _, reader = exchange(ask())
    log = answered(reader, body)
    assert type(reader.error) is type(error)
    head, _, end = written(log, ECHO.framing).rpartition(b"event: ")
    assert head.count(b"event: word") == 2
    assert end == b'oops\ndata: {"why":"%b"}\n\n' % error.code.encode()


def test_end_without_an_error_names_its_status() -> None:
    assert b'{"why":"cancelled"}' in ECHO.framing.end(b"st_1", 1, 0, b"", EndBody("cancelled"))


def test_form_without_a_word_for_a_readers_end_has_to_be_cut() -> None:
    assert ECHO.framing.failure(Forbidden()) is None


@pytest.mark.parametrize(
    ("at_most", "bound", "unclear"),
    [(None, None, None), (3, 3, None), (0, None, "at_most"), (-1, None, "at_most")],
)
def test_bounds_are_read_from_the_fields_of_this_api(
    at_most: int | None, bound: int | None, unclear: str | None
) -> None:
    bounds = ask(at_most=at_most).bounds
    assert (bounds.max_output, bounds.output_field, bounds.unclear) == (bound, "at_most", unclear)
    assert (bounds.size, bounds.choices, bounds.choices_field) == (8, 1, "")


def test_request_in_another_api_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="nothing to say"):
        ECHO.parse('{"model":"m","messages":[{}]}')


def test_surface_may_override_whether_an_answer_is_streamed() -> None:
    assert not ECHO.parse(json.dumps(SAY).encode(), stream=False).stream
    assert ECHO.prompt_of(ask()) == ["hold", "fast"]


def test_errors_have_the_form_of_this_api() -> None:
    assert ECHO.error_body(Forbidden("no"), 403) == b'{"oops":"forbidden","why":"no"}'
    error = endpoint().status_error(418, b"a teapot", retry_after=1.0)
    assert isinstance(error, UpstreamStatus)
    assert (error.message, error.status, error.retry_after) == ("a teapot", 418, 1.0)
    assert endpoint().request_id([(b"x-request-id", b"a"), (b"x-echo-trace", b"b")]) == "b"


# -- configuration -------------------------------------------------------------------------------------

CONFIG = """
[providers.cave]
base_url = "http://127.0.0.1:1/v2"
api = "{api}"
options = {{ loud = {loud} }}
[models.parrot]
route = ["cave/parrot-7b"]
"""


def read(**values: str) -> Config:
    return parse(CONFIG.format(**values), dialects=BOTH)


def test_configuration_takes_the_api_with_its_options() -> None:
    provider = read(api="echo", loud="true").providers["cave"]
    assert (provider.api, provider.options) == ("echo", {"loud": True})
    with pytest.raises(ConfigError, match=r"providers.cave.api: expected one of chat, got 'echo'"):
        parse(CONFIG.format(api="echo", loud="true"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"api": "echo", "loud": '"very"'}, "providers.cave.options.loud: expected `bool`, got `str`"),
        ({"api": "chat", "loud": "true"}, "providers.cave.options.loud: there is no such key"),
        ({"api": "ecco", "loud": "true"}, "providers.cave.api: expected one of chat, echo, got 'ecco'"),
    ],
)
def test_wrong_api_and_wrong_options_are_named(values: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(**values)


# -- translation ---------------------------------------------------------------------------------------


def test_only_what_has_a_translation_can_be_answered() -> None:
    assert endpoint("chat").accepts("echo")
    assert endpoint("chat").accepts("chat")
    assert endpoint("echo").accepts("echo")
    assert not endpoint("echo").accepts("chat")


def test_client_of_one_api_is_answered_by_a_provider_of_another() -> None:
    request, reader = exchange(ask(), "chat", api_key="k")
    assert request.path == "/v2/chat/completions"
    assert (b"authorization", b"Bearer k") in request.headers
    assert json.loads(request.body) == {
        "model": "parrot-7b",
        "messages": [{"role": "user", "content": "hold fast"}],
        "max_tokens": 2,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    reader.begin(b"text/event-stream")
    log = answered(
        reader,
        b'data: {"choices":[{"delta":{"role":"assistant"}}]}\n\n'
        b'data: {"choices":[{"delta":{"content":"hold"}}]}\n\n'
        b'data: {"choices":[{"delta":{"content":"fast"}}]}\n\n'
        b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'
        b'data: {"choices":[],"usage":{"prompt_tokens":2,"completion_tokens":2}}\n\n'
        b"data: [DONE]\n\n",
    )
    assert log.cursor().read_payloads(1000)[:-1] == [b'[0,"hold"]', b'[1,"fast"]']
    assert log.end is not None
    assert (log.end.finish_reason, log.end.usage) == ("stop", Usage(2, 2))
    assert reader.units == 2


def test_whole_answer_is_translated_too() -> None:
    request, reader = exchange(ask(live=False), "chat")
    assert not json.loads(request.body)["stream"]
    log = answered(reader, b'{"choices":[{"message":{"content":"hold fast"},"finish_reason":"stop"}]}')
    assert log.cursor().read_payloads(1000)[0] == b'{"said":["hold fast"]}'


def test_error_of_the_other_api_is_an_error_in_this_one() -> None:
    _, reader = exchange(ask(), "chat")
    assert reader.receive([b'data: {"error":"hoarse"}\n\n']) == []
    assert reader.error is not None
    assert reader.error.message == "hoarse"


def test_field_without_a_form_in_the_other_api_is_refused_by_name() -> None:
    exchange(ask(backwards=True))
    with pytest.raises(InvalidRequest) as caught:
        exchange(ask(backwards=True), "chat")
    assert caught.value.param == "backwards"
