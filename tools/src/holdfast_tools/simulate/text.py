"""The deterministic text of simulated answers, so that a test can prove that nothing was lost, doubled or moved.

Token `i` of a seed is a word and the index: `amber0`, ` birch1`, ` cedar2` ... The rule, for clients in other
languages (every product stays below 2**53, so plain JavaScript numbers will do):

    n     = (i + 1) mod 65521
    x     = ((seed + 1) mod 65521) * (n * n mod 65521) * 40503 mod 65521
    token = (i > 0 ? " " : "") + WORDS[x mod 64] + decimal(i)

The index shows loss, doubling and reordering; the words differ from seed to seed, which shows streams mixed up.
"""

from __future__ import annotations

# One string: sixty-four quoted words would be harder to read, and to copy into another language.
_VOCABULARY = """
amber anchor apple arrow basil beach birch bloom brook cabin candle canyon cedar cliff cloud clover
comet coral crane dawn delta ember falcon fern field flint forest garden glade granite harbor hazel
heron hill honey island ivory jasper juniper lake lantern lemon lily maple marble meadow mist moss
north oak ocean olive orchard pearl pebble pine quartz rain reed river robin sage stone willow
"""
WORDS = _VOCABULARY.split()
PRIME = 65521
FACTOR = 40503


def token(seed: int, i: int) -> str:
    """Return token `i` (from 0) of the answer with this seed."""
    word = WORDS[(seed + 1) % PRIME * ((i + 1) ** 2 % PRIME) * FACTOR % PRIME % 64]
    return f" {word}{i}" if i else f"{word}{i}"


def token_range(seed: int, start: int, stop: int) -> list[str]:
    """Return tokens `start` to `stop` (exclusive); as `token` would, in a third of the time."""
    step = (seed + 1) % PRIME * FACTOR % PRIME
    words = WORDS
    if start == 0 and stop > 0:
        return [
            token(seed, 0),
            *(f" {words[(i + 1) * (i + 1) % PRIME * step % PRIME % 64]}{i}" for i in range(1, stop)),
        ]
    return [f" {words[(i + 1) * (i + 1) % PRIME * step % PRIME % 64]}{i}" for i in range(start, stop)]


def text(seed: int, tokens: int) -> str:
    """Return the whole text of an answer of that many tokens."""
    return "".join(token_range(seed, 0, tokens))
