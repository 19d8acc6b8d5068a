"""The house rules: imports run edits -> locate -> surgery, and nobody imports the door."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from jaxtyping import TypeCheckError

from surgery.products import by_convolution

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {"surgery": {"surgery"}, "locate": {"surgery", "locate"}, "edits": {"surgery", "locate", "edits"}}
DOOR = (Path("surgery/__main__.py"), Path("surgery/commands"))


def files_in(*folders: str) -> list[Path]:
    return sorted(path.relative_to(ROOT) for folder in folders for path in (ROOT / folder).rglob("*.py"))


FILES = files_in(*MAY_IMPORT)
ALL_FILES = files_in(*MAY_IMPORT, "tests", "benchmarks")


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found.add(str(node.module))
    return found


def is_door(path: Path) -> bool:
    return any(path.is_relative_to(part) for part in DOOR)


def test_there_is_a_house() -> None:
    assert DOOR[0] in FILES
    assert len(FILES) > 20


@pytest.mark.parametrize("path", [path for path in FILES if not is_door(path)], ids=str)
def test_imports_run_one_way(path: Path) -> None:
    allowed = MAY_IMPORT[path.parts[0]]
    own = {name.split(".")[0] for name in imported(path)} & set(MAY_IMPORT)
    assert own <= allowed
    assert not {name for name in imported(path) if name.startswith(("surgery.__main__", "surgery.commands"))}


@pytest.mark.parametrize("path", ALL_FILES, ids=str)
def test_a_file_is_one_responsibility(path: Path) -> None:
    assert len((ROOT / path).read_text(encoding="utf-8").splitlines()) <= 300


@pytest.mark.parametrize("path", FILES, ids=str)
def test_words_that_are_not_used(path: Path) -> None:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    names |= {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    assert not names & {"hparams", "mt", "tmp", "request", "utils", "helper", "manager"}


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse((ROOT / path).read_text(encoding="utf-8")))


def test_shapes_are_checked_at_every_call() -> None:
    with pytest.raises(TypeCheckError, match="weight"):
        by_convolution(torch.zeros(2, 3), torch.zeros(4, 5))
