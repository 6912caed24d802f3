"""Whatever a peer says, decoders accept it or raise the one documented error, and sessions never raise."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.log import Log
from holdfast.core.session import messages as m
from holdfast.core.session.client import ClientSession
from holdfast.core.session.client import State as ClientState
from holdfast.core.session.framing import SESSION_FRAMING
from holdfast.core.session.server import MAX_INVALID_MESSAGES, CloseRequired, ServerSession
from holdfast.core.session.server import State as ServerState
from holdfast.errors import InvalidMessage

VECTORS = Path(__file__).resolve().parents[2] / "protocol" / "vectors"
VALID = [
    case["text"]
    for stem in ("messages-client", "messages-server")
    for case in json.loads((VECTORS / f"{stem}.json").read_text(encoding="utf-8"))["cases"]
    if "message" in case and len(case["text"]) < 1000
]
TYPES = sorted({json.loads(text)["type"] for text in VALID})
FIELDS = sorted({name for text in VALID for name in json.loads(text)})

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.integers()
    | st.floats(allow_nan=False)
    | st.sampled_from(["", "r1", "st_1", "st_2", "s1", "running", "refused", "completed", "draining"])
    | st.text(max_size=8)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["stream", "st_1", "after", "status", "code", "message"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)
OBJECTS = st.builds(
    lambda type_, fields: json.dumps({"type": type_, **fields}),
    st.sampled_from(TYPES),
    st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=5),
)


@st.composite
def damaged(draw: st.DrawFn) -> str:
    """A valid message with a piece replaced."""
    text: str = draw(st.sampled_from(VALID))
    start = draw(st.integers(0, len(text)))
    stop = draw(st.integers(start, min(len(text), start + 6)))
    return text[:start] + draw(st.text(max_size=4)) + text[stop:]


TEXTS = st.text(max_size=40) | st.sampled_from(VALID) | damaged() | OBJECTS


@pytest.mark.parametrize("decode", [m.decode_client_message, m.decode_server_message])
@given(text=TEXTS | st.binary(max_size=40))
def test_decoder_accepts_or_raises_the_documented_error(decode: Callable[[Any], Any], text: str | bytes) -> None:
    try:
        message = decode(text)
    except InvalidMessage:
        return
    said = m.encode(message)
    assert m.encode(decode(said)) == said


@given(negotiated=st.booleans(), starts=st.booleans(), texts=st.lists(TEXTS, max_size=30))
def test_server_session_takes_anything(negotiated: bool, starts: bool, texts: list[str]) -> None:
    session = ServerSession(negotiated=negotiated, max_streams=2)
    if starts:
        session.receive_text('{"type":"hello","version":1}')
        for stream, credit in (("st_1", None), ("st_2", 3)):
            log = Log(stream, max_bytes=1000)
            log.append([b"1", b"22", b"333"])
            session.attach(stream, log.cursor(credit=credit))
    errors = 0
    for text in texts:
        event = session.receive_text(text)
        for answer in session.data_to_send():
            errors += isinstance(m.decode_server_message(answer), m.Error)
        for cursor in session.cursors.values():
            cursor.read(SESSION_FRAMING, 10)
            assert -1 <= cursor.consumed < cursor.position <= 3
        assert isinstance(event, CloseRequired) == (session.state is ServerState.CLOSED)
        if isinstance(event, CloseRequired):
            assert event.code == 4400
            assert errors >= (MAX_INVALID_MESSAGES if starts else 1)
            return


@given(starts=st.booleans(), texts=st.lists(TEXTS, max_size=30))
def test_client_session_takes_anything(starts: bool, texts: list[str]) -> None:
    session = ClientSession(client="test/1", rng=random.Random(0))
    session.create("r1", b"{}", window=10)
    session.attach("st_1", window=10)
    session.connection_made(0.0)
    if starts:
        limits, heartbeat = m.Limits(1, 1, 1), m.Heartbeat(1, 1)
        states = [m.StreamState("st_1", "running")]
        session.receive_text(m.encode(m.Welcome(1, "s1", "x", heartbeat, limits, streams=states)), 0.0)
    for number, text in enumerate(texts):
        session.receive_text(text, float(number))
        session.handle_timeout(float(number))
        for said in session.data_to_send():
            m.decode_client_message(said)
        if session.state is ClientState.DISCONNECTED:
            session.connection_made(float(number))
