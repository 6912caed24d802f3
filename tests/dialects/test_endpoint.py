"""How a configured provider is asked, and which dialects can be answered by which."""

from __future__ import annotations

import msgspec
import pytest

from holdfast.dialects.chat import CHAT
from holdfast.dialects.chat_answers import CompletionReader
from holdfast.dialects.endpoint import Endpoint
from holdfast.dialects.table import DIALECTS, Dialects
from holdfast.errors import ConfigError, UpstreamRefused
from tests.dialects.echo import BOTH, EchoByChat

ASK = CHAT.parse(b'{"model": "m", "messages": [{"role": "user", "content": "hi"}]}')
AGENT = (b"user-agent", b"holdfast")


@pytest.mark.parametrize(
    ("base_url", "path"),
    [
        ("http://provider/v1", "/v1/chat/completions"),
        ("http://provider/v1/", "/v1/chat/completions"),
        ("https://provider:8443/a/b/v1", "/a/b/v1/chat/completions"),
        ("http://provider", "/chat/completions"),
        ("http://provider/", "/chat/completions"),
    ],
)
def test_path_follows_that_of_the_base_url(base_url: str, path: str) -> None:
    request, reader = Endpoint(base_url=base_url).exchange(ASK, "x", stream_id="st_1", max_entry=100)
    assert (request.method, request.path) == ("POST", path)
    assert isinstance(reader, CompletionReader)


def test_requests_carry_credentials_and_the_configured_headers_before_those_of_the_api() -> None:
    endpoint = Endpoint(base_url="http://p/v1", api_key="sk-1", headers={"X-Org": "o", "x-empty": ""})
    ours = [AGENT, (b"authorization", b"Bearer sk-1"), (b"x-org", b"o"), (b"x-empty", b"")]
    request, _ = endpoint.exchange(ASK, "x", stream_id="st_1", max_entry=100)
    assert request.headers[:4] == ours
    assert [name for name, _ in request.headers[4:]] == [b"content-type", b"accept", b"x-request-id"]
    probe = endpoint.probe("/health?deep=1")
    assert (probe.method, probe.path, probe.body) == ("GET", "/health?deep=1", b"")
    assert probe.headers == [*ours, (b"accept", b"*/*")]


@pytest.mark.parametrize("key", [None, ""])
def test_provider_without_a_key_is_sent_no_credentials(key: str | None) -> None:
    assert Endpoint(base_url="http://p/v1", api_key=key).probe("/").headers == [AGENT, (b"accept", b"*/*")]


def test_options_reach_the_request_and_are_checked_at_once() -> None:
    streamed = CHAT.parse(b'{"model": "m", "messages": [{}], "stream": true}')
    quiet = Endpoint(base_url="http://p/v1", options={"stream_usage": False})
    request, _ = quiet.exchange(streamed, "x", stream_id="st_1", max_entry=100)
    assert b"stream_options" not in request.body
    with pytest.raises(msgspec.ValidationError, match="unknown field `loud`"):
        Endpoint(base_url="http://p/v1", options={"loud": True})


def test_api_that_there_is_not_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match=r"there is no API 'parrot' \(chat, echo\)"):
        Endpoint(base_url="http://p/v1", api="parrot", dialects=BOTH)


def test_answers_of_the_provider_are_read_by_its_dialect() -> None:
    endpoint = Endpoint(base_url="http://p/v1")
    assert endpoint.request_id([(b"x-request-id", b"req_1")]) == "req_1"
    error = endpoint.status_error(400, b'{"error":{"message":"No."}}', retry_after=None)
    assert (error.message, error.status) == ("No.", 400)


# -- the table -----------------------------------------------------------------------------------------


def test_gateway_speaks_chat_by_itself() -> None:
    assert DIALECTS.names == ["chat"]
    assert DIALECTS.get("chat") is CHAT


def test_equal_dialects_need_no_translation() -> None:
    assert DIALECTS.can_answer("chat", "chat")
    assert DIALECTS.translation("chat", "chat") is None
    assert Endpoint(base_url="http://p/v1").accepts("chat")
    assert not Endpoint(base_url="http://p/v1").accepts("echo")


def test_translation_leads_one_way() -> None:
    translation = EchoByChat()
    table = Dialects(BOTH.get(name) for name in BOTH.names)
    assert not table.can_answer("echo", "chat")
    table = Dialects([CHAT], {("echo", "chat"): translation})
    assert table.can_answer("echo", "chat")
    assert table.translation("echo", "chat") is translation
    assert not table.can_answer("chat", "echo")
    with pytest.raises(KeyError):
        table.translation("chat", "echo")


def test_error_means_what_the_api_of_the_provider_says() -> None:
    endpoint = Endpoint(base_url="http://provider/v1")
    refused = endpoint.judged(endpoint.status_error(401, b"", retry_after=None))
    assert isinstance(refused, UpstreamRefused)
