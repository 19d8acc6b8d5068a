"""Progress bars: on a terminal and in Jupyter, never into a log file."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TypeVar

from tqdm.auto import tqdm

T = TypeVar("T")


def bar(items: Iterable[T], label: str, *, show: bool = True, total: int | None = None) -> Iterable[T]:
    """`items` with a progress bar on stderr, where somebody is looking and `show` is true."""
    return tqdm(items, desc=label, total=total, disable=not (show and (sys.stderr.isatty() or _in_jupyter())))


def counter(total: int, label: str, *, show: bool = True) -> tqdm[Any]:
    """A progress bar that is told how far things are: `with counter(10, "values") as shown: shown.update(1)`."""
    return tqdm(total=total, desc=label, disable=not (show and (sys.stderr.isatty() or _in_jupyter())))


def _in_jupyter() -> bool:
    return "ipykernel" in sys.modules and "ipywidgets" in sys.modules
