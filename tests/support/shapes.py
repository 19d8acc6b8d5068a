"""Array shapes and dtypes are checked at every call of what writes them down; importing this turns it on.

`jaxtyping.jaxtyped` does the checking. Its own import hook decorates every function of a module, and most calls have
no array in their signature, which mypy has read already; here only those that write a shape get the decorator:

1. A module that imports from jaxtyping is parsed when it is first imported.
2. Functions with a shape in their signature, however deep they are nested, and dataclasses with one in a field, are
   decorated: functions first of all, dataclasses last, when they have their `__init__`.
3. The code is compiled anew in each process; nothing of it is kept on disk.

Libraries are loaded before, for whatever they import later would be looked at too.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("surgery", "locate", "edits")
LIBRARIES = ("accelerate", "beartype.door", "scipy.stats", "transformers.integrations", "transformers.modeling_utils")
CHECKED = "__import__('jaxtyping').jaxtyped(typechecker=__import__('beartype').beartype)"


def shaped() -> list[str]:
    """Names of the modules that write array shapes down."""
    found = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in found]
    return [name for name, path in zip(names, found, strict=True) if "from jaxtyping import" in path.read_text("utf-8")]


def checked(source: str, path: str) -> tuple[ast.Module, int]:
    """A module's code with the check in front of all that writes a shape, and in front of how many that is."""
    tree = ast.parse(source, path)
    kinds = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module == "jaxtyping"
        for alias in node.names
    }
    count = 0
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            given = node.args
            every = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
            written = [node.returns, *(one.annotation for one in every if one)]
            at = len(node.decorator_list)
        elif isinstance(node, ast.ClassDef):
            written = [one.annotation for one in node.body if isinstance(one, ast.AnnAssign)]
            at = 0
        else:
            continue
        if any(isinstance(part, ast.Name) and part.id in kinds for one in written if one for part in ast.walk(one)):
            decorator = ast.parse(CHECKED, mode="eval").body
            for part in ast.walk(decorator):
                ast.copy_location(part, node)
            node.decorator_list.insert(at, decorator)
            count += 1
    return tree, count


class _Loader(SourceFileLoader):
    """Loads a module with the checks in it."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        tree, _ = checked(self.get_data(path).decode(), path)
        made: CodeType = compile(tree, path, "exec", dont_inherit=True)
        return made


class _Finder(MetaPathFinder):
    """Finds the modules that write shapes down."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = frozenset(names)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target) if fullname in self._names else None
        if spec is not None and spec.origin is not None:
            spec.loader = _Loader(fullname, spec.origin)
        return spec


for library in LIBRARIES:
    import_module(library)
sys.meta_path.insert(0, _Finder(shaped()))
