"""What a `WebSocketConnection` reports of the peer."""

from __future__ import annotations

from typing import TypeAlias

from msgspec import Struct


class TextMessage(Struct, frozen=True, gc=False):
    """A whole text message, which is valid UTF-8."""

    data: str


class BinaryMessage(Struct, frozen=True, gc=False):
    """A whole binary message."""

    data: bytes


class PingReceived(Struct, frozen=True, gc=False):
    """The peer sent a Ping. Its Pong is already queued."""

    payload: bytes


class PongReceived(Struct, frozen=True, gc=False):
    """The peer sent a Pong, whether we had sent a Ping or not."""

    payload: bytes


class CloseReceived(Struct, frozen=True, gc=False):
    """The peer started or answered the closing handshake; `code` is 1005 if its Close frame had none.

    The answer is already queued, unless our own Close frame went first.
    """

    code: int
    reason: str


class ConnectionFailed(Struct, frozen=True, gc=False):
    """The peer broke the protocol, or (`code` 1006) its bytes ended without a Close frame.

    Except for 1006, a Close frame with this code is already queued, unless our own Close frame went first.
    """

    code: int
    reason: str


Event: TypeAlias = TextMessage | BinaryMessage | PingReceived | PongReceived | CloseReceived | ConnectionFailed
