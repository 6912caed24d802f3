"""The opening handshake of RFC 6455, the server's side, in memory."""

from __future__ import annotations

import pytest

from holdfast.core.websocket.handshake import (
    UpgradeAccepted,
    UpgradeRejected,
    accept_token,
    check_upgrade,
    is_upgrade_request,
    offered_subprotocols,
    switching_protocols,
)

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
Headers = list[tuple[bytes, bytes]]


def headers(*extra: tuple[bytes, bytes], without: bytes = b"") -> Headers:
    """A valid request's headers, without those of one name, with some more."""
    valid = [
        (b"host", b"gateway.example"),
        (b"upgrade", b"websocket"),
        (b"connection", b"Upgrade"),
        (b"sec-websocket-key", KEY),
        (b"sec-websocket-version", b"13"),
    ]
    return [*(pair for pair in valid if pair[0] != without), *extra]


def replaced(name: bytes, value: bytes) -> Headers:
    return headers((name, value), without=name)


def check(given: Headers) -> UpgradeAccepted | UpgradeRejected:
    return check_upgrade(b"GET", "1.1", given)


def test_valid_request_is_accepted() -> None:
    assert check(headers()) == UpgradeAccepted(KEY, [])


@pytest.mark.parametrize(
    "given",
    [
        replaced(b"upgrade", b"WebSocket"),
        replaced(b"upgrade", b"h2c, websocket"),
        replaced(b"connection", b"keep-alive, upgrade"),
        headers((b"connection", b"keep-alive")),
        replaced(b"sec-websocket-key", b" " + KEY + b"\t"),
        headers((b"sec-websocket-extensions", b"permessage-deflate")),
        headers((b"content-length", b"0")),
    ],
)
def test_request_written_differently_is_accepted(given: Headers) -> None:
    assert check(given) == UpgradeAccepted(KEY, [])


@pytest.mark.parametrize(
    ("values", "offered"),
    [
        ([b"holdfast.v1"], ["holdfast.v1"]),
        ([b"holdfast.v1, holdfast.token.abc~_-"], ["holdfast.v1", "holdfast.token.abc~_-"]),
        ([b"a,,b ,", b"\tc"], ["a", "b", "c"]),
        ([b""], []),
    ],
)
def test_offered_subprotocols_are_listed_in_order(values: list[bytes], offered: list[str]) -> None:
    assert check(headers(*((b"sec-websocket-protocol", v) for v in values))) == UpgradeAccepted(KEY, offered)


@pytest.mark.parametrize(
    ("given", "status", "word"),
    [
        (headers(without=b"upgrade"), 426, "proxy"),
        (replaced(b"upgrade", b"h2c"), 426, "proxy"),
        (headers(without=b"connection"), 426, "proxy"),
        (replaced(b"connection", b"close"), 426, "proxy"),
        (headers(without=b"host"), 400, "Host"),
        (headers((b"host", b"other.example")), 400, "Host"),
        (headers((b"content-length", b"5")), 400, "body"),
        (headers((b"transfer-encoding", b"chunked")), 400, "body"),
        (headers(without=b"sec-websocket-version"), 426, "version"),
        (replaced(b"sec-websocket-version", b"8"), 426, "version"),
        (replaced(b"sec-websocket-version", b"13, 8"), 426, "version"),
        (headers((b"sec-websocket-version", b"13")), 400, "Version"),
        (headers(without=b"sec-websocket-key"), 400, "Key"),
        (headers((b"sec-websocket-key", KEY)), 400, "Key"),
        (replaced(b"sec-websocket-key", b""), 400, "Key"),
        (replaced(b"sec-websocket-key", b"c2hvcnQ="), 400, "Key"),
        (replaced(b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZSEh"), 400, "Key"),
        (replaced(b"sec-websocket-key", b"dGhl!IHNhbXBsZSBub25jZQ=="), 400, "Key"),
        (headers((b"sec-websocket-protocol", b"a b")), 400, "tokens"),
        (headers((b"sec-websocket-protocol", b"caf\xe9")), 400, "tokens"),
        (headers((b"sec-websocket-protocol", b"a, b"), (b"sec-websocket-protocol", b"a")), 400, "twice"),
    ],
)
def test_request_that_breaks_a_rule_is_rejected_with_its_status(given: Headers, status: int, word: str) -> None:
    verdict = check(given)
    assert isinstance(verdict, UpgradeRejected)
    assert verdict.status == status
    assert word in verdict.message
    if status == 426:
        assert (b"sec-websocket-version", b"13") in verdict.headers
        assert (b"upgrade", b"websocket") in verdict.headers


def test_other_method_is_rejected_with_405_and_allow() -> None:
    verdict = check_upgrade(b"POST", "1.1", headers())
    assert isinstance(verdict, UpgradeRejected)
    assert (verdict.status, verdict.headers) == (405, ((b"allow", b"GET"),))


@pytest.mark.parametrize("version", ["1.0", "2"])
def test_other_http_version_is_rejected(version: str) -> None:
    verdict = check_upgrade(b"GET", version, headers())
    assert isinstance(verdict, UpgradeRejected)
    assert verdict.status == 400


def test_upgrade_request_is_told_from_a_plain_one() -> None:
    assert is_upgrade_request(headers())
    assert not is_upgrade_request(headers(without=b"upgrade"))


def test_accept_token_matches_the_example_of_the_rfc() -> None:
    assert accept_token(KEY) == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # RFC 6455 section 1.3


def test_answer_carries_token_subprotocol_and_extra_headers_and_no_extension() -> None:
    request = UpgradeAccepted(KEY, ["holdfast.v1", "other"])
    extra = [(b"Date", b"Mon, 23 Nov 2026 10:00:00 GMT"), (b"x-empty", b"")]
    assert switching_protocols(request, subprotocol="holdfast.v1", headers=extra) == (
        b"HTTP/1.1 101 Switching Protocols\r\n"
        b"Upgrade: websocket\r\n"
        b"Connection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"
        b"Sec-WebSocket-Protocol: holdfast.v1\r\n"
        b"Date: Mon, 23 Nov 2026 10:00:00 GMT\r\n"
        b"x-empty: \r\n"
        b"\r\n"
    )
    assert b"Protocol:" not in switching_protocols(request)


def test_answer_with_a_subprotocol_that_was_not_offered_is_refused() -> None:
    with pytest.raises(ValueError, match="not offered"):
        switching_protocols(UpgradeAccepted(KEY, ["a"]), subprotocol="b")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (b"Upgrade", b"h2c", "belongs"),
        (b"Sec-WebSocket-Extensions", b"permessage-deflate", "belongs"),
        (b"content-length", b"0", "belongs"),
        (b"x y", b"z", "malformed"),
        (b"x", b"a\r\nset-cookie: b", "malformed"),
        (b"x", b"a\n", "malformed"),
        (b"x\r\n", b"a", "malformed"),
    ],
)
def test_answer_with_a_header_that_would_break_it_is_refused(name: bytes, value: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        switching_protocols(UpgradeAccepted(KEY, []), headers=[(name, value)])


def test_offered_subprotocols_are_read_whatever_the_verdict_will_be() -> None:
    given = [(b"sec-websocket-protocol", b"holdfast.v1, holdfast.v1"), (b"sec-websocket-protocol", b"a b")]
    assert offered_subprotocols(given) == ["holdfast.v1", "holdfast.v1", "a b"]
