"""The side effects of an edit as one picture: a dot and an interval for each axis."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from surgery.errors import SurgeryError
from surgery.figures import axes
from surgery.verification.effect import Effect, Effects

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {"moved": "#b2182b", "unclear": "#888888", "kept": "#2166ac"}


def plot_effects(effects: Effects, ax: Axes | None = None) -> Axes:
    """Each axis' change in multiples of its floor, harm to the right; numbers in their own unit beside it.

    Within the shaded band a change is too small to count. Up to one floor the scale is linear, beyond it logarithmic.

    Raises:
        SurgeryError: there are no effects to draw.
    """
    if not effects.effects:
        raise SurgeryError("there are no effects to draw; measure some with effects(model, edit, facts)")
    count = len(effects.effects)
    ax = axes(ax, (8.5, 1.1 + 0.34 * count))
    ax.axvspan(-1, 1, color="#eeeeee", zorder=0)
    ax.axvline(0, color="#bbbbbb", linewidth=0.8, zorder=1)
    for row, one in enumerate(effects.effects):
        low, mid, high = _scaled(one)
        colour = COLOURS[one.outcome]
        if not math.isnan(low):
            ax.plot([low, high], [row, row], color=colour, linewidth=2, solid_capstyle="round", zorder=2)
        ax.plot([mid], [row], "o", color=colour, markersize=5, zorder=3)
        ax.annotate(
            _numbers(one), (1.01, row), xycoords=("axes fraction", "data"), va="center", fontsize=7, color=colour
        )
    ax.set_xscale("symlog", linthresh=1.0)
    ax.xaxis.set_major_formatter("{x:g}")
    reach = max(3.0, *(abs(x) for one in effects.effects for x in _scaled(one) if not math.isnan(x)))
    ax.set_xlim(-1.3 * reach, 1.3 * reach)
    ax.set_yticks(range(count), [one.axis for one in effects.effects], fontsize=8)
    ax.set_ylim(count - 0.4, -0.6)
    ax.set_xlabel("change, in multiples of the smallest that counts; harm to the right", fontsize=8)
    ax.tick_params(axis="x", labelsize=7)
    ax.set_title("What else the edit changed, 95 % intervals", fontsize=9, loc="left")
    return ax


def _scaled(one: Effect) -> tuple[float, float, float]:
    """Low end, mean and high end in floors, turned so that harm is to the right."""
    low, mid, high = (x / one.kind.floor for x in (one.change.low, one.change.mean, one.change.high))
    return (-high, -mid, -low) if one.kind.harm == "lower" else (low, mid, high)


def _numbers(one: Effect) -> str:
    ends = "" if math.isnan(one.change.low) else f" ({one.change.low:+.2g} to {one.change.high:+.2g})"
    either = ", either way" if one.kind.harm == "either" else ""
    return f"{one.change.mean:+.2g}{ends} {one.kind.unit}, {one.counted}{either}"
