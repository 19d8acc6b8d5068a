"""What all figures share: size, type, how they are saved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
from matplotlib import font_manager
from matplotlib.figure import Figure

from surgery.files import writable_folder

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def axes(ax: Axes | None, size: tuple[float, float]) -> Axes:
    """The given axes, or those of a new figure of that size in inches."""
    return plt.subplots(figsize=size, dpi=200, layout="constrained")[1] if ax is None else ax


def glyphs(text: str, instead: str | None = None) -> str:
    """A text with the characters that no font of `font.family` has written as their code, or as `instead`.

    For other scripts, name a font that has them: `plt.rcParams["font.family"] = ["DejaVu Sans", "Noto Sans CJK JP"]`.
    """
    if text.isascii():
        return text
    families = [font_manager.FontProperties(family=[name]) for name in plt.rcParams["font.family"]]
    fonts = [font_manager.get_font(font_manager.findfont(one)) for one in families]
    known = {one: one.isspace() or any(font.get_char_index(ord(one)) for font in fonts) for one in set(text)}
    return "".join(one if known[one] else instead or f"[{ord(one):X}]" for one in text)


def drawable(text: str) -> str:
    """`glyphs` of a text, with dollars that start no formula."""
    return glyphs(text).replace("$", r"\$")


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
