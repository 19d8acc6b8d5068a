"""Bars of the neurons of a fact."""

from __future__ import annotations

from typing import TYPE_CHECKING

from surgery.figures import axes, drawable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from locate.neurons import Attribution

COLOURS = {"up": "#20803a", "down": "#b03a2e"}
MOST_LETTERS = 14


def neuron_bars(attribution: Attribution, ax: Axes | None = None) -> Axes:
    """Draw the chosen neurons, best on top: score as a bar, layer and index beside it, promoted words at its end.

    The line under the bars says what zeroing these neurons does to the answer, to random sets and to neighbours.
    """
    ax = axes(ax, (4.4, 1.15 + 0.2 * max(len(attribution.neurons), 1)))
    scores = [score for _, score in attribution.neurons]
    rows = range(len(scores))
    ax.barh(rows, scores, height=0.7, color=[COLOURS["up" if score >= 0 else "down"] for score in scores])
    ax.set_yticks(list(rows), [str(neuron) for neuron, _ in attribution.neurons])
    ax.invert_yaxis()
    ax.axvline(0, color="black", linewidth=0.6)
    widest = max((abs(score) for score in scores), default=1.0) or 1.0
    for row, (score, words) in enumerate(zip(scores, attribution.promotes, strict=True)):
        text = " · ".join(_shown(word) for word in words.promotes[:3])
        ax.text(max(score, 0.0) + 0.015 * widest, row, text, va="center", fontsize=6)
    ax.set_xlim(min([0.0, *scores]) * 1.05, max([0.0, *scores]) + 0.75 * widest)  # room for the words
    if not scores:
        ax.text(0.5, 0.5, "no neuron was chosen", transform=ax.transAxes, ha="center", va="center", fontsize=7)
    ax.tick_params(labelsize=7, length=2)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    target = _shown(attribution.fact.target)
    ax.set_title(f"Neurons of the answer {target}: {drawable(attribution.method)}", fontsize=8)
    note = str(attribution.ablation).replace("; ", "\n", 1)
    ax.set_xlabel(f"{attribution.unit}; words promoted\n{note}", fontsize=6.5, linespacing=1.4)
    return ax


def _shown(word: str) -> str:
    """A token for a label: without spaces around it, shortened, its control characters spelt out."""
    text = word.strip() or word.replace(" ", "␣")
    text = text if text.isprintable() else repr(text)[1:-1]
    text = text if len(text) <= MOST_LETTERS else text[: MOST_LETTERS - 1] + "…"
    return drawable(text)
