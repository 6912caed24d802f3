"""One answer while it is read: every token of it is checked, by as few steps of Python per read as will do."""

from __future__ import annotations

import re

from holdfast_tools.bench.tally import Tally
from holdfast_tools.simulate.text import token, token_range

# The text of a delta as every gateway writes it, with or without white space. Quotes in it are escaped.
_CONTENT = re.compile(rb'"content": ?"([^"\\]*(?:\\.[^"\\]*)*)"')
_SENT = re.compile(rb'"sim_sent_ns": ?(\d+)')
_TOKEN = re.compile(rb"[a-z]+(\d+)")
#: Missing tokens of an answer whose place is remembered, to tell late from lost; further ones are lost for good.
_MAX_MISSING = 10_000
#: Tokens that a text grows by at a time.
_STEP = 1024


class Script:
    """The simulated provider's text for one seed, shared by its answers and made as far as they are read."""

    __slots__ = ("_made", "seed", "text", "tokens")

    def __init__(self, seed: int, tokens: int) -> None:
        self.seed = seed
        self.tokens = tokens
        self.text = b""
        self._made = 0

    def grow(self, size: int) -> None:
        """Make the text at least `size` bytes long, or whole."""
        while len(self.text) < size and self._made < self.tokens:
            # By as much as there is, so that copying it costs each token a constant.
            stop = min(self.tokens, self._made + max(_STEP, self._made))
            self.text += "".join(token_range(self.seed, self._made, stop)).encode()
            self._made = stop


class Answer:
    """One answer. Give it what comes by `receive`, then call `end`; it counts into the tally that it is given.

    With a script the text is compared to it, to the letter; without, there are only sequence numbers to check.
    """

    __slots__ = (
        "_is_broken",
        "_is_resumed",
        "_missing",
        "_next",
        "_offset",
        "begun_ns",
        "last_ns",
        "next_seq",
        "number",
        "script",
        "unacknowledged",
    )

    def __init__(self, number: int, script: Script | None) -> None:
        self.number = number
        self.script = script
        self.begun_ns = 0
        #: When the last text came; 0 before the first one, of the answer or after its connection was cut.
        self.last_ns = 0
        self.next_seq = 0
        #: Bytes since the last acknowledgement, where there are any.
        self.unacknowledged = 0
        self._next = 0
        self._offset = 0
        self._is_broken = False
        self._is_resumed = False
        self._missing: set[int] = set()

    def receive(self, payload: bytes, now_ns: int, tally: Tally) -> None:
        """Take bytes with any number of whole events in them, in whatever they are wrapped."""
        pieces = _CONTENT.findall(payload)
        text = b"".join(pieces)
        if not text:  # the role, or the end
            return
        events = len(pieces) - pieces.count(b"")
        tally.events += events
        if self.last_ns:
            tally.gap.add(now_ns - self.last_ns)
        else:
            begun = tally.resume if self._is_resumed else tally.first_token
            begun.add(now_ns - self.begun_ns)
        if events > 1:
            tally.gap.add(0, events - 1)
        self.last_ns = now_ns
        if self.script is None:
            tally.tokens += events
            return
        tally.tokens += self._check(self.script, text, tally)
        tally.latency.add_all([now_ns - int(sent) for sent in _SENT.findall(payload)])

    def come_back(self, begun_ns: int) -> None:
        """Take note that another connection, begun at that time, goes on with what has come."""
        if self.last_ns:
            self.begun_ns, self.last_ns = begun_ns, 0
            self._is_resumed = True

    def check_numbers(self, first: int, count: int, tally: Tally) -> None:
        """Take the sequence numbers of entries that came: `count` of them, from `first` on."""
        if first != self.next_seq:
            tally.misnumbered += 1
            tally.note(f"entry {self.next_seq} was next, and {first} came")
        self.next_seq = first + count

    def end(self, tally: Tally) -> None:
        """The answer came to its orderly end: nothing may be missing."""
        tally.answers += 1
        if self.script is not None and self._next < self.script.tokens:
            tally.lost += self.script.tokens - self._next
            tally.note(f"an answer ended after {self._next} of {self.script.tokens} tokens")

    def _check(self, script: Script, text: bytes, tally: Tally) -> int:
        """Compare to the script; return how many tokens came in their place."""
        if not self._is_broken:
            end = self._offset + len(text)
            if end > len(script.text):
                script.grow(end)
            if script.text.startswith(text, self._offset):
                # Each token begins with a space, but for the first one.
                count = text.count(b" ") + (not self._offset)
                self._offset = end
                self._next += count
                return count
            self._is_broken = True
            tally.note(f"token {self._next} of seed {script.seed} was next, and {text[:40]!r} came")
        return self._place(script, text, tally)

    def _place(self, script: Script, text: bytes, tally: Tally) -> int:
        """Find the place of each token once something is wrong with the answer."""
        count = 0
        for word in text.split():
            match = _TOKEN.fullmatch(word)
            index = -1 if match is None else int(match[1])
            if not 0 <= index < script.tokens or token(script.seed, index).strip().encode() != word:
                tally.foreign += 1
            elif index >= self._next:
                tally.lost += index - self._next
                room = _MAX_MISSING - len(self._missing)
                self._missing.update(range(self._next, min(index, self._next + room)))
                self._next = index + 1
                count += 1
            elif index in self._missing:
                self._missing.remove(index)
                tally.lost -= 1
                tally.reordered += 1
            else:
                tally.doubled += 1
        return count
