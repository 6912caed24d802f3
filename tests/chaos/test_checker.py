"""The checker finds what it is there to find: each planted fault, alone, in a run that is otherwise clean."""

from __future__ import annotations

from typing import Any

import pytest

from chaos.checker import Verdict, check, token
from holdfast_tools.simulate import text

TOKENS = 5
SEED = 7


def plan(**sim: Any) -> dict[str, Any]:
    return {"model": "over-http2", "sim": {"seed": SEED, "tokens": TOKENS, **sim}}


def entry(seq: int) -> str:
    """The entries of a whole answer: the role, the tokens, the finish, of which the end is number 7."""
    return token(SEED, seq - 1) if 1 <= seq <= TOKENS else ""


class Client:
    """Writes a journal of one request; every record is a tenth of a second after the one before."""

    def __init__(self, request: str = "r-1", at: float = 100.0, **sim: Any) -> None:
        self.request, self.at = request, at
        self.records: list[dict[str, Any]] = []
        self.write("begin", client="sdk", plan=plan(**sim))
        self.write("stream", stream=f"st-{request}")

    def write(self, event: str, **fields: Any) -> Client:
        self.at = round(self.at + 0.1, 3)
        self.records.append({"at": self.at, "event": event, "request": self.request, **fields})
        return self

    def read(self, *seqs: int, after: int = -1) -> Client:
        self.write("read", after=after)
        for seq in seqs:
            self.write("got", seq=seq, texts=[entry(seq)])
        return self

    def end(self, status: str = "completed", code: str | None = None, seq: int | None = None) -> Client:
        return self.write("end", status=status, code=code, seq=seq)


def fault(target: str, kind: str, at: float, **fields: Any) -> dict[str, Any]:
    return {"at": at, "target": target, "kind": kind, **fields}


def ended(since: float, at: float, *, kind: str = "kill") -> list[dict[str, Any]]:
    """A process that was told to end at `since`, and was gone at `at`."""
    return [fault("gateway", kind, since), fault("gateway", "ended", at, since=since)]


def generation(
    number: int,
    key: str = "r-1",
    at: float = 100.0,
    tokens: int = TOKENS,
    outcome: str = "completed",
    stream: str = "st-1",
) -> list[dict[str, Any]]:
    began = {"event": "began", "at": at, "number": number, "key": key, "request_id": stream}
    return [
        began,
        {"event": "ended", "at": at + 1, "number": number, "key": key, "outcome": outcome, "tokens": tokens},
    ]


def verdict_of(
    *clients: Client,
    provider: list[dict[str, Any]] | tuple[()] = (),
    faults: list[dict[str, Any]] | tuple[()] = (),
) -> Verdict:
    return check([client.records for client in clients], provider, faults)


def counts(verdict: Verdict) -> dict[str, int]:
    names = (
        "lost",
        "doubled",
        "reordered",
        "billed_twice",
        "unexplained",
        "told_lost",
        "asked_anew",
    )
    return {name: getattr(verdict, name) for name in names if getattr(verdict, name)}


def test_token_rule_is_the_provider_s() -> None:
    for seed in (0, 7, 65520, 65521, 4294967295):
        assert "".join(token(seed, i) for i in range(200)) == text.text(seed, 200)


def test_whole_stream_is_clean() -> None:
    verdict = verdict_of(Client().read(*range(7)).end(seq=7), provider=generation(1))
    assert verdict.is_clean
    assert counts(verdict) == {}
    assert str(verdict) == (
        "chaos: 1 streams, 5 tokens; lost 0, doubled 0, reordered 0, billed twice 0, unexplained 0; "
        "told lost with their process 0"
    )


def test_run_without_streams_is_not_clean() -> None:
    assert not verdict_of().is_clean


@pytest.mark.parametrize("seq", [None, 7])
def test_resume_behind_the_last_entry_is_clean(seq: int | None) -> None:
    client = Client().read(0, 1, 2).write("lost", reason="cut").read(3, 4, 5, 6, after=2).end(seq=seq)
    verdict = verdict_of(client)
    assert verdict.is_clean
    assert verdict.tokens == TOKENS


def test_repeated_reading_from_the_start_is_clean() -> None:
    verdict = verdict_of(Client().read(0, 1, 2).read(*range(7)).end())
    assert verdict.is_clean
    assert verdict.tokens == TOKENS


