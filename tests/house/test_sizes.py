"""A file that has grown too long is split along the seams of what it does, before anybody has to search in it."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

#: Most lines of a file.
MOST = 500
#: What builds and wires decides nothing: it stays below this.
ROOT_BELOW = 250


def test_files_are_short() -> None:
    sizes = {
        path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for package in ("src", "tools/src")
        for path in (ROOT / package).rglob("*.py")
    }
    assert len(sizes) > 100
    bounds = dict.fromkeys(("src/holdfast/app.py", "src/holdfast/process.py"), ROOT_BELOW - 1)
    assert set(bounds) <= set(sizes)
    assert [f"{name}: {size} lines" for name, size in sorted(sizes.items()) if size > bounds.get(name, MOST)] == []
