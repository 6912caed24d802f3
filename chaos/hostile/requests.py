"""Bodies that attackers with a credential send."""

from __future__ import annotations

import json
from typing import Any

from holdfast.config.server import ServerConfig

MIB = 1024 * 1024
#: Just below the default bound of a body and of a message, which the gateway under attack has.
LARGEST = ServerConfig().max_body - 200


def chat(**fields: Any) -> dict[str, Any]:
    """Return a request that the attackers' own provider answers."""
    return {"model": "demo", "stream": True, "messages": [{"role": "user", "content": "hi"}], **fields}


def encoded(**fields: Any) -> bytes:
    return json.dumps(chat(**fields), separators=(",", ":")).encode()


def many_objects(size: int = LARGEST) -> bytes:
    """Return a request of `size` bytes whose messages are empty objects, which take far more when decoded."""
    return b'{"model":"demo","messages":[' + b"{}," * ((size - 40) // 3) + b"{}]}"


def deep(size: int = LARGEST) -> bytes:
    """Return a request with a field of nothing but opening brackets."""
    half = (size - 100) // 2
    return b'{"model":"demo","messages":[{"role":"user","content":"x"}],"d":' + b"[" * half + b"]" * half + b"}"


def long_text(size: int = LARGEST) -> bytes:
    """Return a good request with a long prompt."""
    return encoded(messages=[{"role": "user", "content": "x" * (size - 200)}], sim={"tokens": 1, "ttft_ms": 500})


def create(request: bytes, request_id: str) -> bytes:
    """Return the message that asks for a generation over a session."""
    return b'{"type":"create","request_id":"%b","request":%b}' % (request_id.encode(), request)
