"""The house rules: imports run edits -> locate -> surgery, and nobody imports the door."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from shapes import CHECKED, checked, shaped

from edits.moment import SecondMoment
from surgery.verification.attack import Attempt

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
    with pytest.raises(TypeCheckError, match="full"):
        SecondMoment.of(torch.zeros(3, 4), 1)
    with pytest.raises(TypeCheckError, match="scores"):
        Attempt(("prompt",), np.zeros(3))


def test_what_writes_a_shape_is_checked_and_nothing_else() -> None:
    source = """
from jaxtyping import Float
from numpy import zeros
class Plain:
    count: int
@dataclass
class Shaped:
    rows: list[Float[Tensor, "n"]]
    def plain(self, x: Tensor) -> int:
        def inner(*rows: Float[Tensor, "n"]): ...
    @property
    def shaped(self) -> Float[Tensor, "n"] | None: ...
"""
    tree, count = checked(source, "x.py")
    decorated = {
        node.name: [ast.unparse(one) for one in node.decorator_list]
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef | ast.FunctionDef)
    }
    assert decorated == {
        "Plain": [],
        "Shaped": [CHECKED, "dataclass"],
        "plain": [],
        "inner": [CHECKED],
        "shaped": ["property", CHECKED],
    }
    assert count == 3
    for name in shaped():
        path = ROOT.joinpath(*name.split(".")).with_suffix(".py")
        assert checked(path.read_text(encoding="utf-8"), name)[1], f"{name} imports shapes and writes none"
