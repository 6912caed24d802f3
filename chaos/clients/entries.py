"""What an entry's JSON adds to the answer, read as an application would."""

from __future__ import annotations

from typing import Any


def text_of(data: Any) -> str:
    choices = data.get("choices") or []
    return (choices[0].get("delta") or {}).get("content") or "" if choices else ""


def code_of(body: Any) -> str | None:
    """Return the code of an error body, None if it has none."""
    error = body.get("error") if isinstance(body, dict) else None
    return error.get("code") if isinstance(error, dict) else None
