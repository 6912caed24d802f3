"""What an entry's JSON adds to the answer, read as an application would."""

from __future__ import annotations

from typing import Any


def text_of(data: Any) -> str:
    choices = data.get("choices") or []
    return (choices[0].get("delta") or {}).get("content") or "" if choices else ""


def code_of(body: Any) -> str | None:
    """Return the gateway's code of an error body, None if it has none.

    `code` is the provider's own where it has one; then the gateway's stands beside it.
    """
    error = body.get("error") if isinstance(body, dict) else None
    return error.get("holdfast_code") or error.get("code") if isinstance(error, dict) else None
