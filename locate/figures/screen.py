"""Figures of gradient screens: the map of estimated effects, and estimates against exact effects."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from surgery.errors import SurgeryError
from surgery.figures import axes, drawable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from locate.exact import Verified
    from locate.screen import Screen

DIVERGING = "RdBu_r"
SIDES = ("#b2182b", "#2166ac")
WHAT = {"mlp": "mlp outputs", "attention": "attention outputs", "head": "attention heads", "neuron": "neurons"}


def screen_map(screen: Screen, ax: Axes | None = None, *, position: int | None = None) -> Axes:
    """Draw a screen as a map centred at 0: red helps the answer, blue hurts it.

    Tokens down and layers across, subject tokens marked `*`; of heads and neurons a layer's sum. With `position`, what
    single units do at that token: heads as a map, head by layer; neurons, of which there are too many for one, as dots
    over their layers, the largest by name where there is room.

    Args:
        screen: the screen.
        ax: where to draw.
        position: the token whose heads or neurons to show.

    Raises:
        SurgeryError: a position is given for whole mlp or attention outputs, or there is no such position.
    """
    if position is None:
        shown = screen.by_layer
        ax = axes(ax, (4.4, 1.3 + 0.17 * len(shown)))
        marks = ["*" if i in screen.subject else "" for i in range(len(screen.tokens))]
        labels = [drawable(token.strip()) + mark for token, mark in zip(screen.tokens, marks, strict=True)]
        ax.set_yticks(range(len(shown)), labels)
        _map(screen, shown, ax)
    else:
        if screen.scores.ndim == 2 or not 0 <= position < len(screen.tokens):
            raise SurgeryError(
                f"position {position} would show the heads or neurons at one of {len(screen.tokens)} tokens; "
                f"this screen rates {WHAT[screen.unit]}"
            )
        ax = axes(ax, (4.4, 3.0))
        if screen.unit == "head":
            heads = screen.scores[position].T
            ax.set_yticks(range(0, len(heads), max(1, len(heads) // 8)))
            ax.set_ylabel("head", fontsize=7)
            _map(screen, heads, ax)
        else:
            _dots(screen, screen.scores[position], ax)
    ax.set_xticks(range(0, screen.scores.shape[1], 5))
    ax.tick_params(labelsize=7, length=2)
    if position is not None:
        where = f" at {drawable(repr(screen.tokens[position].strip()))}"
    else:
        where = ", summed over a layer" if screen.scores.ndim == 3 else ""
    ax.set_title(f"Estimated effect of restoring {WHAT[screen.unit]}{where}", fontsize=8)
    (largest,) = screen.top(1)
    ax.set_xlabel(
        f"layer of {drawable(screen.model)}; {screen.method}\n"
        f"{screen.metric.name}: clean {screen.clean:.3g}, corrupted {screen.corrupted:.3g}; "
        f"largest of all {largest} {screen.score(largest):+.2g}\n"
        f"{drawable(str(screen.corruption))}; samples: {screen.samples}",
        fontsize=6.5,
        linespacing=1.4,
    )
    return ax


def _map(screen: Screen, shown: Float[np.ndarray, "rows layers"], ax: Axes) -> None:
    top = float(np.abs(shown).max()) or 1.0
    edges = (np.arange(shown.shape[1] + 1) - 0.5, np.arange(shown.shape[0] + 1) - 0.5)
    image = ax.pcolormesh(*edges, shown, cmap=DIVERGING, vmin=-top, vmax=top)
    ax.invert_yaxis()
    bar = ax.figure.colorbar(image, ax=ax)
    bar.ax.tick_params(labelsize=7, length=2)
    bar.set_label(_change(screen), fontsize=6.5)


def _dots(screen: Screen, scores: Float[np.ndarray, "layers units"], ax: Axes) -> None:
    layers = np.repeat(np.arange(len(scores)), scores.shape[1])
    top = float(np.abs(scores).max()) or 1.0
    colours = np.where(scores.ravel() < 0, *SIDES[::-1])  # of a map's colours, those near 0 would be white
    ax.scatter(layers, scores.ravel(), s=4, c=colours, linewidths=0, rasterized=True)
    ax.axhline(0, color="0.8", linewidth=0.6, zorder=0)
    ax.set_ylim(-1.15 * top, 1.15 * top)
    named: list[float] = []
    for flat in np.argsort(-np.abs(scores), axis=None, kind="stable")[:10]:
        layer, index = divmod(int(flat), scores.shape[1])
        if any(abs(scores[layer, index] - one) < 0.1 * top for one in named):
            continue  # the names would overlap
        named.append(float(scores[layer, index]))
        left = layer > len(scores) / 2
        ax.annotate(
            f"L{layer}.{screen.unit}{index}",
            (layer, scores[layer, index]),
            xytext=(-4 if left else 4, 0),
            textcoords="offset points",
            ha="right" if left else "left",
            va="center",
            fontsize=6,
        )
    ax.set_ylabel(_change(screen), fontsize=6.5)


def _change(screen: Screen) -> str:
    return f"change of {screen.metric.name} of {drawable(screen.fact.target.strip())}"


def estimates(verified: Verified, ax: Axes | None = None) -> Axes:
    """Draw estimated effects across, exact ones up with their standard errors; on the grey line they are equal."""
    ax = axes(ax, (3.4, 3.1))
    screen = verified.screen
    ax.errorbar(
        verified.estimated, verified.exact, yerr=verified.errors, fmt="o", markersize=3, linewidth=0.7, color="#7261ab"
    )
    ax.axline((0, 0), slope=1, color="0.6", linewidth=0.8, zorder=0)
    ax.axhline(0, color="0.85", linewidth=0.6, zorder=0)
    ax.axvline(0, color="0.85", linewidth=0.6, zorder=0)
    ax.tick_params(labelsize=7, length=2)
    ax.set_xlabel(f"estimated change of {screen.metric.name}\n{screen.method}", fontsize=7)
    ax.set_ylabel("exact change, one unit restored at a time", fontsize=7)
    ax.set_title(f"{len(verified.units)} {WHAT[screen.unit]} of {drawable(screen.model)}", fontsize=8)
    return ax
