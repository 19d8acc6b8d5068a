"""Array shapes and dtypes are checked at every call, in all modules that write them down; importing this turns it on.

Modules without arrays are left to mypy. Libraries are loaded first: within the hook Python does not find what it has
compiled of them, and would do so anew in every process.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from jaxtyping import install_import_hook

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("surgery", "locate", "edits")
LIBRARIES = ("accelerate", "beartype.door", "scipy.stats", "transformers.integrations", "transformers.modeling_utils")


def shaped() -> list[str]:
    """Names of the modules that write array shapes down."""
    found = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in found]
    return [name for name, path in zip(names, found, strict=True) if "from jaxtyping import" in path.read_text("utf-8")]


for library in LIBRARIES:
    import_module(library)
install_import_hook(shaped(), "beartype.beartype")