# -- planted faults ------------------------------------------------------------------------------------


def test_lost_entry_is_found() -> None:
    assert counts(verdict_of(Client().read(0, 1, 2, 4, 5, 6).end(seq=7))) == {"lost": 1}


def test_lost_entries_between_two_readings_are_found() -> None:
    assert counts(verdict_of(Client().read(0, 1).read(4, 5, 6, after=3).end(seq=7))) == {"lost": 2}


def test_resume_that_skips_is_found_without_the_text() -> None:
    client = Client().read(0, 1).write("read", after=1).write("got", seq=5, texts=[""])
    own_fault = {"kind": "cut", "after_tokens": 1}
    client.records[0]["plan"]["sim"]["fault"] = own_fault
    assert counts(verdict_of(client.end("incomplete", "upstream_reset"))) == {"lost": 3}


def test_lost_last_token_of_a_completed_stream_is_found() -> None:
    client = Client().read(0, 1, 2, 3, 4).write("got", seq=5, texts=[""])
    assert counts(verdict_of(client.end())) == {"lost": 1}


def test_lost_tail_before_the_end_is_found_by_its_number() -> None:
    client = Client(fault={"kind": "stall", "after_tokens": 4}).read(0, 1, 2)
    assert counts(verdict_of(client.end("incomplete", "idle_timeout", seq=5))) == {"lost": 2}


def test_lost_token_under_whole_numbers_is_found() -> None:
    client = Client().write("read", after=-1)
    for seq, text_ in enumerate(["", entry(1), entry(3), entry(4), entry(5), ""]):
        client.write("got", seq=seq, texts=[text_])
    assert counts(verdict_of(client.end(seq=6))) == {"lost": 1}


def test_doubled_entry_is_found() -> None:
    assert counts(verdict_of(Client().read(0, 1, 2, 2, 3, 4, 5, 6).end(seq=7))) == {"doubled": 1}


def test_entry_that_was_had_before_the_resume_is_found() -> None:
    assert counts(verdict_of(Client().read(0, 1, 2).read(2, 3, 4, 5, 6, after=2).end())) == {"doubled": 1}


def test_doubled_token_under_new_numbers_is_found() -> None:
    client = Client().write("read", after=-1)
    for seq, text_ in enumerate(["", *(entry(n) for n in (1, 2, 2, 3, 4, 5)), ""]):
        client.write("got", seq=seq, texts=[text_])
    assert counts(verdict_of(client.end(seq=8))) == {"doubled": 1}


def test_entry_that_changed_is_found() -> None:
    client = Client().read(0, 1, 2).write("read", after=-1).write("got", seq=0, texts=[""])
    for seq, text_ in ((1, entry(2)), (2, entry(2)), (3, entry(3)), (4, entry(4)), (5, entry(5)), (6, "")):
        client.write("got", seq=seq, texts=[text_])
    assert counts(verdict_of(client.end(seq=7))) == {"doubled": 1}


def test_reordered_entries_are_found() -> None:
    assert counts(verdict_of(Client().read(0, 1, 3, 2, 4, 5, 6).end(seq=7))) == {"reordered": 1}


def test_reordered_tokens_under_ordered_numbers_are_found() -> None:
    client = Client().write("read", after=-1)
    for seq, text_ in enumerate(["", *(entry(n) for n in (1, 3, 2, 4, 5)), ""]):
        client.write("got", seq=seq, texts=[text_])
    assert counts(verdict_of(client.end(seq=7))) == {"reordered": 1}


def test_text_of_another_stream_is_found() -> None:
    client = Client().read(0).write("got", seq=1, texts=["willow99"]).read(*range(2, 7), after=1)
    assert verdict_of(client.end()).unexplained == 1


def bills(*generations: list[dict[str, Any]], faults: list[dict[str, Any]] | tuple[()] = ()) -> dict[str, int]:
    records = [record for each in generations for record in each]
    return counts(verdict_of(Client().read(*range(7)).end(), provider=records, faults=faults))


def test_second_generation_is_found() -> None:
    assert bills(generation(1, tokens=2, outcome="cancelled"), generation(2, at=102.0)) == {"billed_twice": 1}


