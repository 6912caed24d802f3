from __future__ import annotations

import pytest
from hpack import Decoder, Encoder, NeverIndexedHeaderTuple

from holdfast.core.http.connection import ErrorCode
from holdfast.core.http.fields import (
    FieldFault,
    RequestEncoder,
    ResponseDecoder,
    check_fields,
    content_length,
    list_size,
    response_head,
)
from holdfast.core.http.frames import ConnectionFault
from holdfast.core.http.request import Headers

REQUEST = [(b":method", b"POST"), (b":path", b"/v1/chat"), (b"authorization", b"Bearer k"), (b"x-app", b"a")]


def test_requests_decode_to_what_was_encoded() -> None:
    encoder, decoder = RequestEncoder(), Decoder()
    for number in range(100):
        fields = [*REQUEST, (b"x-request-id", b"%d" % number)]
        assert decoder.decode(encoder.encode(fields), raw=True) == fields


def test_repeated_fields_shrink_and_changing_ones_stay_out_of_the_table() -> None:
    encoder, decoder = RequestEncoder(), Decoder()
    sizes = []
    for number in range(100, 200):
        block = encoder.encode([*REQUEST, (b"x-request-id", b"%d" % number)])
        sizes.append(len(block))
        decoder.decode(block, raw=True)
    assert sizes[2] < sizes[0]
    assert len(set(sizes[2:])) == 1
    assert list(decoder.header_table.dynamic_entries) == [(b"x-app", b"a"), (b":path", b"/v1/chat")]


def test_secrets_are_never_indexed() -> None:
    encoder, decoder = RequestEncoder(), Decoder()
    for _ in range(3):
        fields = list(decoder.decode(encoder.encode(REQUEST), raw=True))
        assert isinstance(fields[2], NeverIndexedHeaderTuple)


def test_memory_of_last_values_is_bounded() -> None:
    encoder, decoder = RequestEncoder(), Decoder()
    for number in range(1000):
        fields = [(b"x-%d" % number, b"v")]
        assert decoder.decode(encoder.encode(fields), raw=True) == fields
    assert len(encoder._last_values) <= 64


def test_smaller_table_is_signalled_and_obeyed() -> None:
    encoder, decoder = RequestEncoder(), Decoder()
    for _ in range(3):
        decoder.decode(encoder.encode(REQUEST))
    for sizes in ((0,), (4096,), (100, 100, 50, 60), (0, 9000)):
        for size in sizes:
            encoder.limit_table(size)
        decoder.max_allowed_table_size = min(sizes[-1], 4096)
        for _ in range(3):
            assert decoder.decode(encoder.encode(REQUEST), raw=True) == REQUEST
        assert decoder.header_table_size == min(sizes[-1], 4096)


def test_table_that_grew_and_shrank_again_is_signalled_once() -> None:
    encoder, decoder = RequestEncoder(), Decoder()
    encoder.limit_table(100)
    decoder.decode(encoder.encode(REQUEST))
    encoder.limit_table(4096)
    encoder.limit_table(100)
    decoder.max_allowed_table_size = 100  # a larger size, even in passing, would be refused
    assert decoder.decode(encoder.encode(REQUEST), raw=True) == REQUEST


def test_changes_of_the_table_between_requests_are_bounded() -> None:
    encoder = RequestEncoder()
    for size in range(2000):
        encoder.limit_table(size % 7)
    assert len(encoder._encoder.table_size_changes) <= 2
    assert min(encoder._encoder.table_size_changes) == 0


# -- decoding --------------------------------------------------------------------------------------------


def fault_of(block: bytes, max_size: int = 1000) -> ErrorCode:
    with pytest.raises(ConnectionFault) as caught:
        ResponseDecoder(max_size).decode(block)
    assert len(caught.value.reason) < 100
    return caught.value.code


def test_response_fields_decode_to_bytes() -> None:
    assert ResponseDecoder(1000).decode(Encoder().encode([(b":status", b"200"), (b"x", b"\xff")])) == [
        (b":status", b"200"),
        (b"x", b"\xff"),
    ]


