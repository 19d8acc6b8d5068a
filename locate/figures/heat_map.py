"""Heat maps of traces, in the published layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import Colormap, ListedColormap, Normalize

from surgery.figures import axes, drawable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from locate.trace import Trace

COLOURS = {"state": "Purples", "mlp": "Greens", "attention": "Reds"}
NAMES = {"state": "one state", "mlp": "mlp outputs", "attention": "attention outputs"}


def heat_map(trace: Trace, ax: Axes | None = None) -> Axes:
    """Draw a trace: tokens down, layers across, the metric as colour, subject tokens marked `*`.

    The layout is that of Meng et al. 2022, figure 1. The colour begins at the run without a patch; effects below it are
    grey, on the same scale. A line under the map gives what one needs to judge it.
    """
    ax = axes(ax, (4.4, 1.5 + 0.17 * len(trace.tokens)))
    layers = trace.scores.shape[1]
    effects = np.ma.masked_invalid(trace.effects)
    top = max(float(effects.max()), 1e-9)
    low = min(float(effects.min()), 0.0)
    image = ax.pcolormesh(effects, cmap=_colours(trace.kind, low, top), norm=Normalize(low, top))
    ax.set_facecolor("0.93")
    ax.invert_yaxis()
    ax.set_yticks([i + 0.5 for i in range(len(trace.tokens))])
    marks = ["*" if i in trace.subject else "" for i in range(len(trace.tokens))]
    # $ would start a formula
    labels = [drawable(token.strip()) + mark for token, mark in zip(trace.tokens, marks, strict=True)]
    ax.set_yticklabels(labels, fontsize=min(7, 420 / (len(labels) + 10)))
    ticks = range(0, max(layers - 5, 1), 5)
    ax.set_xticks([layer + 0.5 for layer in ticks], [str(layer) for layer in ticks])
    ax.tick_params(labelsize=7, length=2, axis="x")
    ax.tick_params(length=2, axis="y")
    position = trace.peak().position or 0
    ax.plot(trace.peak().layer + 0.5, position + 0.5, marker=".", color="black", markersize=3)
    ax.set_title(_title(trace), fontsize=8)
    what = "single layer" if trace.window == 1 else f"centre of {trace.window} layers"
    ax.set_xlabel(f"{what} within {trace.model}\n{_note(trace)}", fontsize=6.5, linespacing=1.4)
    bar = ax.figure.colorbar(image, ax=ax)
    bar.ax.tick_params(labelsize=6, length=2)
    ticks_at = [*([low] if low < -0.08 * (top - low) else []), 0.0, top / 2, top]
    sign = 1 if trace.direction == "restore" else -1
    bar.set_ticks(ticks_at, labels=[f"{round(trace.unpatched + sign * at, 4):.2g}" for at in ticks_at])
    bar.ax.set_title(_unit(trace), y=-0.14, fontsize=7)
    return ax


def _title(trace: Trace) -> str:
    done = "Restoring" if trace.direction == "restore" else "Corrupting"
    where = "after corrupting the subject" if trace.direction == "restore" else "in the clean run"
    severed = f", {trace.severed} held" if trace.severed else ""
    return f"{done} {NAMES[trace.kind]} {where}{severed}"


def _unit(trace: Trace) -> str:
    target = trace.fact.target.strip()
    names = {"probability": f"p({target})", "log-probability": f"log p({target})"}
    return drawable(names.get(trace.metric, "norm. logit diff."))


def _note(trace: Trace) -> str:
    """What one needs to judge the map."""
    checks = trace.sanity()
    failed = [name for name, held in checks.items() if not held]
    sane = "CHECK FAILED: " + ", ".join(failed) if failed else "; ".join(checks)
    known = "" if trace.known else f"\nnot known: the answer has rank {trace.rank}"
    error = f"{trace.samples} samples, largest standard error {np.nanmax(trace.errors):.3f}"
    drawn = error if trace.samples > 1 else "one sample"
    text = (
        f"{trace.metric}: clean {trace.clean:.3f}, corrupted {trace.corrupted:.3f}; dot: peak, {trace.peak()}\n"
        f"{trace.corruption}, {drawn}\n{sane}{known}"
    )
    return drawable(text)


def _colours(kind: str, low: float, top: float) -> Colormap:
    """The kind's colours above 0 and greys below it, as strong as their distance from 0 says."""
    steps = np.linspace(low, top, 256)
    above, below = matplotlib.colormaps[COLOURS[kind]], matplotlib.colormaps["Greys"]
    largest = max(top, -low)
    return ListedColormap([above(at / largest) if at >= 0 else below(-0.8 * at / largest) for at in steps])


def side_by_side(traces: Sequence[Trace]) -> Axes:
    """Draw traces next to each other in one new figure; returns the last one's axes."""
    size = (4.4 * len(traces), 1.5 + 0.17 * len(traces[0].tokens))
    panels = plt.subplots(1, len(traces), figsize=size, dpi=150, layout="constrained", squeeze=False)[1][0]
    drawn = [heat_map(trace, ax) for trace, ax in zip(traces, panels, strict=True)]
    return drawn[-1]
