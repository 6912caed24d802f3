"""No branch on the name of a dialect or a provider: what differs between APIs is a method of their dialects."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.dialects.table import DIALECTS

SRC = Path(__file__).resolve().parents[2] / "src"

#: The table and what asks it compare names: whether two dialects are the same is their whole matter.
MAY_COMPARE = {"holdfast/dialects/table.py", "holdfast/dialects/endpoint.py"}
#: What a dialect or provider is called, in the objects of the gateway.
NAMING = {"name", "dialect", "api", "provider"}
#: Vendors that have an API or a server of their own.
VENDORS = {
    "anthropic",
    "azure",
    "bedrock",
    "claude",
    "gemini",
    "gpt",
    "groq",
    "mistral",
    "ollama",
    "openai",
    "vllm",
}
NAMES = {*DIALECTS.names, *VENDORS}


def branches(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and text of each branch on a name: comparison, `match`, prefix, key of a table, `isinstance`."""
    for node in ast.walk(tree):
        match node:
            case ast.Compare(ops=operators):
                operands = [node.left, *node.comparators]
                is_equality = any(isinstance(operator, ast.Eq | ast.NotEq) for operator in operators)
                if any(map(is_named, operands)) or (is_equality and any(map(is_naming, operands))):
                    yield node.lineno, ast.unparse(node)
            case ast.Match(subject=subject, cases=cases):
                patterns = [part for case in cases for part in ast.walk(case.pattern)]
                values = [part.value for part in patterns if isinstance(part, ast.MatchValue)]
                if is_naming(subject) or any(map(is_named, values)):
                    yield node.lineno, f"match {ast.unparse(subject)}"
            case ast.Call(func=ast.Attribute(attr="startswith" | "endswith" | "removeprefix"), args=[prefix, *_]):
                if is_named(prefix):
                    yield node.lineno, ast.unparse(node)
            case ast.Call(func=ast.Name(id="isinstance"), args=[_, cls]):
                if any(isinstance(part, ast.Name) and part.id.endswith("Dialect") for part in ast.walk(cls)):
                    yield node.lineno, ast.unparse(node)
            case ast.Dict(keys=keys) if any(key is not None and is_named(key) for key in keys):
                yield node.lineno, ast.unparse(node)


def is_named(node: ast.expr) -> bool:
    """Whether it is such a name, written out, or a collection with one."""
    if isinstance(node, ast.Constant):
        text = node.value.decode("latin-1") if isinstance(node.value, bytes) else node.value
        return isinstance(text, str) and text.lower().rstrip("-/") in NAMES
    return isinstance(node, ast.Tuple | ast.List | ast.Set) and any(map(is_named, node.elts))


def is_naming(node: ast.expr) -> bool:
    """Whether it is the attribute that holds such a name."""
    return isinstance(node, ast.Attribute) and node.attr in NAMING


def test_no_branch_of_the_gateway_is_on_a_name() -> None:
    found = []
    for path in sorted(SRC.rglob("*.py")):
        place = path.relative_to(SRC).as_posix()
        if place not in MAY_COMPARE:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            found += [f"{place}:{line}: {text}" for line, text in branches(tree)]
    assert found == []


@pytest.mark.parametrize(
    "planted",
    [
        'if api == "chat": pass',
        'while "chat" != provider.api: pass',
        'x = 1 if vendor in ("openai", "other") else 2',
        'x = b"anthropic" in headers',
        "if ask.dialect == other: pass",
        "x = dialect.name != 'echo'",
        'x = model.startswith("gpt-")',
        'x = model.startswith("claude")',
        "x = isinstance(dialect, ChatDialect)",
        "x = isinstance(dialect, (Echo, chat.ChatDialect, ChatDialect))",
        'x = {"chat": 1}[api]',
        "match provider.api:\n    case _: pass",
        'match text:\n    case "a" | "chat": pass',
    ],
)
def test_planted_branch_is_found(planted: str) -> None:
    assert len(list(branches(ast.parse(planted)))) == 1


@pytest.mark.parametrize(
    "harmless",
    [
        'name = "chat"',
        'x = dialects.get("chat")',
        "if provider.api not in dialects.names: pass",
        "if endpoint.accepts(ask.dialect): pass",
        'x = text.startswith("st_")',
        "match event:\n    case Created(name): pass",
        'x = isinstance(body, dict) or {**body, "a": 1}',
    ],
)
def test_harmless_line_is_not(harmless: str) -> None:
    assert list(branches(ast.parse(harmless))) == []
