"""Imports point one way, and functions stay short."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import prunecli

ROOT = Path(prunecli.__file__).parent
# Each layer may import itself and those before it.
LAYERS = [
    {"errors", "units", "inputs", "cache", "facts", "ranks", "user_code", "arrays"},
    {"device", "collectives"},
    {"recipe.schema"},
    {"methods.base", "methods.table"},
    {"recipe"},
    {"checkpoint"},
    {"arch"},
    {"graph"},
    {"cost", "cost.count", "cost.measure"},
    {"surgery"},
    {"cost.budget", "cost.latency", "cost.allocation", "cost.dynamic"},
    {"methods"},
    {"model"},
    {"loading"},
    {"train"},
    {"exporters"},
    {"pipeline.checks"},
    {"pipeline"},
    {"render"},
    {"cli"},
    {"__main__"},
]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def layer_of(name: str) -> int:
    exact = [i for i, layer in enumerate(LAYERS) if name in layer]
    return exact[0] if exact else next(i for i, layer in enumerate(LAYERS) if name.partition(".")[0] in layer)


def imports_of(path: Path) -> list[str]:
    """Modules of the package that a file imports at run time."""
    tree = ast.parse(path.read_text())
    typing_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = [
        node.module.removeprefix("prunecli.")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node not in typing_only
        if node.module.startswith("prunecli.")
    ]
    return [f"cli.{n}" if n == "cli" else n for n in found]


FILES = [p for p in sorted(ROOT.rglob("*.py")) if module_name(p) != "__init__"]


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_point_one_way(path: Path) -> None:
    own = layer_of(module_name(path))
    assert [name for name in imports_of(path) if layer_of(name) > own] == []


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_functions_are_short(path: Path) -> None:
    functions = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef)]
    assert [f"{f.name}: {length}" for f in functions if (length := f.end_lineno - f.lineno + 1) > 60] == []


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_click_is_never_imported(path: Path) -> None:
    names = {a.name for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Import) for a in n.names}
    assert not any(name.partition(".")[0] == "click" for name in names)
