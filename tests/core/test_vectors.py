"""Runs `protocol/vectors/`: the conformance cases that implementations in all languages share."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from holdfast.core.entries import EndBody, Position
from holdfast.core.log import Cursor, Log
from holdfast.core.session import client, server
from holdfast.core.session import messages as m
from holdfast.core.session.framing import SESSION_FRAMING
from holdfast.errors import InvalidMessage

VECTORS = Path(__file__).resolve().parents[2] / "protocol" / "vectors"
FILES = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(VECTORS.glob("*.json"))}

Json = dict[str, Any]


def cases(kind: str) -> list[Any]:
    return [
        pytest.param(stem, case, id=f"{stem}-{case['name']}")
        for stem, file in FILES.items()
        if file["kind"] == kind
        for case in file["cases"]
    ]


def compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def without_nothing(fields: Json) -> Json:
    return {name: value for name, value in fields.items() if value is not None}


def test_every_file_is_run_and_every_case_has_a_name_of_its_own() -> None:
    assert {file["kind"] for file in FILES.values()} == {"messages", "client-session", "server-session"}
    for file in FILES.values():
        names = [case["name"] for case in file["cases"]]
        assert len(names) == len(set(names)) > 0


@pytest.mark.parametrize(("stem", "case"), cases("messages"))
def test_message(stem: str, case: Json) -> None:
    decode: Callable[[str], Any] = {
        "messages-client": m.decode_client_message,
        "messages-server": m.decode_server_message,
    }[stem]
    if "error" in case:
        with pytest.raises(InvalidMessage) as caught:
            decode(case["text"])
        assert caught.value.code == case["error"]
    else:
        assert json.loads(m.encode(decode(case["text"]))) == case["message"]


# -- the client's side ----------------------------------------------------------------------------------


class ClientRunner:
    def __init__(self, options: Json) -> None:
        self.session = client.ClientSession(client="vectors/1", rng=random.Random(0), **options)
        self.now = 1000.0
        self.streams: dict[str, client.ClientStream] = {}

    def run(self, step: Json) -> tuple[list[Json], list[Json]]:
        """Return the events and the messages that one step brings about."""
        events = getattr(self, step["op"])(step) or []
        return [self.describe(event) for event in events], [
            json.loads(message) for message in self.session.data_to_send()
        ]

    def connect(self, step: Json) -> None:
        self.session.connection_made(self.now)

    def drop(self, step: Json) -> None:
        self.session.connection_lost()

    def receive(self, step: Json) -> list[client.Event]:
        return self.session.receive_text(step.get("text") or compact(step["message"]), self.now)

    def advance(self, step: Json) -> list[client.Event]:
        end = self.now + step["seconds"]
        events: list[client.Event] = []
        while (deadline := self.session.next_deadline()) is not None and deadline <= end:
            self.now = max(self.now, deadline)
            events += self.session.handle_timeout(self.now)
        self.now = end
        return events

    def sleep(self, step: Json) -> None:
        self.now += step["seconds"]

    def create(self, step: Json) -> None:
        request = compact(step["request"]).encode()
        self.streams[step["as"]] = self.session.create(step["request_id"], request, window=step.get("window"))

    def attach(self, step: Json) -> None:
        options = {key: step[key] for key in ("after", "epoch", "window") if key in step}
        self.streams[step["as"]] = self.session.attach(step["stream"], **options)

    def cancel(self, step: Json) -> list[client.Event]:
        return self.session.cancel(self.streams[step["stream"]])

    def detach(self, step: Json) -> None:
        self.session.detach(self.streams[step["stream"]])

    def consume(self, step: Json) -> None:
        self.session.consume(self.streams[step["stream"]], step["bytes"])

    def name(self, stream: client.ClientStream) -> str:
        (name,) = [name for name, known in self.streams.items() if known is stream]
        return name

    def describe(self, event: client.Event) -> Json:
        match event:
            case client.Welcomed():
                return {"event": "welcomed", "resumed": [self.name(stream) for stream in event.resumed]}
            case client.StreamAccepted():
                return {"event": "accepted", "stream": self.name(event.stream), "duplicate": event.duplicate}
            case client.StreamQueued():
                fields = {"retry_in": event.retry_in, "attempt": event.attempt, "code": event.code}
                queued = {"event": "queued", "stream": self.name(event.stream), "position": event.position}
                return queued | without_nothing(fields)
            case client.EntriesReceived():
                payloads = [json.loads(payload) for payload in event.payloads]
                last = event.stream.last_seq
                return {
                    "event": "entries",
                    "stream": self.name(event.stream),
                    "payloads": payloads,
                    "last_seq": last,
                }
            case client.StreamEnded():
                return {"event": "ended", "stream": self.name(event.stream), "status": event.end.status}
            case client.StreamFailed():
                return {"event": "failed", "stream": self.name(event.stream), "code": event.error.code}
            case client.StreamDeferred():
                return {"event": "deferred", "stream": self.name(event.stream), "code": code_of(event)}
            case client.SessionError():
                return {"event": "session_error", "code": code_of(event)}
            case client.GoawayReceived():
                window = list(event.window_ms)
                return {"event": "goaway", "reason": event.reason, "window_ms": window, "streams": event.streams}
            case client.StreamReturned():
                return {"event": "returned", "stream": self.name(event.stream)}
            case client.ConnectionFailed():
                return {"event": "connection_failed"}


def code_of(event: client.SessionError | client.StreamDeferred) -> str:
    # A code of a later version is kept in the message of the error that stands for it.
    known = event.error.code != "stream_failed"
    return event.error.code if known else event.error.message.partition(":")[0]


def filled(step: Json) -> Json:
    filled: Json = json.loads(json.dumps(step).replace("FILL", "x" * step["fill"])) if "fill" in step else step
    return filled


@pytest.mark.parametrize(("stem", "case"), cases("client-session"))
def test_client_session(stem: str, case: Json) -> None:
    runner = ClientRunner(case.get("options", {}))
    for number, step in enumerate(map(filled, case["steps"])):
        events, sent = runner.run(step)
        assert (events, sent) == (step.get("events", []), step.get("send", [])), f"step {number}: {step['op']}"


# -- the server's side ----------------------------------------------------------------------------------


class ServerRunner:
    def __init__(self, options: Json) -> None:
        self.session = server.ServerSession(
            negotiated=options.get("negotiated", True), max_streams=options.get("max_streams", 16)
        )
        self.given: dict[str, Json] = options.get("streams", {})
        self.logs: dict[str, Log] = {}
        self.entries: list[bytes] = []  # what was read from the logs

    def log(self, stream: str) -> Log:
        log = self.logs.get(stream)
        if log is None:
            log = self.logs[stream] = Log(stream, max_bytes=1_000_000)
            given = self.given.get(stream, {"entries": [0, 1, 2]})
            log.append([compact(entry).encode() for entry in given["entries"]])
            if "end" in given:
                log.seal(msgspec.convert(given["end"], EndBody))
        return log

    def run(self, step: Json) -> tuple[list[Json], list[Json]]:
        events = [self.describe(event) for event in getattr(self, step["op"])(step) or [] if event is not None]
        sent = [json.loads(text) for text in [*self.session.data_to_send(), *self.entries]]
        self.entries.clear()
        return events, sent

    def receive(self, step: Json) -> list[server.Event | None]:
        return [self.session.receive_text(step.get("text") or compact(step["message"]))]

    def receive_binary(self, step: Json) -> list[server.Event | None]:
        return [self.session.receive_binary()]

    def hold(self, step: Json) -> None:
        self.session.hold()

    def resume(self, step: Json) -> list[server.Event]:
        return list(self.session.resume())

    def send(self, step: Json) -> None:
        self.session.send(m.decode_server_message(compact(step["message"])))

    def attach(self, step: Json) -> None:
        cursor = self.log(step["stream"]).cursor(Position(step.get("after", -1)), credit=step.get("credit"))
        self.session.attach(step["stream"], cursor)

    def append(self, step: Json) -> None:
        self.log(step["stream"]).append([compact(payload).encode() for payload in step["payloads"]])

    def read(self, step: Json) -> None:
        cursor = self.session.cursors.get(step["stream"])
        if cursor is None:
            return
        message = cursor.read(SESSION_FRAMING, 1000)
        if message is not None:
            self.entries.append(message)
        if cursor.is_done:
            self.session.retire(step["stream"])

    def stream_of(self, cursor: Cursor) -> str:
        return cursor.log.stream.decode()

    def describe(self, event: server.Event) -> Json:
        match event:
            case server.HelloReceived():
                streams = [json.loads(m.encode(resume)) for resume in event.streams]
                fields: dict[str, Any] = {"client": event.client, "session": event.session, "streams": streams}
                return without_nothing({"event": "hello", **fields})
            case server.CreateReceived():
                fields = {"request_id": event.request_id, "credit": event.credit}
                return without_nothing({"event": "create", "request": json.loads(event.request), **fields})
            case server.AttachReceived():
                return {"event": "attach", **json.loads(m.encode(event.resume))}
            case server.DetachReceived():
                return {"event": "detach", "stream": self.stream_of(event.cursor)}
            case server.CancelReceived():
                return without_nothing({"event": "cancel", "stream": event.stream, "request_id": event.request_id})
            case server.CursorsMoved():
                moved = [self.stream_of(cursor) for cursor in event.cursors]
                return {"event": "moved", "cursors": moved, "ended": event.ended}
            case server.CloseRequired():
                return {"event": "close", "code": event.code, "reason": event.reason}


def comparable(sent: Json, expected: Json) -> Json:
    if sent["type"] != "error":
        return sent
    return {key: value for key, value in sent.items() if key in expected or key not in ("message", "retryable")}


@pytest.mark.parametrize(("stem", "case"), cases("server-session"))
def test_server_session(stem: str, case: Json) -> None:
    runner = ServerRunner(case.get("options", {}))
    for number, step in enumerate(case["steps"]):
        events, sent = runner.run(step)
        expected = step.get("send", [])
        sent = [comparable(*pair) for pair in zip(sent, expected, strict=False)] + sent[len(expected) :]
        assert (events, sent) == (step.get("events", []), expected), f"step {number}: {step['op']}"
