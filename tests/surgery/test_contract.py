"""What the packages promise to anybody who imports them."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("surgery", "locate", "edits")
FILES = sorted(path.relative_to(ROOT) for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
MAY_PRINT = {Path("surgery/__main__.py"), Path("surgery/commands/options.py"), Path("surgery/commands/terminal.py")}


def parsed(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def undocumented(tree: ast.Module) -> list[str]:
    """Public functions, classes and methods at the top of a module that have no docstring."""
    missing = []
    bodies: list[tuple[str, list[ast.stmt]]] = [("", tree.body)]
    while bodies:
        where, body = bodies.pop()
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and node.name[0] != "_":
                if not ast.get_docstring(node):
                    missing.append(where + node.name)
                if isinstance(node, ast.ClassDef):
                    bodies.append((f"{where}{node.name}.", node.body))
    return missing


def printing(tree: ast.Module) -> list[int]:
    """Lines that print or write to the standard streams."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [
        call.lineno
        for call in calls
        if (isinstance(call.func, ast.Name) and call.func.id == "print")
        or ast.unparse(call.func) in ("sys.stdout.write", "sys.stderr.write", "rich.print", "Console")
    ]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_name_of_all_is_there(package: str) -> None:
    module = importlib.import_module(package)
    assert len(module.__all__) >= 5
    assert len(set(module.__all__)) == len(module.__all__)
    assert not [name for name in module.__all__ if not hasattr(module, name)]


def test_the_files_are_found() -> None:
    assert {path.parts[0] for path in FILES} == set(PACKAGES)
    assert len(FILES) > 20


@pytest.mark.parametrize("path", FILES, ids=str)
def test_everything_public_says_what_it_is(path: Path) -> None:
    assert undocumented(parsed(path)) == []


@pytest.mark.parametrize("path", [path for path in FILES if path not in MAY_PRINT], ids=str)
def test_the_library_prints_nothing(path: Path) -> None:
    assert printing(parsed(path)) == []


def test_the_two_looks_can_see() -> None:
    bad = ast.parse("def f():\n    print(1)\nclass C:\n    def m(self):\n        sys.stderr.write('x')\n")
    assert undocumented(bad) == ["f", "C", "C.m"]
    assert printing(bad) == [2, 5]
    assert any(printing(parsed(path)) for path in MAY_PRINT)


@pytest.mark.parametrize("package", PACKAGES)
def test_the_packages_are_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()
