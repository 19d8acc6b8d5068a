"""Figures of direct logit attribution: parts as bars, heads as a map."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from locate.figures.lens import short
from surgery.figures import axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from locate.direct import LogitAttribution

FOR, AGAINST = "#b2182b", "#2166ac"


def attribution_bars(found: LogitAttribution, ax: Axes | None = None, *, k: int = 15) -> Axes:
    """Draw the k parts of largest effect as horizontal bars, the largest on top, and the sum of all others below."""
    parts = found.top(k)
    if (left := len(found.names) - len(parts)) > 0:
        rest = float(found.values.sum()) - sum(value for _, value in parts)
        parts.append((f"{left} others" if left > 1 else "1 other", rest))
    ax = axes(ax, (3.4, 0.9 + 0.145 * len(parts)))
    values = [value for _, value in parts]
    drawn = ax.barh(range(len(parts)), values, color=[FOR if value > 0 else AGAINST for value in values], height=0.75)
    ax.bar_label(drawn, [f"{value:+.2f}" for value in values], fontsize=5.5, padding=2)
    ax.set_yticks(range(len(parts)), [name for name, _ in parts])
    ax.invert_yaxis()
    ax.axvline(0, color="black", linewidth=0.6)
    ax.margins(x=0.16)
    ax.tick_params(labelsize=6, length=2)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_xlabel(_what(found), fontsize=6.5, parse_math=False)
    ax.set_title(f"What writes {_contrast(found)} in {found.model}", fontsize=7.5, parse_math=False)
    return ax


def attribution_map(found: LogitAttribution, ax: Axes | None = None) -> Axes:
    """Draw what every head adds: heads across, layers down with the late ones on top, colours diverging at 0."""
    layers, heads = found.grid.shape
    ax = axes(ax, (max(3.0, 1.2 + 0.14 * heads), 1.0 + 0.1 * layers))
    bound = max(float(np.abs(found.grid).max()), 1e-12)
    image = ax.pcolormesh(found.grid, cmap="RdBu_r", vmin=-bound, vmax=bound)
    every = max(1, layers // 10)
    ax.set_yticks([i + 0.5 for i in range(0, layers, every)], [str(i) for i in range(0, layers, every)])
    every = max(1, heads // 16)
    ax.set_xticks([i + 0.5 for i in range(0, heads, every)], [str(i) for i in range(0, heads, every)])
    ax.tick_params(labelsize=6, length=2)
    ax.set_ylabel("layer", fontsize=7)
    layer, head = np.unravel_index(int(np.abs(found.grid).argmax()), found.grid.shape)
    ax.set_xlabel(
        f"head; the largest is L{layer}.h{head}, {found.grid[layer, head]:+.2f}\n{_what(found)}",
        fontsize=6.5,
        parse_math=False,
    )
    ax.set_title(f"Heads that write {_contrast(found)} in {found.model}", fontsize=7.5, parse_math=False)
    bar = ax.figure.colorbar(image, ax=ax, pad=0.02)
    bar.ax.tick_params(labelsize=6, length=2)
    return ax


def _contrast(found: LogitAttribution) -> str:
    return short(found.target) + ("" if found.foil is None else f" over {short(found.foil)}")


def _what(found: LogitAttribution) -> str:
    cap = f", capped to {found.model_logit:.2f}" if found.capped else ""
    return f"added to the logit{'' if found.foil is None else ' difference'}; all parts: {found.logit:.2f}{cap}"