def test_second_generation_of_another_stream_is_found() -> None:
    assert bills(generation(1), generation(2, at=102.0, stream="st-2")) == {"billed_twice": 1}


def test_each_further_generation_is_found() -> None:
    assert bills(*[generation(n, at=100.0 + n) for n in range(4)]) == {"billed_twice": 3}


def test_second_generation_that_still_runs_is_found() -> None:
    assert bills(generation(1), generation(2, at=102.0)[:1]) == {"billed_twice": 1}


def test_second_generation_after_one_that_wrote_nothing_is_found() -> None:
    """A provider may charge for what it has begun."""
    assert bills(generation(1, tokens=0, outcome="failed"), generation(2, at=102.0)) == {"billed_twice": 1}


def test_generation_after_a_refusal_is_no_second_bill() -> None:
    refused = {"event": "refused", "at": 100.0, "number": 1, "key": "r-1", "request_id": "st-1", "fault": "status"}
    assert bills([refused], generation(2, at=102.0)) == {}


@pytest.mark.parametrize("kind", ["cut", "reset", "reset_at", "black_hole", "throttle"])
@pytest.mark.parametrize("target", ["client_link", "provider_link"])
def test_second_generation_is_found_in_any_weather(target: str, kind: str) -> None:
    weather = [fault(target, kind, 101.0, until=103.0)]
    assert bills(generation(1, tokens=2), generation(2, at=102.0), faults=weather) == {"billed_twice": 1}


@pytest.mark.parametrize("kind", ["kill", "term"])
def test_generation_asked_of_a_new_process_is_counted_apart(kind: str) -> None:
    lost = ended(100.5, 101.0, kind=kind)
    assert bills(generation(1), generation(2, at=102.0, stream="st-2"), faults=lost) == {"asked_anew": 1}


def test_generation_that_one_stream_asked_for_twice_is_found_though_a_process_was_lost() -> None:
    assert bills(generation(1), generation(2, at=102.0), faults=ended(100.5, 101.0)) == {"billed_twice": 1}


def test_generation_asked_twice_of_the_new_process_is_found() -> None:
    twice = generation(1, at=102.0), generation(2, at=103.0, stream="st-2")
    assert bills(*twice, faults=ended(100.5, 101.0)) == {"billed_twice": 1}


def test_generation_asked_twice_before_a_process_was_lost_is_found() -> None:
    twice = generation(1, at=100.2), generation(2, at=100.4, stream="st-2")
    assert bills(*twice, faults=ended(100.5, 101.0)) == {"billed_twice": 1}


def test_request_that_a_draining_process_took_last_is_lost_with_it() -> None:
    twice = generation(1, at=100.6), generation(2, at=103.0, stream="st-2")
    assert bills(*twice, faults=ended(100.5, 110.0, kind="term")) == {"asked_anew": 1}


def test_request_that_the_link_held_back_until_its_process_was_lost_is_lost_with_it() -> None:
    twice = generation(1, at=103.0), generation(2, at=104.0, stream="st-2")
    held = fault("provider_link", "black_hole", 100.0, until=102.9)
    assert bills(*twice, faults=[*ended(100.5, 101.0), held]) == {"asked_anew": 1}
    cut = fault("provider_link", "cut", 102.0)
    assert bills(*twice, faults=[*ended(100.5, 101.0), cut]) == {"billed_twice": 1}


def test_stream_without_end_is_found() -> None:
    assert counts(verdict_of(Client().read(0, 1, 2))) == {"unexplained": 1}


@pytest.mark.parametrize("event", ["got", "end", "read"])
def test_record_after_the_end_is_found(event: str) -> None:
    client = Client().read(*range(7)).end()
    client.write(event, seq=7, texts=[""], after=6, status="completed", code=None)
    assert counts(verdict_of(client)) == {"unexplained": 1}


@pytest.mark.parametrize(
    ("status", "code"), [("hung", "no_end_in_time"), ("crashed", "KeyError"), ("silent", "no_end")]
)
def test_client_that_found_no_end_is_found_in_any_weather(status: str, code: str) -> None:
    faults = [
        fault(target, kind, 100.0, until=110.0)
        for target, kind in (("client_link", "cut"), ("provider_link", "cut"), ("gateway", "kill"))
    ]
    client = Client(fault={"kind": "cut"}).read(0, 1).end(status, code)
    assert counts(verdict_of(client, faults=faults)) == {"unexplained": 1}


