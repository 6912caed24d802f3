"""Write the generated parts of the documents: `python docs/generate.py`, or `--check` to find stale ones.

A generated part stands between `<!-- generated: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

from holdfast.errors import ERRORS, ConfigError, ConnectionLost, HoldfastError, ProtocolError, StreamFailed

ROOT = Path(__file__).resolve().parent.parent

#: Raised by the SDK or the command line, never sent.
_LOCAL = {ConfigError, ConnectionLost, ProtocolError, StreamFailed}

_PART = re.compile(r"(<!-- generated: ([a-z ]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def _sent() -> list[type[HoldfastError]]:
    return [cls for cls in ERRORS.values() if cls not in _LOCAL]


def error_table() -> str:
    rows = ["| code | HTTP | close | retry | meaning |", "|---|---|---|---|---|"]
    for cls in _sent():
        close = "" if cls.close_code is None else cls.close_code
        retry = "yes" if cls.retryable else "no"
        rows.append(f"| `{cls.code}` | {cls.http_status} | {close} | {retry} | {cls.meaning} |")
    return "\n".join(rows) + "\n"


def close_code_table() -> str:
    rows = ["| close code | error | connect again |", "|---|---|---|"]
    codes = sorted((cls.close_code, cls.code) for cls in _sent() if cls.close_code is not None)
    for close, code in codes:
        is_final = 4400 <= close <= 4499 or close == 1009
        rows.append(f"| {close} | `{code}` | {'no' if is_final else 'yes'} |")
    return "\n".join(rows) + "\n"


PARTS: dict[str, Callable[[], str]] = {"errors": error_table, "close codes": close_code_table}


def generate(text: str) -> str:
    """Return a document with its generated parts renewed. Raises KeyError for a part of an unknown name."""
    return _PART.sub(lambda match: match[1] + PARTS[match[2]]() + match[3], text)


def stale_documents(*, write: bool) -> list[Path]:
    """Return the documents whose generated parts differ from the code; with `write`, renew them."""
    stale = []
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        text = path.read_text(encoding="utf-8")
        renewed = generate(text)
        if renewed != text:
            stale.append(path.relative_to(ROOT))
            if write:
                path.write_text(renewed, encoding="utf-8")
    return stale


def main() -> int:
    check = sys.argv[1:] == ["--check"]
    stale = stale_documents(write=not check)
    for path in stale:
        print(f"{path}: {'is stale; run python docs/generate.py' if check else 'renewed'}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
