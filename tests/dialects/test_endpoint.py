"""How a configured provider is asked, and which dialects can be answered by which."""

from __future__ import annotations

import msgspec
import pytest

from holdfast.dialects.chat import CHAT
from holdfast.dialects.chat_answers import CompletionReader
from holdfast.dialects.endpoint import Endpoint
from holdfast.dialects.table import DIALECTS, Dialects
from holdfast.errors import ConfigError, LoopDetected, UpstreamError, UpstreamRefused, UpstreamStatus
from tests.dialects.echo import BOTH, EchoByChat

ASK = CHAT.parse(b'{"model": "m", "messages": [{"role": "user", "content": "hi"}]}')
OURS = [(b"user-agent", b"holdfast"), (b"accept-encoding", b"identity")]


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
    ours = [*OURS, (b"authorization", b"Bearer sk-1"), (b"x-org", b"o"), (b"x-empty", b"")]
    request, _ = endpoint.exchange(ASK, "x", stream_id="st_1", max_entry=100)
    assert request.headers[:5] == ours
    assert [name for name, _ in request.headers[5:]] == [b"content-type", b"accept", b"x-request-id"]
    probe = endpoint.probe("/health?deep=1")
    assert (probe.method, probe.path, probe.body) == ("GET", "/health?deep=1", b"")
    assert probe.headers == [*ours, (b"accept", b"*/*")]


@pytest.mark.parametrize("key", [None, ""])
def test_provider_without_a_key_is_sent_no_credentials(key: str | None) -> None:
    assert Endpoint(base_url="http://p/v1", api_key=key).probe("/").headers == [*OURS, (b"accept", b"*/*")]


def test_configured_header_replaces_that_of_the_gateway_and_that_of_the_api() -> None:
    own = {"User-Agent": "mine", "Accept": "text/html", "X-Request-Id": "7", "authorization": "Basic x"}
    endpoint = Endpoint(base_url="http://p/v1", api_key="sk-1", headers=own)
    request, _ = endpoint.exchange(ASK, "x", stream_id="st_1", max_entry=100)
    assert len(request.headers) == len(dict(request.headers))
    assert {
        **dict(request.headers),
        **{name.lower().encode(): value.encode() for name, value in own.items()},
    } == dict(request.headers)
    assert [value for name, value in endpoint.probe("/").headers if name == b"accept"] == [b"text/html"]


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
    assert isinstance(error, UpstreamStatus)
    assert (error.message, error.status) == ("No.", 400)


def test_gateway_among_the_providers_is_told_where_a_request_has_been() -> None:
    endpoint = Endpoint(base_url="http://p/v1", gateway_id="a" * 16, headers={"x-org": "o"})
    for hops, told in ((b"", b"a" * 16), (b"b" * 16, b"b" * 16 + b"," + b"a" * 16)):
        request, _ = endpoint.exchange(
            msgspec.structs.replace(ASK, hops=hops), "x", stream_id="st_1", max_entry=100
        )
        assert [value for name, value in request.headers if name == b"holdfast-hops"] == [told]
        assert (b"x-org", b"o") in request.headers


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (508, b'{"error":{"message":"No.","code":"loop_detected"}}', LoopDetected),
        (508, b"Resource limit is reached", UpstreamStatus),
        (503, b'{"error":{"code":"loop_detected"}}', UpstreamStatus),
    ],
)
def test_request_that_comes_back_is_known_by_status_and_code(
    status: int, body: bytes, kind: type[UpstreamError]
) -> None:
    error = Endpoint(base_url="http://p/v1").status_error(status, body, retry_after=None)
    assert type(error) is kind


@pytest.mark.parametrize(
    ("location", "hint"),
    [
        (b"/v1/chat/completions/", "; it redirects to /v1/chat/completions/: is `base_url` right?"),
        (b"https://10.0.0.7:8443/x?key=secret", "; it redirects to /x on another host or port: is"),
        (b"https://10.0.0.7", "; it redirects to / on another host or port: is"),
        (b"https://[10.0.0.7", "; it redirects to an address that is none: is"),
        (b"https://u:half/secret@10.0.0.7/x", "; it redirects to another host or port: is"),
        (b"\xff", "; it redirects to an address that is none: is"),
        (b"/" + b"x" * 5000, "; it redirects to /" + "x" * 199 + ": is"),
    ],
)
def test_redirection_is_an_error_that_says_where_it_leads_but_for_the_host(location: bytes, hint: str) -> None:
    error = Endpoint(base_url="http://p/v1").status_error(307, b"", retry_after=None, location=location)
    assert error.message.startswith("the provider answered with status 307" + hint)
    assert isinstance(error, UpstreamStatus)
    assert (error.status, error.retryable) == (307, False)
    assert not any(word in error.message for word in ("10.0.0.7", "secret"))
    plain = Endpoint(base_url="http://p/v1").status_error(404, b"", retry_after=None, location=location)
    assert "redirects" not in plain.message


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
