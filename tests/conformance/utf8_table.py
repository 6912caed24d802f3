"""Byte sequences that are UTF-8 and that are not, decided by hand from RFC 3629 (and the Unicode standard, table
3-7), so that the suite does not ask the decoder under test.

Grouped as the Autobahn|Testsuite groups its family 6, which goes back to Markus Kuhn's decoder stress test.
"""

from __future__ import annotations


def _table(family: str, sequences: str) -> dict[str, bytes]:
    """One entry per line of hexadecimal bytes."""
    lines = [line.strip() for line in sequences.strip().splitlines()]
    return {f"{family}-{line.replace(' ', '') or 'empty'}": bytes.fromhex(line) for line in lines}


_KOSME = bytes.fromhex("ce ba e1 bd b9 cf 83 ce bc ce b5")
_KOSME_BOUNDARIES = {0, 2, 5, 7, 9, 11}
_KOSME_PREFIXES = {f"6.6-prefix-{size}": _KOSME[:size] for size in range(1, 12)}

#: U+nFFFE and U+nFFFF of all 17 planes are valid UTF-8, though no characters.
_NONCHARACTERS = {
    f"6.22-plane-{plane}-{last:x}": (
        bytes((0xEF, 0xBF, last))
        if plane == 0
        else bytes((0xF0 | plane >> 2, 0x8F | (plane & 3) << 4, 0xBF, last))
    )
    for plane in range(17)
    for last in (0xBE, 0xBF)
}

VALID: dict[str, bytes] = {
    "6.1-empty": b"",
    "6.2-mixed": "Hello-µ@ßöäüàá-UTF-8!!".encode(),
    "6.5-kosme": _KOSME,
    **{name: content for name, content in _KOSME_PREFIXES.items() if len(content) in _KOSME_BOUNDARIES},
    **_table("6.7-first-of-length", "00\n c2 80\n e0 a0 80\n f0 90 80 80"),
    **_table("6.9-last-of-length", "7f\n df bf\n ef bf bf\n f4 8f bf bf"),
    **_table("6.11-boundary", "ed 9f bf\n ee 80 80\n ef bf bd\n f3 bf bf bf\n f0 bf bf bf"),
    **_NONCHARACTERS,
    **_table("6.23-specials", "ef bf b9\n ef bf ba\n ef bf bb\n ef bf bc\n ef bf bd"),
    **_table("6.23-byte-order-mark", "ef bb bf\n ef bb bf 61"),
}

INVALID: dict[str, bytes] = {
    "6.3-surrogate-within": _KOSME + bytes.fromhex("ed a0 80") + b"edited",
    "6.4-too-large-within": _KOSME + bytes.fromhex("f4 90 80 80") + b"edited",
    **{name: content for name, content in _KOSME_PREFIXES.items() if len(content) not in _KOSME_BOUNDARIES},
    **_table("6.8-five-and-six-bytes", "f8 88 80 80 80\n fc 84 80 80 80 80"),
    **_table(
        "6.10-beyond-unicode", "f7 bf bf bf\n fb bf bf bf bf\n fd bf bf bf bf bf\n f4 90 80 80\n f5 80 80 80"
    ),
    **_table(
        "6.12-stray-continuation",
        "80\n bf\n 80 bf\n 80 bf 80\n 80 bf 80 bf\n 80 bf 80 bf 80\n 80 bf 80 bf 80 bf\n 61 80\n c2 80 80",
    ),
    "6.12-all-continuations": bytes(range(0x80, 0xC0)),
    **{f"6.13-lonely-{start:02x}": bytes((start, 0x20)) for start in range(0xC0, 0xFE)},
    **_table(
        "6.14-last-byte-missing",
        "c0\n e0 80\n f0 80 80\n f8 80 80 80\n fc 80 80 80 80\n df\n ef bf\n f7 bf bf\n fb bf bf bf\n"
        "fd bf bf bf bf",
    ),
    **_table("6.14-cut-short", "c2\n e1\n e1 80\n f1\n f1 80\n f1 80 80\n e1 80 61\n f1 80 80 61"),
    "6.15-all-cut-short": bytes.fromhex("c0 e0 80 f0 80 80 f8 80 80 80 fc 80 80 80 80 df ef bf f7 bf bf"),
    **_table("6.16-no-such-byte", "fe\n ff\n fe fe ff ff\n 61 ff"),
    **_table("6.17-overlong-slash", "c0 af\n e0 80 af\n f0 80 80 af\n f8 80 80 80 af\n fc 80 80 80 80 af"),
    **_table("6.18-overlong-largest", "c1 bf\n e0 9f bf\n f0 8f bf bf\n f8 87 bf bf bf\n fc 83 bf bf bf bf"),
    **_table("6.19-overlong-nul", "c0 80\n e0 80 80\n f0 80 80 80\n f8 80 80 80 80\n fc 80 80 80 80 80"),
    **_table("6.20-surrogate", "ed a0 80\n ed ad bf\n ed ae 80\n ed af bf\n ed b0 80\n ed be 80\n ed bf bf"),
    **_table(
        "6.21-surrogate-pair",
        "ed a0 80 ed b0 80\n ed a0 80 ed bf bf\n ed ad bf ed b0 80\n ed ad bf ed bf bf\n"
        "ed ae 80 ed b0 80\n ed ae 80 ed bf bf\n ed af bf ed b0 80\n ed af bf ed bf bf",
    ),
}
