"""What all figures share: size, type, how they are saved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from surgery.files import writable_folder

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def axes(ax: Axes | None, size: tuple[float, float]) -> Axes:
    """The given axes, or those of a new figure of that size in inches."""
    return plt.subplots(figsize=size, dpi=200, layout="constrained")[1] if ax is None else ax


def save(ax: Axes, path: str | Path) -> Path:
    """Save the figure of an axes as the ending says (.png, .pdf, .svg) and close it.

    Raises:
        SurgeryError: the folder cannot be written to.
    """
    path = Path(path)
    writable_folder(path.parent)
    figure = ax.get_figure(root=True)
    assert isinstance(figure, Figure)
    figure.savefig(path, bbox_inches="tight")
    plt.close(figure)
    return path