@pytest.mark.parametrize(
    "block",
    [
        b"\x80",  # index 0
        b"\xff\xff\xff\xff\xff\xff\xff",  # an integer without end
        b"\xfe",  # an index beyond the table
        b"\x40\x05ab",  # a literal that is cut
        b"\x3f\xe2\x1f",  # a table above 4096
        b"\x82\x20",  # a table size change after a field
        b"\x20\x3f\xe1\x1f\x20\x82",  # three table size changes
        b"\x40\x81\xff\x01a",  # Huffman padding longer than 7 bits
    ],
)
def test_bad_compression_is_a_connection_fault(block: bytes) -> None:
    assert fault_of(block) == ErrorCode.COMPRESSION_ERROR


def test_list_that_inflates_too_far_is_a_connection_fault() -> None:
    assert fault_of(b"\x82" * 50) == ErrorCode.ENHANCE_YOUR_CALM


def test_two_table_size_changes_are_taken() -> None:
    assert ResponseDecoder(1000).decode(b"\x20\x3f\xe1\x1f\x82") == [(b":method", b"GET")]


def test_block_that_is_too_long_is_a_connection_fault() -> None:
    assert fault_of(b"\x82" * 1001) == ErrorCode.ENHANCE_YOUR_CALM


def test_list_size_counts_as_the_rfc_says() -> None:
    assert list_size([]) == 0
    assert list_size([(b"ab", b"c"), (b"d", b"")]) == 3 + 32 + 1 + 32


# -- the rules for responses -----------------------------------------------------------------------------


def test_good_head_is_split() -> None:
    fields = [(b":status", b"200"), (b"x-a", b"1"), (b"x-a", "ü 2".encode()), (b"x-empty", b"")]
    assert response_head(fields) == (200, fields[1:])


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [(b"x", b"1")],
        [(b"x", b"1"), (b":status", b"200")],
        [(b":status", b"200"), (b":status", b"200")],
        [(b":status", b"200"), (b":path", b"/")],
        [(b":status", b"")],
        [(b":status", b"20")],
        [(b":status", b"2000")],
        [(b":status", b"099")],
        [(b":status", b"2\xb20")],
        [(b":method", b"GET")],
    ],
)
def test_bad_pseudo_fields_are_a_fault(fields: Headers) -> None:
    with pytest.raises(FieldFault):
        response_head(fields)


@pytest.mark.parametrize(
    "field",
    [
        (b"", b"v"),
        (b"X-Upper", b"v"),
        (b"x y", b"v"),
        (b"x:y", b"v"),
        (b":x", b"v"),
        (b"x\x00", b"v"),
        (b"x\x7f", b"v"),
        (b"x\xff", b"v"),
        (b"x\n", b"v"),
        (b"x", b"a\nb"),
        (b"x", b"a\rb"),
        (b"x", b"a\x00b"),
        (b"x", b"v\n"),
        (b"x", b" v"),
        (b"x", b"v\t"),
        (b"x", b" "),
        (b"connection", b"close"),
        (b"keep-alive", b"1"),
        (b"proxy-connection", b"1"),
        (b"transfer-encoding", b"chunked"),
        (b"upgrade", b"h2c"),
    ],
)
def test_bad_field_is_a_fault(field: tuple[bytes, bytes]) -> None:
    with pytest.raises(FieldFault):
        check_fields([field])


@pytest.mark.parametrize(
    ("values", "length"), [([], None), ([b"0"], 0), ([b"12"], 12), ([b"7", b"7"], 7), ([b"007"], 7)]
)
def test_content_length_is_read(values: list[bytes], length: int | None) -> None:
    assert content_length([(b"x", b"1"), *((b"content-length", value) for value in values)]) == length


@pytest.mark.parametrize(
    "values", [[b""], [b"-1"], [b"+1"], [b"1,1"], [b"1_0"], [b"1", b"2"], [b"9" * 19], ["²".encode()]]
)
def test_bad_content_length_is_a_fault(values: list[bytes]) -> None:
    with pytest.raises(FieldFault):
        content_length([(b"content-length", value) for value in values])
