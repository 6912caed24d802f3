"""Judges a run by what was written down: clients' journals, the provider's log, and the faults with their times.

It knows the rule of the simulated text and the documented error codes, and nothing of how Holdfast works. Journals
hold, for each request: `begin` (with the plan), `stream` (its id), `read` (a reading begins behind entry `after`),
`got` (entries from `seq` on), `lost` (the connection broke), `end`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

from chaos.journal import Record

# docs/reference/simulate.md, "The text": token i of a seed is a word and the index.
_VOCABULARY = """
amber anchor apple arrow basil beach birch bloom brook cabin candle canyon cedar cliff cloud clover
comet coral crane dawn delta ember falcon fern field flint forest garden glade granite harbor hazel
heron hill honey island ivory jasper juniper lake lantern lemon lily maple marble meadow mist moss
north oak ocean olive orchard pearl pebble pine quartz rain reed river robin sage stone willow
"""
_WORDS = _VOCABULARY.split()

_BROKEN = {"upstream_reset", "upstream_truncated"}
#: What a fault of the request itself may end it with. A fault that is not here explains nothing.
REQUEST_CODES: dict[str, set[str]] = {
    "stall": {"idle_timeout", "first_byte_timeout"},
    "no_answer": {"first_byte_timeout"},
    "end_early": _BROKEN,
    "cut": _BROKEN,
    "reset": {"upstream_reset"},
    "status": {"upstream_status"},
    "error_event": {"upstream_error"},
}
#: What a fault of the provider's link may end a stream with. One that only slows explains nothing.
LINK_CODES = _BROKEN | {
    "upstream_connect_error",
    "connect_timeout",
    "pool_timeout",
    "first_byte_timeout",
    "idle_timeout",
    "circuit_open",
}
BREAKING = {"cut", "reset", "reset_at", "black_hole"}
#: Faults of a link in which bytes arrive late.
HOLDING = {"black_hole", "throttle", "delay"}
#: Seconds after a fault in which it may still hit a request that began later. A silence is only noticed by the
#: deadlines that are configured for the run; the end of a connection, when a link that is slowed lets it through.
AFTERMATH = {"black_hole": 6.0, "goaway": 3.5}
_AFTERMATH = 1.0
#: Seconds that a link may hold back what was said before the other end died.
HELD_BACK = 8.0


def token(seed: int, i: int) -> str:
    """Return token `i` of a seed, by the rule of the reference."""
    n = (i + 1) % 65521
    word = _WORDS[(seed + 1) % 65521 * (n * n % 65521) * 40503 % 65521 % 64]
    return (" " if i else "") + word + str(i)


@dataclass
class Verdict:
    """The sums, and each finding in words."""

    streams: int = 0
    tokens: int = 0
    lost: int = 0
    doubled: int = 0
    reordered: int = 0
    billed_twice: int = 0
    unexplained: int = 0
    told_lost: int = 0
    #: Asked for again of a new process, which cannot know what the old one knew.
    asked_anew: int = 0
    readings: int = 0
    endings: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        return self.streams > 0 and not any(
            (self.lost, self.doubled, self.reordered, self.billed_twice, self.unexplained)
        )

    def __str__(self) -> str:
        return (
            f"chaos: {self.streams} streams, {self.tokens} tokens; lost {self.lost}, doubled {self.doubled}, "
            f"reordered {self.reordered}, billed twice {self.billed_twice}, unexplained {self.unexplained}; "
            f"told lost with their process {self.told_lost}"
        )


class _Stream:
    """One request as its client saw it."""

    def __init__(self, begin: Record) -> None:
        self.request: str = begin["request"]
        self.plan: Record = begin["plan"]
        self.client: str = begin["client"]
        self.began: float = begin["at"]
        self.identified: float | None = None
        self.readings: list[tuple[int, list[tuple[int, str]]]] = []
        self.end: Record | None = None
        self.oddities: Counter[str] = Counter()

    def take(self, record: Record) -> None:
        event = record["event"]
        if self.end is not None:
            self.oddities[f"{event} after the end"] += 1
        elif event == "stream":
            self.identified = record["at"]
        elif event == "read":
            self.readings.append((record["after"], []))
        elif event == "got":
            if not self.readings:
                self.oddities["entries before any reading"] += 1
                return
            self.readings[-1][1].extend(enumerate(record["texts"], record["seq"]))
        elif event == "end":
            self.end = record


def check(journals: Iterable[Iterable[Record]], provider: Iterable[Record], faults: Iterable[Record]) -> Verdict:
    """Judge a run."""
    verdict = Verdict()
    weather = _Weather(faults)
    for journal in journals:
        streams: dict[str, _Stream] = {}
        for record in journal:
            request = record["request"]
            if record["event"] == "begin":
                if request in streams:
                    streams[request].oddities["begun twice"] += 1
                else:
                    streams[request] = _Stream(record)
            elif request in streams:
                streams[request].take(record)
            else:
                _find(verdict, "unexplained", 1, f"{request}: {record['event']} before its begin")
        for stream in streams.values():
            _check_stream(stream, verdict, weather)
    _check_bills(provider, verdict, weather)
    return verdict


def _find(verdict: Verdict, what: str, count: int, finding: str) -> None:
    if count:
        setattr(verdict, what, getattr(verdict, what) + count)
        verdict.findings.append(f"{what.replace('_', ' ')} {count}: {finding}")


# -- what was delivered --------------------------------------------------------------------------------


def _check_stream(stream: _Stream, verdict: Verdict, weather: _Weather) -> None:
    verdict.streams += 1
    where = f"{stream.request} ({stream.plan['model']})"
    for oddity, times in stream.oddities.items():
        _find(verdict, "unexplained", 1, f"{where}: {oddity}, {times} times")
    delivered: dict[int, str] = {}
    wrong = Counter[str]()
    missing: set[int] = set()
    for after, entries in stream.readings:
        verdict.readings += 1
        wrong.update(_check_reading(after, entries))
        missing |= _missing(after, entries)
        for seq, text in entries:
            if delivered.setdefault(seq, text) != text:
                _find(verdict, "doubled", 1, f"{where}: entry {seq} was {delivered[seq]!r}, and later {text!r}")
    end = stream.end
    if end is not None and end["seq"] is not None:
        missing |= set(range(end["seq"])) - set(delivered)
        wrong["doubled"] += sum(seq >= end["seq"] for seq in delivered)
    wrong["lost"] = len(missing)
    texts = _check_texts(stream, delivered, is_whole=end is not None and end["status"] == "completed")
    verdict.tokens += texts.pop("tokens", 0)
    _find(verdict, "unexplained", texts.pop("foreign", 0), f"{where}: text that is not this stream's")
    for what in ("lost", "doubled", "reordered"):
        # The same fault shows in the numbers and in the text: it counts once.
        _find(
            verdict,
            what,
            max(wrong[what], texts[what]),
            f"{where}: by number {wrong[what]}, by text {texts[what]}",
        )
    _check_end(stream, verdict, weather, where)


def _check_reading(after: int, entries: list[tuple[int, str]]) -> Counter[str]:
    """A reading has each number once, and in order."""
    numbers = [seq for seq, _ in entries]
    seen = set(numbers)
    first_times = list(dict.fromkeys(numbers))
    return Counter(
        doubled=len(numbers) - len(seen) + sum(seq <= after for seq in seen),
        reordered=sum(later < earlier for earlier, later in pairwise(first_times)),
    )


def _missing(after: int, entries: list[tuple[int, str]]) -> set[int]:
    """What a reading skipped, from the entry asked for; that another reading brought it later mends nothing."""
    seen = {seq for seq, _ in entries}
    return set(range(after + 1, max(seen, default=after))) - seen


def _check_texts(stream: _Stream, delivered: dict[int, str], *, is_whole: bool) -> Counter[str]:
    """The text is tokens 0, 1, 2, ... of this stream's seed, and all of them if it is whole."""
    sim = stream.plan["sim"]
    index = {token(sim["seed"], i): i for i in range(sim["tokens"])}
    texts = [delivered[seq] for seq in sorted(delivered) if delivered[seq]]
    places = [index[text] for text in texts if text in index]
    first_times = list(dict.fromkeys(places))
    wanted = sim["tokens"] if is_whole else max(places, default=-1) + 1
    return Counter(
        tokens=len(first_times),
        foreign=len(texts) - len(places),
        lost=wanted - len(first_times),
        doubled=len(places) - len(first_times),
        reordered=sum(later < earlier for earlier, later in pairwise(first_times)),
    )


