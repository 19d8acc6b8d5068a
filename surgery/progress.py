"""Progress bars: on a terminal and in Jupyter, never into a log file."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TypeVar

from tqdm.auto import tqdm

T = TypeVar("T")


def bar(items: Iterable[T], label: str, *, show: bool = True, total: int | None = None) -> Iterable[T]:
    """`items` with a progress bar on stderr, where somebody is looking and `show` is true."""
    return tqdm(items, desc=label, total=total, disable=not (show and (sys.stderr.isatty() or _in_jupyter())))


def _in_jupyter() -> bool:
    return "ipykernel" in sys.modules and "ipywidgets" in sys.modules
