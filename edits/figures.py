"""Figures of edits. Each draws a result, computes nothing and returns the axes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib import colormaps
from matplotlib.ticker import MaxNLocator

from edits.scores import SCORES
from surgery.errors import SurgeryError
from surgery.figures import axes
from surgery.numbers import counted

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

    from edits.convergence import Convergence
    from edits.layers import Sweep

STYLES = {
    "efficacy": ("tab:blue", "o", 4.5),
    "paraphrase": ("tab:green", "s", 2.5),
    "neighbour": ("tab:orange", "^", 2.5),
}
TRACE = "0.45"


def sweep_lines(sweep: Sweep, ax: Axes | None = None) -> Axes:
    """Draw the three scores over layers with bands of 95 % intervals, their harmonic mean, and the trace behind them.

    The recommended layer is marked by a line from top to bottom; the trace has its own axis on the right.
    """
    ax = axes(ax, (3.4, 2.7))
    layers = np.array(sweep.layers)
    for name in SCORES:
        colour, marker, size = STYLES[name]
        low, high = sweep.interval(name)
        ax.plot(layers, sweep.mean(name), color=colour, marker=marker, markersize=size, linewidth=1, label=name)
        ax.fill_between(layers, low, high, color=colour, alpha=0.08, linewidth=0)
    ax.plot(layers, sweep.score, color="black", linewidth=1.4, label="harmonic mean")
    title = f"Rewriting in {sweep.model}"
    try:
        best = sweep.recommend().layer
        ax.axvline(best, color="black", linewidth=0.7, linestyle=":", zorder=0)
        title += f": best at layer {best}"
    except SurgeryError:
        title += ": no layer recommended"
    ax.set_ylim(0, 1.03)
    ax.set_xlim(layers[0] - 0.5, layers[-1] + 0.5)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.tick_params(labelsize=6, length=2)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_ylabel("share, mean over facts", fontsize=6.5)
    ax.set_title(title, fontsize=7, parse_math=False)
    note = f"layer edited ({sweep.method}); bands: 95 % over {counted(len(sweep.facts), 'fact')}"
    handles = ax.get_legend_handles_labels()[0]
    if sweep.trace is not None:
        handles += [_trace_behind(sweep, ax)]
        note += f"\nright: {sweep.trace.about}, {counted(sweep.trace.facts, 'fact')}"
    ax.set_xlabel(note, fontsize=6.5, linespacing=1.4, parse_math=False)
    ax.legend(handles=handles, fontsize=6, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.27), ncols=3)
    return ax


def _trace_behind(sweep: Sweep, ax: Axes) -> Artist:
    """The trace's effect at the layers swept, on an axis of its own that reaches beyond it on both sides."""
    assert sweep.trace is not None
    layers = np.array(sweep.layers)
    effect = sweep.trace.effect[layers]
    behind = ax.twinx()
    (line,) = behind.plot(layers, effect, color=TRACE, linewidth=1, linestyle="--", label="trace, mlp effect")
    span = float(np.nanmax(np.abs(effect))) or 1.0
    behind.set_ylim(1.3 * min(0.0, float(np.nanmin(effect))), 1.3 * span)
    behind.tick_params(labelsize=6, length=2, colors=TRACE)
    behind.spines["top"].set_visible(False)
    behind.set_ylabel("effect at the last subject token", fontsize=6.5, color=TRACE)
    ax.set_zorder(behind.get_zorder() + 1)
    ax.patch.set_visible(False)
    return line


def convergence_lines(found: Convergence, ax: Axes | None = None) -> Axes:
    """Draw the mean held out response over tokens as a share of the one without statistics, a line a layer.

    Dashes lead to what endless text would give; the dotted line stands at ten times the mlp's width.
    """
    ax = axes(ax, (3.4, 2.6))
    colours = colormaps["viridis"](np.linspace(0, 0.85, len(found.layers)))
    last, beyond = found.tokens[-1], 2 * found.tokens[-1]
    for i, (layer, colour) in enumerate(zip(found.layers, colours, strict=True)):
        without = found.without[i].mean()
        share, limit = found.mean[i] / without, found.limit[i] / without
        ax.plot(found.tokens, share, color=colour, marker="o", markersize=3, linewidth=1.2, label=f"layer {layer}")
        ax.plot([last, beyond], [share[-1], limit], color=colour, linewidth=0.8, linestyle="--")
    ax.axhline(1, color="0.45", linewidth=0.7)
    ax.annotate(
        "without statistics",
        (1, 1),
        (0, 2),
        ("axes fraction", "data"),
        "offset points",
        color="0.45",
        fontsize=6,
        ha="right",
    )
    ax.axvline(10 * found.width, ymax=0.9, color="black", linewidth=0.7, linestyle=":", zorder=0)
    ax.set_xscale("log", base=2)
    ax.set_xticks([*found.tokens, beyond], [*(f"{one / 1000:.3g}k" for one in found.tokens), "endless"])
    ax.tick_params(labelsize=6, length=2)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_ylabel("response of held out keys to an edit, share", fontsize=6)
    facts = found.responses.shape[-1]
    ax.set_xlabel(
        f"tokens; measured on {found.held_out} others with {facts} edits\n"
        f"dashes: expected of more text; dotted: 10 x d_ff = {10 * found.width} tokens",
        fontsize=6, linespacing=1.4,
    )  # fmt: skip
    judged = "enough text" if found.enough else "give more text"
    ax.set_title(f"Key statistics of {found.model}: {judged}", fontsize=7, parse_math=False)
    ax.legend(fontsize=6, frameon=False, loc="upper left", bbox_to_anchor=(0, 0.94), ncols=3)
    return ax
