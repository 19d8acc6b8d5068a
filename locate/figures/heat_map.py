"""Heat maps of traces, in the published layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt

from surgery.figures import axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from locate.trace import Trace

COLOURS = {"state": "Purples", "mlp": "Greens", "attention": "Reds"}
TITLES = {
    "state": "Restoring one state after corrupting the subject",
    "mlp": "Restoring mlp outputs after corrupting the subject",
    "attention": "Restoring attention outputs after corrupting the subject",
}


def heat_map(trace: Trace, ax: Axes | None = None) -> Axes:
    """Draw a trace: tokens down, layers across, the answer's probability as colour, subject tokens marked `*`.

    The layout is that of Meng et al. 2022, figure 1. The scale begins at the corrupted run's probability. A line under
    the map gives what one needs to judge it: clean and corrupted probability, corruption, samples and their largest
    standard error.
    """
    ax = axes(ax, (4.4, 1.3 + 0.17 * len(trace.tokens)))
    layers = trace.scores.shape[1]
    top = max(float(trace.scores.max()), trace.corrupted + 1e-9)
    image = ax.pcolormesh(trace.scores, cmap=COLOURS[trace.kind], vmin=trace.corrupted, vmax=top)
    ax.invert_yaxis()
    ax.set_yticks([i + 0.5 for i in range(len(trace.tokens))])
    marks = ["*" if i in trace.subject else "" for i in range(len(trace.tokens))]
    # $ would start a formula
    labels = [token.strip().replace("$", r"\$") + mark for token, mark in zip(trace.tokens, marks, strict=True)]
    ax.set_yticklabels(labels)
    ticks = range(0, max(layers - 5, 1), 5)
    ax.set_xticks([layer + 0.5 for layer in ticks], [str(layer) for layer in ticks])
    ax.tick_params(labelsize=7, length=2)
    position = trace.peak().position or 0
    ax.plot(trace.peak().layer + 0.5, position + 0.5, marker=".", color="black", markersize=3)
    ax.set_title(TITLES[trace.kind], fontsize=8)
    what = "single restored layer" if trace.window == 1 else f"centre of {trace.window} restored layers"
    note = (
        f"clean {trace.clean:.3f}, corrupted {trace.corrupted:.3f}; {trace.corruption}, {trace.samples} samples\n"
        f"largest standard error {trace.errors.max():.3f}; dot: peak, {trace.peak()}"
    )
    ax.set_xlabel(f"{what} within {trace.model}\n{note}", fontsize=6.5, linespacing=1.4)
    bar = ax.figure.colorbar(image, ax=ax)
    bar.ax.tick_params(labelsize=7, length=2)
    bar.ax.set_title(f"p({trace.fact.target.strip()})".replace("$", r"\$"), y=-0.14, fontsize=7)
    return ax


def side_by_side(traces: Sequence[Trace]) -> Axes:
    """Draw traces next to each other in one new figure; returns the last one's axes."""
    size = (4.4 * len(traces), 1.3 + 0.17 * len(traces[0].tokens))
    panels = plt.subplots(1, len(traces), figsize=size, dpi=150, layout="constrained", squeeze=False)[1][0]
    drawn = [heat_map(trace, ax) for trace, ax in zip(traces, panels, strict=True)]
    return drawn[-1]