# -- how it ended --------------------------------------------------------------------------------------


def _check_end(stream: _Stream, verdict: Verdict, weather: _Weather, where: str) -> None:
    end = stream.end
    if end is None:
        verdict.endings["none"] += 1
        _find(verdict, "unexplained", 1, f"{where}: it has no end: it hangs, or its client was never run again")
        return
    status, code = end["status"], end["code"]
    verdict.endings[status if code is None else f"{status} {code}"] += 1
    if status == "completed":
        return
    if weather.is_lost_with_process(stream, end["at"], code):
        verdict.told_lost += 1
    elif not weather.explains(stream, end["at"], status, code):
        _find(verdict, "unexplained", 1, f"{where}: ended {status} {code} at {end['at']}: {end.get('message')}")


class _Weather:
    """The faults, and what they may have caused."""

    def __init__(self, faults: Iterable[Record]) -> None:
        self.faults = list(faults)
        self.deaths = sorted(
            (fault["at"], fault["kind"])
            for fault in self.faults
            if fault["target"] == "gateway" and fault["kind"] in ("kill", "term")
        )

    def is_lost_with_process(self, stream: _Stream, until: float, code: str | None) -> bool:
        """Whether the process that had this stream died before its client was told so."""
        if code == "unknown_stream":
            since = stream.began
            if stream.identified is not None:
                since = max(since, stream.identified - HELD_BACK)
            return any(since <= at <= until for at, _ in self.deaths)
        if code in ("cancelled", "draining"):
            # Only a process that is told to end can still say so itself.
            return any(kind == "term" and stream.began <= at <= until for at, kind in self.deaths)
        return False

    def explains(self, stream: _Stream, until: float, status: str, code: str | None) -> bool:
        began = stream.began
        if status == "given_up":
            return any(
                (fault["target"] == "client_link" and fault["kind"] in BREAKING)
                or fault["target"] == "gateway"
                or (fault["target"] == "client" and fault["name"] == stream.client)
                for fault in self._within(began, until)
            )
        own = stream.plan["sim"].get("fault")
        if own is not None and code in REQUEST_CODES.get(own["kind"], ()):
            return True
        if code not in LINK_CODES:
            return False
        # GOAWAY to HTTP/1.1: the provider closes its idle connections. A request that is on its way to one is cut,
        # and is not asked again, since nobody can tell that it was not processed.
        meets_end = stream.plan["model"] == "over-http1" and (status, code) == ("failed", "upstream_reset")
        return any(
            (fault["target"] == "provider_link" and fault["kind"] in BREAKING)
            or (meets_end and fault["target"] == "provider" and fault["kind"] == "goaway")
            for fault in self._within(began, until)
        )

    def was_process_lost(self, earlier: float, later: float) -> bool:
        """Whether a process that made the earlier of two generations may have been gone at the later one.

        It may have taken the request until it had ended. What it sent before that may have been held back on the
        provider's link, and have begun after it was gone.
        """
        for fault in self.faults:
            if fault["target"] == "gateway" and fault["kind"] == "ended" and fault["since"] <= later:
                gone = fault["at"]
                if earlier <= gone or (earlier <= gone + HELD_BACK and self._is_held_back(gone, earlier)):
                    return True
        return False

    def _is_held_back(self, since: float, until: float) -> bool:
        return any(
            fault["target"] == "provider_link" and fault["kind"] in HOLDING for fault in self._within(since, until)
        )

    def _within(self, began: float, until: float) -> Iterable[Record]:
        for fault in self.faults:
            over = max(fault["at"], fault.get("until", 0.0)) + AFTERMATH.get(fault["kind"], _AFTERMATH)
            if fault["at"] <= until and began <= over:
                yield fault


# -- what it cost --------------------------------------------------------------------------------------


def _check_bills(provider: Iterable[Record], verdict: Verdict, weather: _Weather) -> None:
    """A generation that the provider began may be billed, whatever came of it; one request has one.

    The one exception is a request whose process was lost: the next process cannot know of it, and makes a stream
    of its own. What one stream asks for twice is never excused.
    """
    began: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for record in provider:
        if record["event"] == "began":
            began[record["key"]].append((record["at"], record["request_id"]))
    for key, generations in began.items():
        generations.sort()
        for (earlier, first), (later, second) in pairwise(generations):
            if first != second and weather.was_process_lost(earlier, later):
                verdict.asked_anew += 1
            else:
                found = f"{key}: {first} began at {earlier:.3f}, and {second} at {later:.3f}"
                _find(verdict, "billed_twice", 1, found)
