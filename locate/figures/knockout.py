"""The figure of an attention knockout: a line a source."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.ticker import MaxNLocator

from locate.figures.lens import short
from surgery.figures import axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from locate.knockout import Knockout

STYLES = {
    "subject": ("tab:green", "o"),
    "other": ("tab:purple", "s"),
    "last": ("tab:orange", "^"),
    "first": ("tab:grey", "d"),
}


def knockout_lines(found: Knockout, ax: Axes | None = None) -> Axes:
    """Draw the relative change of the answer's probability in percent over the window's centre, a line a source."""
    ax = axes(ax, (3.4, 2.3))
    layers = range(len(found.changes))
    for source in found.sources:
        colour, marker = STYLES[source]
        count = len(found.positions[found.sources.index(source)])
        label = source if source in ("last", "first") else f"{source} ({count} token{'s' if count > 1 else ''})"
        ax.plot(
            layers, 100 * found.change(source), color=colour, marker=marker, markersize=2.2, linewidth=1, label=label
        )
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.axhline(0, color="black", linewidth=0.6)
    ax.tick_params(labelsize=6, length=2)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_ylabel(f"change of p({short(found.fact.target)}) in %", fontsize=6.5, parse_math=False)
    rest = ("" if found.first_spared else ", first token cut with them") + (
        "" if found.renormalised else ", not renormalised"
    )
    ax.set_xlabel(f"layer, centre of a window of {found.window}{rest}\nclean p = {found.clean:.3f}", fontsize=6.5)
    ax.set_title(f"Attention of the last token cut in {found.model}", fontsize=7.5, parse_math=False)
    ax.legend(fontsize=6, frameon=False, title="from", title_fontsize=6)
    return ax
