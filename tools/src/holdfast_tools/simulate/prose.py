"""The answer that a request without `sim` gets: a few readable sentences that depend on the prompt alone."""

from __future__ import annotations

import re
import zlib

_OPENINGS = (
    "Good question.",
    "Happy to help.",
    "Let me think about that aloud.",
    "Here is a short answer.",
    "Gladly.",
)
_ECHOES = (
    'You wrote "{prompt}", and I am a simulated model, so I know exactly nothing about it.',
    'About "{prompt}" I can only say this: no model was asked.',
    'I read "{prompt}" with care and will now talk about something else.',
)
_BODIES = (
    "Every word you see left this process as one event of a server-sent event stream.",
    "The gateway wrote each event to a log before it showed it to you, and gave it a number.",
    "Pull the cable, wait a moment and plug it in again: the text carries on from the exact word.",
    "A second window may follow the same answer from the start while it is still being written.",
    "A slow reader is no trouble either, since it only moves its own cursor.",
    "If you stop reading for good, the work behind this answer is stopped as well.",
    "The same prompt always gets the same answer here, which makes losses easy to see.",
    "A real provider sits behind the same interface, and only the words get better.",
)
_CLOSINGS = (
    "That is all there is to it.",
    "Try it with a longer prompt, or cut the connection while I speak.",
    "Ask me again and compare.",
    "Thank you for watching me count words.",
)
_PIECE = re.compile(r"\s*\S{1,8}")


def prose(prompt: str) -> list[str]:
    """Return the tokens of the demo answer to `prompt`; the same prompt always gets the same answer."""
    seed = zlib.crc32(prompt.encode("utf-8", "replace"))
    shown = " ".join(prompt.split())
    if len(shown) > 60:
        shown = shown[:57].rstrip() + "..."
    sentences = [_OPENINGS[seed % len(_OPENINGS)]]
    if shown:
        sentences.append(_ECHOES[seed // 5 % len(_ECHOES)].format(prompt=shown))
    first = seed // 15 % len(_BODIES)
    # 3 is coprime to 8, so the four sentences differ.
    sentences += [_BODIES[(first + 3 * k) % len(_BODIES)] for k in range(4)]
    sentences.append(_CLOSINGS[seed // 120 % len(_CLOSINGS)])
    return _PIECE.findall(" ".join(sentences))
