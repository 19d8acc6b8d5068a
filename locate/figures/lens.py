"""The lens table: tokens across, layers down with the late ones on top."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from matplotlib.colors import LogNorm, Normalize

from surgery.errors import SurgeryError
from surgery.figures import axes, glyphs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

    from locate.lens import Lens

Colour = Literal["probability", "entropy", "rank"]
WIDEST = 6
"""Characters of a token that fit a cell."""
MAPS = {"probability": "Blues", "entropy": "cividis", "rank": "Purples_r"}


def lens_table(
    lens: Lens, ax: Axes | None = None, *, colour: Colour = "probability", stride: int = 1, numbers: bool = False
) -> Axes:
    """Draw a lens: in each cell the likeliest token, bold where it is the target.

    Args:
        lens: what to draw.
        ax: where to; a new figure by default.
        colour: the target's probability, the distribution's entropy in nats, or the target's rank on a log scale.
        stride: draw every so many layers, counted down from the last, which is always drawn.
        numbers: write the colour's number under each token.

    Raises:
        SurgeryError: there is no such colour, or the stride is below 1.
    """
    if colour not in get_args(Colour) or stride < 1:
        raise SurgeryError(
            f"a table takes colour probability, entropy or rank and a stride from 1, not {colour!r} and {stride}"
        )
    rows = list(range(len(lens.layers)))[::-1][::stride]
    ax = axes(ax, (max(3.4, 0.9 + 0.36 * len(lens.tokens)), 1.1 + (0.22 if numbers else 0.13) * len(rows)))
    shown = np.asarray(getattr(lens, colour), dtype=float)[rows]
    # late layers on top: the first row drawn is the last layer
    image = ax.imshow(shown, cmap=MAPS[colour], norm=_norm(lens, colour), aspect="auto", interpolation="nearest")
    _write(ax, lens, rows, colour, image, numbers=numbers)
    ax.set_yticks(range(len(rows)), ["emb." if lens.layers[row] < 0 else str(lens.layers[row]) for row in rows])
    marks = ["*" if lens.subject is not None and position in lens.subject else "" for position in lens.positions]
    ax.set_xticks(
        range(len(lens.tokens)), [short(token) + mark for token, mark in zip(lens.tokens, marks, strict=True)]
    )
    for label in [*ax.get_xticklabels(), *ax.get_yticklabels()]:
        label.set_parse_math(False)
    ax.tick_params(labelsize=6, length=2)
    ax.tick_params(axis="x", labelrotation=40)
    for label in ax.get_xticklabels():
        label.set(ha="right", rotation_mode="anchor")
    ax.set_ylabel("layer", fontsize=7)
    ax.set_xlabel("bold: the target is the likeliest token; *: the subject", fontsize=6.5)
    ax.set_title(f"What each state of {lens.model} reads as", fontsize=8, parse_math=False)
    what = {
        "probability": f"p({short(lens.target)})",
        "entropy": "entropy in nats",
        "rank": f"rank of {short(lens.target)}",
    }
    bar = ax.figure.colorbar(image, ax=ax, pad=0.02)
    bar.ax.tick_params(labelsize=6, length=2)
    bar.set_label(what[colour], fontsize=7, parse_math=False)
    return ax


def _write(ax: Axes, lens: Lens, rows: list[int], colour: Colour, image: AxesImage, *, numbers: bool) -> None:
    """The likeliest tokens, in a colour that can be read on the cell's."""
    shown = np.asarray(image.get_array())
    for i, row in enumerate(rows):
        for j, token in enumerate(lens.likeliest[row]):
            red, green, blue, _ = image.cmap(image.norm(shown[i, j]))
            dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
            text = short(token) + (f"\n{_number(shown[i, j], colour)}" if numbers else "")
            ax.text(
                j,
                i,
                text,
                ha="center",
                va="center",
                fontsize=5.4,
                linespacing=0.95,
                color="white" if dark else "black",
                fontweight="bold" if lens.rank[row, j] == 1 else "normal",
                parse_math=False,
                clip_on=True,
            )


def short(token: str) -> str:
    """A token as a cell shows it: without its space, cut, line breaks and what the font lacks made visible."""
    text = token.strip(" ").replace("\n", "↵").replace("\t", "→").replace("\r", "↵") or "␣"
    text = glyphs("".join(one if one.isprintable() else "□" for one in text), instead="□")
    return text if len(text) <= WIDEST else text[: WIDEST - 1] + "…"


def _norm(lens: Lens, colour: Colour) -> Normalize:
    if colour == "rank":
        return LogNorm(1, lens.vocab)
    return Normalize(0, 1 if colour == "probability" else float(np.log(lens.vocab)))


def _number(value: float, colour: Colour) -> str:
    return f"{value:.0f}" if colour == "rank" else f"{value:.2f}"
