"""RFC 6455 over a real socket, strictly: framing, control frames, reserved bits and opcodes, fragments, UTF-8,
the closing handshake and sizes.

The families are numbered as in the Autobahn|Testsuite, which README.md says how to run. Each case names what the
client writes, every frame that must come back, and the code of the server's Close frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.conformance.client import (
    BINARY,
    CLOSE,
    CONTINUATION,
    MASK,
    PING,
    PONG,
    TEXT,
    Frame,
    RawClient,
    close_frame,
    fragments,
    frame,
    handshake_request,
)
from tests.conformance.utf8_table import INVALID, VALID

NORMAL, PROTOCOL_ERROR, INVALID_TEXT, TOO_BIG = 1000, 1002, 1007, 1009
HELLO = b"Hello, world!"
KB, MB = 1024, 1024 * 1024


@dataclass(frozen=True)
class Case:
    name: str
    send: list[bytes]
    expect: list[Frame]
    code: int | None  # of the server's Close frame; None: that frame is empty


def clean(name: str, send: list[bytes], expect: list[Frame]) -> Case:
    """A case that the client ends with an ordinary Close frame."""
    return Case(name, [*send, close_frame(NORMAL)], expect, NORMAL)


def fails(name: str, send: list[bytes], expect: list[Frame] | None = None, code: int = PROTOCOL_ERROR) -> Case:
    return Case(name, send, expect or [], code)


def framing_cases() -> list[Case]:
    sizes = [0, 125, 126, 127, 128, 65535, 65536]
    return [
        clean(f"1.{kind}-{size}", [frame(kind, fill * size)], [(kind, fill * size)])
        for kind, fill in ((TEXT, b"*"), (BINARY, b"\xfe"))
        for size in sizes
    ]


def ping_cases() -> list[Case]:
    payloads = {"empty": b"", "text": HELLO, "bytes": bytes(range(0xF0, 0x100)), "125": b"\xfe" * 125}
    ten = [b"payload-%d" % number for number in range(10)]
    return [
        *(clean(f"2-ping-{name}", [frame(PING, p)], [(PONG, p)]) for name, p in payloads.items()),
        fails("2-ping-126", [frame(PING, b"\xfe" * 126)]),
        fails("2-pong-126", [frame(PONG, b"\xfe" * 126)]),
        clean("2-pong-unasked-empty", [frame(PONG)], []),
        clean("2-pong-unasked", [frame(PONG, HELLO)], []),
        clean("2-pong-unasked-then-ping", [frame(PONG, HELLO), frame(PING, b"p")], [(PONG, b"p")]),
        clean("2-ten-pings", [frame(PING, p) for p in ten], [(PONG, p) for p in ten]),
    ]


def reserved_bit_cases() -> list[Case]:
    first, echo = frame(TEXT, HELLO), (TEXT, HELLO)
    every = [
        fails(f"3-rsv{rsv}-opcode{opcode}", [frame(opcode, HELLO, rsv=rsv)])
        for rsv in range(1, 8)
        for opcode in (TEXT, BINARY, PING, PONG, CLOSE)
    ]
    return [
        *every,
        *(fails(f"3-rsv{r}-after-text", [first, frame(TEXT, HELLO, rsv=r)], [echo]) for r in (1, 2, 4)),
        *(fails(f"3-rsv{r}-then-ping", [frame(TEXT, HELLO, rsv=r), frame(PING)]) for r in (3, 5)),
        fails("3-rsv7-empty", [frame(BINARY, rsv=7)]),
        fails("3-rsv4-continuation", [frame(TEXT, b"a", fin=False), frame(CONTINUATION, b"b", rsv=4)]),
    ]


def opcode_cases() -> list[Case]:
    cases = []
    for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15):
        before, echo = frame(TEXT, HELLO), (TEXT, HELLO)
        cases += [
            fails(f"4-opcode{opcode}-empty", [frame(opcode)]),
            fails(f"4-opcode{opcode}", [frame(opcode, HELLO)]),
            fails(f"4-opcode{opcode}-between", [before, frame(opcode, HELLO), frame(PING)], [echo]),
        ]
    return cases


def fragment_cases() -> list[Case]:
    two, whole = fragments(TEXT, [b"fragment1", b"fragment2"]), (TEXT, b"fragment1fragment2")
    ping, pong = frame(PING, b"ping payload"), (PONG, b"ping payload")
    stray, stray_open = frame(CONTINUATION, b"stray"), frame(CONTINUATION, b"stray", fin=False)
    text, echo = frame(TEXT, HELLO), (TEXT, HELLO)
    five = fragments(TEXT, [b"fragment%d" % number for number in range(1, 6)])
    five_whole = (TEXT, b"".join(b"fragment%d" % number for number in range(1, 6)))
    pings = [frame(PING, b"pongme %d" % number) for number in (1, 2)]
    pongs = [(PONG, b"pongme %d" % number) for number in (1, 2)]
    many = fragments(BINARY, [b"%04d" % number for number in range(500)])
    return [
        fails("5.1-ping-fragmented", [frame(PING, b"a", fin=False), frame(CONTINUATION, b"b")]),
        fails("5.2-pong-fragmented", [frame(PONG, b"a", fin=False), frame(CONTINUATION, b"b")]),
        fails("5.2-close-fragmented", [frame(CLOSE, b"\x03\xe8", fin=False)]),
        clean("5.3-two", two, [whole]),
        clean("5.6-ping-between", [two[0], ping, two[1]], [pong, whole]),
        clean("5.6-pong-between", [two[0], frame(PONG, b"x"), two[1]], [whole]),
        fails("5.9-stray-then-text", [stray, text]),
        fails("5.12-stray-open-then-text", [stray_open, text]),
        fails("5.15-stray-after-message", [*two, stray_open, text], [whole]),
        fails("5.16-stray-each-time", [stray_open, *two] * 2),
        fails("5.17-stray-final-each-time", [stray, *two] * 2),
        fails("5.18-text-within-text", [frame(TEXT, b"a", fin=False), frame(TEXT, b"b")]),
        fails("5.18-binary-within-text", [frame(TEXT, b"a", fin=False), frame(BINARY, b"b")]),
        clean(
            "5.19-pings-between-five", [*five[:2], pings[0], *five[2:4], pings[1], five[4]], [*pongs, five_whole]
        ),
        clean("5-empty-fragments", fragments(TEXT, [b"", b"", b""]), [(TEXT, b"")]),
        clean("5-empty-last", fragments(BINARY, [b"ab", b""]), [(BINARY, b"ab")]),
        clean("5-five-hundred", many, [(BINARY, b"".join(b"%04d" % number for number in range(500)))]),
        clean("5-then-text", [*two, text], [whole, echo]),
    ]


def utf8_cases() -> list[Case]:
    cases = []
    for name, content in VALID.items():
        octets = fragments(TEXT, [bytes([byte]) for byte in content] or [b"", b""])
        cases.append(clean(f"{name}-whole", [frame(TEXT, content)], [(TEXT, content)]))
        cases.append(clean(f"{name}-fragments", octets, [(TEXT, content)]))
    for name, content in INVALID.items():
        octets = fragments(TEXT, [bytes([byte]) for byte in content])
        cases.append(fails(f"{name}-whole", [frame(TEXT, content)], code=INVALID_TEXT))
        cases.append(fails(f"{name}-fragments", octets, code=INVALID_TEXT))
    cases.append(
        clean("6-binary-is-not-checked", [frame(BINARY, b"\xff\xfe\xed\xa0")], [(BINARY, b"\xff\xfe\xed\xa0")])
    )
    return cases


def close_cases() -> list[Case]:
    text, echo, bye = frame(TEXT, HELLO), (TEXT, HELLO), close_frame(NORMAL)
    big = b"*" * (256 * KB)
    good = [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999]
    bad = [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535]
    return [
        clean("7.1.1-after-text", [text], [echo]),
        Case("7.1.2-twice", [bye, bye], [], NORMAL),
        Case("7.1.3-then-ping", [bye, frame(PING)], [], NORMAL),
        Case("7.1.4-then-text", [bye, text], [], NORMAL),
        clean("7.1.5-within-message", [frame(TEXT, HELLO, fin=False)], []),
        Case("7.1.5-then-continuation", [frame(TEXT, b"a", fin=False), bye, frame(CONTINUATION)], [], NORMAL),
        clean("7.1.6-after-large-text", [frame(TEXT, big), text], [(TEXT, big), echo]),
        Case("7.1-then-garbage", [bye, b"\xff" * 32], [], NORMAL),
        Case("7.3.1-empty", [close_frame(None)], [], None),
        fails("7.3.2-one-byte", [frame(CLOSE, b"\x03")]),
        Case("7.3.3-code", [bye], [], NORMAL),
        Case("7.3.4-reason", [close_frame(NORMAL, HELLO)], [], NORMAL),
        Case("7.3.5-reason-123", [close_frame(NORMAL, b"*" * 123)], [], NORMAL),
        fails("7.3.6-reason-124", [close_frame(NORMAL, b"*" * 124)]),
        fails("7.5.1-reason-invalid", [close_frame(NORMAL, b"\xce\xba\xed\xa0\x80edited")], code=INVALID_TEXT),
        *(Case(f"7.7-code-{code}", [close_frame(code)], [], code) for code in good),
        *(Case(f"7.7-code-{code}-reason", [close_frame(code, HELLO)], [], code) for code in good),
        *(fails(f"7.9-code-{code}", [close_frame(code)]) for code in bad),
        *(fails(f"7.9-code-{code}-reason", [close_frame(code, HELLO)]) for code in bad),
    ]


def header_cases() -> list[Case]:
    """What the Autobahn families leave out: masking, length fields and announced sizes."""
    after = [frame(TEXT, HELLO)]
    return [
        *(fails(f"unmasked-opcode{o}", [bytes((0x80 | o, 0))]) for o in (TEXT, BINARY, PING, PONG, CLOSE)),
        fails("unmasked-text", [b"\x81\x05Hello", *after]),
        *(fails(f"16-bit-length-{size}", [frame(TEXT, b"*" * size, width=2), *after]) for size in (0, 1, 125)),
        *(fails(f"64-bit-length-{size}", [frame(BINARY, b"*" * size, width=8), *after]) for size in (0, 65535)),
        fails("64-bit-length-top-bit", [b"\x82\xff\x80" + bytes(7) + MASK]),
        fails("length-far-too-large", [b"\x82\xff\x40" + bytes(7) + MASK], code=TOO_BIG),
        fails("length-far-too-large-without-mask", [b"\x81\xff\x7f" + b"\xff" * 7], code=TOO_BIG),
    ]


def expect_close(client: RawClient, expect: list[Frame], code: int | None) -> None:
    frames, close = client.read_to_close()
    assert frames == expect
    assert (int.from_bytes(close[:2], "big") if close else None) == code
    close[2:].decode()
    client.read_eof()


def check(port: int, case: Case, chop: int | None, *, one_write: bool) -> None:
    with RawClient(port) as client:
        client.shake_hands()
        for content in [b"".join(case.send)] if one_write else case.send:
            client.send(content, chop)
        expect_close(client, case.expect, case.code)


CASES = [
    *framing_cases(),
    *ping_cases(),
    *reserved_bit_cases(),
    *opcode_cases(),
    *fragment_cases(),
    *close_cases(),
    *header_cases(),
]
BY_NAME = [pytest.param(case, id=case.name) for case in CASES]
UTF8_BY_NAME = [pytest.param(case, id=case.name) for case in utf8_cases()]


@pytest.mark.parametrize("case", BY_NAME + UTF8_BY_NAME)
def test_frames_in_a_write_each_are_answered_as_the_rfc_says(echo_port: int, case: Case) -> None:
    check(echo_port, case, None, one_write=False)


@pytest.mark.parametrize("case", BY_NAME + UTF8_BY_NAME)
def test_frames_in_one_write_are_answered_as_the_rfc_says(echo_port: int, case: Case) -> None:
    check(echo_port, case, None, one_write=True)


@pytest.mark.parametrize("case", BY_NAME + UTF8_BY_NAME)
def test_frames_in_small_writes_are_answered_as_the_rfc_says(echo_port: int, case: Case) -> None:
    size = sum(map(len, case.send))
    check(echo_port, case, 1 if size < 4 * KB else 997, one_write=True)


KOSME = "κόσμε".encode()


@pytest.mark.parametrize(
    "writes",
    [
        pytest.param([KOSME, b"\xf4\x90"], id="6.4-code-point-too-large"),
        pytest.param([KOSME, b"\xf4", b"\x90"], id="6.4-code-point-too-large-byte-by-byte"),
        pytest.param([KOSME, b"\xed", b"\xa0"], id="6.4-surrogate-byte-by-byte"),
        pytest.param([KOSME, b"\xe0", b"\x80"], id="6.4-overlong-byte-by-byte"),
        pytest.param([KOSME, b"\xff"], id="6.4-no-such-byte"),
    ],
)
@pytest.mark.parametrize("form", ["fragments", "one-frame"])
def test_text_is_refused_at_the_first_bad_byte_not_at_its_end(
    echo_port: int, writes: list[bytes], form: str
) -> None:
    if form == "fragments":
        contents = fragments(TEXT, [*writes, b"edited"])[:-1]
    else:
        whole = frame(TEXT, b"".join(writes) + b"edited")
        contents = [whole[: len(whole) - len(b"edited")]]
    with RawClient(echo_port) as client:
        client.shake_hands()
        for content in contents:
            client.send(content)
        expect_close(client, [], INVALID_TEXT)


@pytest.mark.parametrize("size", [64 * KB, 256 * KB, MB, 4 * MB, 8 * MB, 16 * MB])
@pytest.mark.parametrize("kind", [TEXT, BINARY])
def test_large_message_is_echoed(echo_port: int, kind: int, size: int) -> None:
    payload = "0123456789aé€😀".encode() * (size // 20)
    check(echo_port, clean(f"9.{kind}", [frame(kind, payload)], [(kind, payload)]), None, one_write=False)


@pytest.mark.parametrize("size", [64, 256, KB, 4 * KB, 16 * KB, 64 * KB, 256 * KB, MB, 4 * MB])
@pytest.mark.parametrize("kind", [TEXT, BINARY])
def test_large_message_in_fragments_is_echoed(echo_port: int, kind: int, size: int) -> None:
    payload = b"*" * (4 * MB)
    pieces = [payload[start : start + size] for start in range(0, len(payload), size)]
    check(echo_port, clean(f"9.{kind}", fragments(kind, pieces), [(kind, payload)]), None, one_write=True)


@pytest.mark.parametrize("chop", [64, 128, 256, 512, KB, 2 * KB])
@pytest.mark.parametrize("kind", [TEXT, BINARY])
def test_large_message_in_small_writes_is_echoed(echo_port: int, kind: int, chop: int) -> None:
    payload = b"*" * MB
    check(echo_port, clean(f"9.{kind}", [frame(kind, payload)], [(kind, payload)]), chop, one_write=False)


@pytest.mark.parametrize("size", [0, 16, 64, 256, KB, 4 * KB])
@pytest.mark.parametrize("kind", [TEXT, BINARY])
def test_thousand_messages_are_echoed_one_after_the_other(echo_port: int, kind: int, size: int) -> None:
    payload = b"*" * size
    message = frame(kind, payload)
    with RawClient(echo_port) as client:
        client.shake_hands()
        for _ in range(1000):
            client.send(message)
            assert client.read_frame() == (kind, payload)
        client.send(close_frame(NORMAL))
        expect_close(client, [], NORMAL)


def test_message_in_fragments_of_1300_bytes_is_echoed(echo_port: int) -> None:
    payload = b"*" * 65536
    pieces = [payload[start : start + 1300] for start in range(0, len(payload), 1300)]
    check(echo_port, clean("10.1.1", fragments(TEXT, pieces), [(TEXT, payload)]), None, one_write=False)


def test_messages_of_many_connections_do_not_mix(echo_port: int) -> None:
    clients = [RawClient(echo_port) for _ in range(20)]
    try:
        for client in clients:
            client.shake_hands()
        for number, client in enumerate(clients):
            client.send(frame(TEXT, b"part one of %d, " % number, fin=False))
        for number, client in reversed(list(enumerate(clients))):
            client.send(frame(CONTINUATION, b"part two of %d" % number))
        for number, client in enumerate(clients):
            assert client.read_frame() == (TEXT, b"part one of %d, part two of %d" % (number, number))
    finally:
        for client in clients:
            client.socket.close()


def test_server_lives_on_when_clients_vanish_without_close(echo_port: int) -> None:
    for rest in (b"", b"\x81", frame(TEXT, HELLO)[:9], frame(TEXT, HELLO, fin=False)):
        with RawClient(echo_port) as client:
            client.shake_hands()
            client.send(rest)
    check(echo_port, clean("after", [frame(TEXT, HELLO)], [(TEXT, HELLO)]), None, one_write=False)


@pytest.mark.parametrize("chop", [None, 1])
def test_frames_right_behind_the_handshake_are_read(echo_port: int, chop: int | None) -> None:
    with RawClient(echo_port) as client:
        client.shake_hands(after=frame(TEXT, HELLO) + close_frame(NORMAL), chop=chop)
        expect_close(client, [(TEXT, HELLO)], NORMAL)


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        pytest.param(handshake_request(b"POST"), 405, id="method"),
        pytest.param(handshake_request(upgrade=None), 426, id="no-upgrade"),
        pytest.param(handshake_request(sec_websocket_version=b"8"), 426, id="old-version"),
        pytest.param(handshake_request(sec_websocket_key=None), 400, id="no-key"),
        pytest.param(handshake_request(sec_websocket_key=b"c2hvcnQ="), 400, id="short-key"),
    ],
)
def test_bad_handshake_is_refused(echo_port: int, request_bytes: bytes, status: int) -> None:
    with RawClient(echo_port) as client:
        client.send(request_bytes)
        answered, headers = client.read_response()
        assert answered == status
        assert b"sec-websocket-accept" not in headers
        assert status != 426 or headers[b"sec-websocket-version"] == b"13"