# -- endings and their causes --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("stall", "idle_timeout"),
        ("cut", "upstream_truncated"),
        ("reset", "upstream_reset"),
        ("status", "upstream_status"),
    ],
)
def test_failure_is_explained_by_the_request_s_own_fault_alone(kind: str, code: str) -> None:
    assert verdict_of(Client(fault={"kind": kind}).read(0, 1).end("incomplete", code)).is_clean
    assert counts(verdict_of(Client().read(0, 1).end("incomplete", code))) == {"unexplained": 1}
    assert counts(verdict_of(Client(fault={"kind": "drip"}).read(0, 1).end("incomplete", code))) == {
        "unexplained": 1
    }


def test_failure_is_explained_by_a_fault_of_the_provider_s_link() -> None:
    client = Client().read(0, 1).end("incomplete", "upstream_reset")
    assert verdict_of(client, faults=[fault("provider_link", "cut", 100.3)]).is_clean
    for other in (
        fault("provider_link", "cut", 150.0),
        fault("provider_link", "cut", 50.0),
        fault("provider_link", "throttle", 100.3, until=101.0),
        fault("client_link", "cut", 100.3),
        fault("gateway", "stop", 100.2, until=104.0),
    ):
        assert counts(verdict_of(client, faults=[other])) == {"unexplained": 1}


def test_goaway_explains_the_failure_of_what_was_on_its_way_to_an_idle_http1_connection_alone() -> None:
    goaway = [fault("provider", "goaway", 100.3)]
    for model, status, code, expected in (
        ("over-http1", "failed", "upstream_reset", {}),
        ("over-http1", "incomplete", "upstream_reset", {"unexplained": 1}),
        ("over-http1", "failed", "upstream_truncated", {"unexplained": 1}),
        ("over-http2", "failed", "upstream_reset", {"unexplained": 1}),
    ):
        client = Client().end(status, code)
        client.records[0]["plan"]["model"] = model
        assert counts(verdict_of(client, faults=goaway)) == expected
        assert counts(verdict_of(client)) == {"unexplained": 1}


def test_error_that_no_link_makes_is_unexplained() -> None:
    client = Client().read(0, 1).end("failed", "internal_error")
    assert counts(verdict_of(client, faults=[fault("provider_link", "cut", 100.3)])) == {"unexplained": 1}


def test_stream_of_a_killed_process_is_told_lost() -> None:
    client = Client().read(0, 1, 2).end("failed", "unknown_stream")
    verdict = verdict_of(client, faults=[fault("gateway", "kill", 100.4, until=101.0)])
    assert verdict.is_clean
    assert counts(verdict) == {"told_lost": 1}


@pytest.mark.parametrize("at", [80.0, 300.0])
def test_unknown_stream_without_a_death_in_its_life_is_unexplained(at: float) -> None:
    client = Client().read(0, 1, 2).end("failed", "unknown_stream")
    assert counts(verdict_of(client, faults=[fault("gateway", "kill", at)])) == {"unexplained": 1}


def test_unknown_stream_that_a_later_process_had_made_is_unexplained() -> None:
    client = Client()
    client.at = 150.0
    client.write("stream", stream="st-2").read(0, 1, 2).end("failed", "unknown_stream")
    assert counts(verdict_of(client, faults=[fault("gateway", "kill", 101.0)])) == {"unexplained": 1}


@pytest.mark.parametrize(("kind", "expected"), [("term", {"told_lost": 1}), ("kill", {"unexplained": 1})])
def test_cancelled_is_an_answer_of_a_process_that_was_told_to_end(kind: str, expected: dict[str, int]) -> None:
    client = Client().read(0, 1, 2).end("cancelled", "cancelled")
    assert counts(verdict_of(client, faults=[fault("gateway", kind, 100.4)])) == expected


def test_bare_client_gives_up_only_for_a_reason() -> None:
    client = Client().end("given_up", "not_accepted")
    assert verdict_of(client, faults=[fault("client_link", "reset", 100.1)]).is_clean
    assert counts(verdict_of(client, faults=[fault("client_link", "delay", 100.1)])) == {"unexplained": 1}
