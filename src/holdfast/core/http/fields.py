"""Header fields in HTTP/2: compresses those of requests, and checks those of responses (RFC 9113 section 8)."""

from __future__ import annotations

import re
from typing import Final

from hpack import Decoder, Encoder, HPACKError, OversizedHeaderListError

from holdfast.core.http.connection import CONNECTION_FIELDS, ErrorCode
from holdfast.core.http.frames import ConnectionFault
from holdfast.core.http.request import Headers
from holdfast.core.http.settings import DEFAULT_TABLE_SIZE

# RFC 7541 section 7.1.3: secrets stay out of the compression table.
_SECRET: Final = frozenset({b"authorization", b"proxy-authorization", b"cookie", b"x-api-key", b"api-key"})
_MAX_REMEMBERED: Final = 64

# RFC 9113 section 8.2.1, the least that every endpoint must check: "A field name MUST NOT contain characters in
# the ranges 0x00-0x20, 0x41-0x5a, or 0x7f-0xff". "A field value MUST NOT contain the zero value (ASCII NUL,
# 0x00), line feed (ASCII LF, 0x0a), or carriage return (ASCII CR, 0x0d) at any position."
_is_name: Final = re.compile(rb"[!-9;-@\[-~]+").fullmatch
_is_value: Final = re.compile(rb"(?:[^\0\r\n\t ](?:[^\0\r\n]*[^\0\r\n\t ])?)?").fullmatch
_is_status: Final = re.compile(rb"[1-9][0-9][0-9]").fullmatch
# RFC 7541 section 4.2: a block begins with at most two table size updates. `hpack` accepts any number of them, one
# byte each; a block full of them would keep it busy for a second.
_has_three_updates: Final = re.compile(rb"(?:[\x20-\x3e]|\x3f[\x80-\xff]*[\0-\x7f]){3}").match
_is_length: Final = re.compile(rb"[0-9]{1,18}").fullmatch


class FieldFault(Exception):
    """A response is malformed (section 8.1.1). This fails its stream, not the connection."""


class RequestEncoder:
    """Compresses the fields of requests.

    A field enters the compression table when it has the same value twice in a row. So request ids and the like do
    not displace lasting fields, and the table, which `hpack` searches linearly, stays short. Huffman coding is
    off: on a link to a provider it costs more time than the saved bytes are worth.
    """

    __slots__ = ("_encoder", "_last_values")

    def __init__(self) -> None:
        self._encoder = Encoder()
        self._last_values: dict[bytes, bytes] = {}

    def encode(self, fields: Headers) -> bytes:
        """Return the field block. Call this once per block, in the order in which the blocks are sent."""
        last_values = self._last_values
        marked: list[tuple[bytes, bytes, bool]] = []
        for name, value in fields:
            if name in _SECRET:
                marked.append((name, value, True))
            elif last_values.get(name) == value:
                marked.append((name, value, False))
            else:
                if len(last_values) >= _MAX_REMEMBERED:
                    last_values.clear()
                last_values[name] = value
                marked.append((name, value, True))
        return self._encoder.encode(marked, huffman=False)

    def limit_table(self, size: int) -> None:
        """Obey the peer's HEADER_TABLE_SIZE. A table larger than the default is not used."""
        size = min(size, DEFAULT_TABLE_SIZE)
        if size == self._encoder.header_table_size:
            return
        self._encoder.header_table_size = size
        # RFC 7541 section 4.2: of several changes before a block, the smallest and the last must be signalled. The
        # others must not: they may be more than the peer allows by now. This also bounds the list.
        changes = self._encoder.table_size_changes
        smallest, last = min(changes), changes[-1]
        changes[:] = (last,) if smallest == last else (smallest, last)


class ResponseDecoder:
    """Decompresses field blocks. Every block must be decoded, even one to be dropped: it changes the table.

    `max_size` bounds a block in bytes, both compressed and decompressed.
    """

    __slots__ = ("_decoder", "max_size")

    def __init__(self, max_size: int) -> None:
        self._decoder = Decoder(max_size)
        self.max_size = max_size

    def decode(self, block: bytes) -> Headers:
        """Return the fields of one block. Raises `ConnectionFault`; the compression state is then lost."""
        if len(block) > self.max_size:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "the field block is far too large")
        if _has_three_updates(block):
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, "a header block with three table size updates")
        try:
            return list(self._decoder.decode(block, raw=True))
        except OversizedHeaderListError as exc:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "the header list is far too large") from exc
        except HPACKError as exc:
            reason = f"bad header block ({type(exc).__name__})"
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, reason) from exc


def list_size(fields: Headers) -> int:
    """Return the size of a field list as SETTINGS_MAX_HEADER_LIST_SIZE counts it (section 6.5.2)."""
    return sum(len(name) + len(value) for name, value in fields) + 32 * len(fields)


def check_fields(fields: Headers) -> None:
    """Raise `FieldFault` unless all of these are valid in a response, apart from its pseudo-header field."""
    for name, value in fields:
        if not _is_name(name):
            raise FieldFault(f"field name {name[:64]!r}")
        if not _is_value(value):
            raise FieldFault(f"value of field {name[:64]!r}")
        # RFC 9113 section 8.2.2: "Any message containing connection-specific header fields MUST be treated as
        # malformed".
        if name in CONNECTION_FIELDS:
            raise FieldFault(f"connection-specific field {name!r}")


def response_head(fields: Headers) -> tuple[int, Headers]:
    """Split a response's fields into its status and its headers."""
    # RFC 9113 section 8.3.2: `:status` "MUST be included in all responses, including interim responses;
    # otherwise, the response is malformed". Pseudo-header fields come first (section 8.3), and a response has no
    # other one.
    if not fields or fields[0][0] != b":status":
        raise FieldFault("the response does not start with :status")
    status = fields[0][1]
    if not _is_status(status):
        raise FieldFault(f"the status is {status[:64]!r}")
    headers = fields[1:]
    check_fields(headers)
    return int(status), headers


def content_length(headers: Headers) -> int | None:
    """Return the declared length, None without one. Fields that agree count as one (RFC 9110 section 8.6)."""
    values = {value for name, value in headers if name == b"content-length"}
    if not values:
        return None
    value = values.pop()
    if values or not _is_length(value):
        raise FieldFault(f"content-length {value[:64]!r}")
    return int(value)
