"""The figure of a removal's depth: what is missing at each layer, beside what never was there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.ticker import MaxNLocator

from surgery.figures import axes, drawable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from surgery.verification.depth import Depth


def plot_depth(depth: Depth, ax: Axes | None = None) -> Axes:
    """Draw the drop of the answer's log-probability over the patched layer, of the edited model and the reference."""
    ax = axes(ax, (3.4, 2.3))
    layers = range(len(depth.layers))
    name = "invented subjects (assumed)" if depth.assumed else "never known"
    ax.fill_between(layers, 0, depth.reference, color="tab:grey", alpha=0.25, linewidth=0, label=name)
    ax.plot(layers, depth.drops, color="tab:red", marker="o", markersize=2.2, linewidth=1, label="edited")
    ax.axhline(0, color="black", linewidth=0.6)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.tick_params(labelsize=6, length=2)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_xlabel("layer whose state is patched into the base model", fontsize=6.5)
    ax.set_ylabel("missing log p, nats a token", fontsize=6.5)
    score = "no layer can tell" if depth.score != depth.score else f"{depth.score:.0%} erased"
    ax.set_title(f"{drawable(depth.fact)}: {score}", fontsize=7.5)
    ax.legend(fontsize=6, frameon=False)
    return ax
