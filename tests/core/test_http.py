from __future__ import annotations

import pytest

from holdfast.core.http.connection import (
    ErrorCode,
    HttpConnection,
    HttpMisuse,
    check_request_target,
    code_name,
    request_fields,
)
from holdfast.core.http.http1 import Http1Connection
from holdfast.core.http.http2 import Http2Connection


def test_both_connections_have_the_common_shape() -> None:
    connections: list[HttpConnection] = [Http1Connection(), Http2Connection()]
    assert [connection.alpn for connection in connections] == ["http/1.1", "h2"]
    for connection in connections:
        assert connection.is_usable
        assert not connection.is_closed
        assert connection.open_streams == 0
        assert connection.available_streams >= 1
        assert connection.keep_alive_timeout is None


def test_error_codes_are_those_of_the_rfc() -> None:
    assert [code.value for code in ErrorCode] == list(range(14))


def test_error_code_is_named_as_in_the_rfc_and_an_unknown_one_by_its_number() -> None:
    assert [code_name(code) for code in (0x7, 0xD, 0xE)] == ["refused_stream", "http_1_1_required", "code_14"]


def test_good_target_passes() -> None:
    check_request_target(b"POST", b"https", b"api.example:8443", b"/v1/chat?x=1&y=%20")
    check_request_target(b"OPTIONS", b"http", b"[::1]:80", b"*")


@pytest.mark.parametrize(
    ("method", "scheme", "authority", "path"),
    [
        (b"", b"https", b"a", b"/"),
        (b"GE T", b"https", b"a", b"/"),
        (b"CONNECT", b"https", b"a", b"/"),
        (b"GET", b"ftp", b"a", b"/"),
        (b"GET", b"https", b"", b"/"),
        (b"GET", b"https", b"user@a", b"/"),
        (b"GET", b"https", b"a\r\nx: y", b"/"),
        (b"GET", b"https", b"a", b""),
        (b"GET", b"https", b"a", b"path"),
        (b"GET", b"https", b"a", b"/a b"),
        (b"GET", b"https", b"a", b"/a#fragment"),
        (b"GET", b"https", b"a", b"/\r\nx: y"),
        (b"GET", b"https", b"a", "/ä".encode()),
    ],
)
def test_bad_target_is_misuse(method: bytes, scheme: bytes, authority: bytes, path: bytes) -> None:
    with pytest.raises(HttpMisuse):
        check_request_target(method, scheme, authority, path)


def test_fields_are_lower_cased_and_kept_in_order() -> None:
    fields = request_fields(b"GET", [(b"X-B", b"1"), (b"X-A", b""), (b"x-b", "ü 2".encode())], b"")
    assert fields == [(b"x-b", b"1"), (b"x-a", b""), (b"x-b", "ü 2".encode())]


def test_fields_of_the_connection_are_dropped() -> None:
    names = [b"Connection", b"Keep-Alive", b"Proxy-Connection", b"TE", b"Transfer-Encoding", b"Upgrade", b"Host"]
    assert request_fields(b"GET", [(name, b"x") for name in names], b"") == []


def test_content_length_is_that_of_the_body_whatever_the_caller_says() -> None:
    assert request_fields(b"GET", [(b"Content-Length", b"7")], b"") == []
    assert request_fields(b"GET", [(b"Content-Length", b"7")], b"abc") == [(b"content-length", b"3")]
    assert request_fields(b"POST", [], b"") == [(b"content-length", b"0")]


@pytest.mark.parametrize(
    "field",
    [
        (b"", b"v"),
        (b"a b", b"v"),
        (b"a:", b"v"),
        (b":path", b"v"),
        (b"a\n", b"v"),
        ("ä".encode(), b"v"),
        (b"a", b"v\r\nb: c"),
        (b"a", b"v\n"),
        (b"a", b"v\x00"),
        (b"a", b" v"),
        (b"a", b"v\t"),
        (b"a", b" "),
    ],
)
def test_bad_field_is_misuse(field: tuple[bytes, bytes]) -> None:
    with pytest.raises(HttpMisuse):
        request_fields(b"GET", [field], b"")


def test_misuse_never_shows_a_value() -> None:
    with pytest.raises(HttpMisuse) as caught:
        request_fields(b"GET", [(b"authorization", b"Bearer secret\n")], b"")
    assert "secret" not in str(caught.value)
    assert "authorization" in str(caught.value)
