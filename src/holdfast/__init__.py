"""Holdfast keeps LLM streams alive. This package exports the client SDK; the gateway is `holdfast serve`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from holdfast.errors import (
    AheadOfLog,
    Cancelled,
    ConfigError,
    ConnectionLost,
    Draining,
    DuplicateRequest,
    Forbidden,
    HoldfastError,
    InternalError,
    InvalidRequest,
    LogTrimmed,
    NotFound,
    Overloaded,
    PayloadTooLarge,
    ProtocolError,
    RateLimited,
    SessionSuperseded,
    StreamFailed,
    TooManyStreams,
    Unauthorized,
    UnknownEpoch,
    UnknownModel,
    UnknownStream,
    UpstreamError,
    UpstreamStatus,
    UpstreamTimeout,
)
from holdfast.version import __version__

if TYPE_CHECKING:
    from holdfast.client.aio import StreamingAIClient
    from holdfast.client.config import WebSocketConfig
    from holdfast.client.events import Chunk, ConnectionState, StreamEnd, StreamEvent, StreamQueued
    from holdfast.client.streams import EventStream, TextStream
    from holdfast.client.sync import SyncEventStream, SyncStreamingAIClient, SyncTextStream

__all__ = [
    "AheadOfLog",
    "Cancelled",
    "Chunk",
    "ConfigError",
    "ConnectionLost",
    "ConnectionState",
    "Draining",
    "DuplicateRequest",
    "EventStream",
    "Forbidden",
    "HoldfastError",
    "InternalError",
    "InvalidRequest",
    "LogTrimmed",
    "NotFound",
    "Overloaded",
    "PayloadTooLarge",
    "ProtocolError",
    "RateLimited",
    "SessionSuperseded",
    "StreamEnd",
    "StreamEvent",
    "StreamFailed",
    "StreamQueued",
    "StreamingAIClient",
    "SyncEventStream",
    "SyncStreamingAIClient",
    "SyncTextStream",
    "TextStream",
    "TooManyStreams",
    "Unauthorized",
    "UnknownEpoch",
    "UnknownModel",
    "UnknownStream",
    "UpstreamError",
    "UpstreamStatus",
    "UpstreamTimeout",
    "WebSocketConfig",
    "__version__",
]

# The gateway imports this package for its errors and its core, and must not pay for the client and its libraries
# (0.1 s and several MB): each name is imported when it is first used.
_MODULES = {
    "StreamingAIClient": "holdfast.client.aio",
    "WebSocketConfig": "holdfast.client.config",
    "Chunk": "holdfast.client.events",
    "ConnectionState": "holdfast.client.events",
    "StreamEnd": "holdfast.client.events",
    "StreamEvent": "holdfast.client.events",
    "StreamQueued": "holdfast.client.events",
    "EventStream": "holdfast.client.streams",
    "TextStream": "holdfast.client.streams",
    "SyncEventStream": "holdfast.client.sync",
    "SyncStreamingAIClient": "holdfast.client.sync",
    "SyncTextStream": "holdfast.client.sync",
}


def __getattr__(name: str) -> Any:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
