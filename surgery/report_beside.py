"""What a report's page shows of what was measured beside the verdicts: its figures, and counts in words."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from surgery.numbers import Interval, counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from surgery.report_figures import Embedded
    from surgery.verification.beside import Beside
    from surgery.verification.generation import Generation


@dataclass(frozen=True)
class Score:
    """A classic score, before the edit and after.

    Attributes:
        name: which one.
        before: its mean with its interval, None without an edit.
        after: the same now.
        shape: of its numbers.
    """

    name: str
    before: Interval | None
    after: Interval
    shape: str


def shown_beside(beside: Beside) -> dict[str, Any]:
    """What the template shows, by the names it has there."""
    return {
        "effects": _effects(beside),
        "spoken": spoken(beside.generation) if beside.generation else [],
        "classic": classic(beside),
        "depths": _depths(beside),
    }


def ends(interval: Interval, shape: str) -> str:
    """The ends of an interval in that shape; a dash where there are none."""
    return "–" if math.isnan(interval.low) else f"{shape % interval.low} to {shape % interval.high}"


def spread(interval: Interval, shape: str) -> str:
    """A mean, with its interval in brackets where it has one; a dash where there is no mean."""
    if math.isnan(interval.mean):
        return "–"
    within = "" if math.isnan(interval.low) else f" ({ends(interval, shape)})"
    return f"{shape % interval.mean}{within}"


def spoken(generation: Generation) -> list[dict[str, Any]]:
    """For each form, how often each answer was said before and is now, by facts and by neighbours."""
    rows = []
    for form, wording in generation.wordings.items():
        for role, of in (("prompt", "fact"), ("neighbour", "neighbour")):
            said = [one for one in generation.spoken if (one.form, one.role) == (form, role)]
            if not said:
                continue
            counts = {}
            for answer in ("old", "new", "neither"):
                was, now = (sum(getattr(one, f"said_{when}") == answer for one in said) for when in ("before", "after"))
                counts[answer] = str(now) if said[0].before is None else f"{was} → {now}"
            if role == "neighbour" or not any(one.new for one in said):
                counts["new"] = "–"
            rows.append(
                {"form": form, "of": counted(len(said), of), "first": role == "prompt", "wording": wording, **counts}
            )
    return rows


def classic(beside: Beside) -> list[Score]:
    """The classic scores, fluency and consistency."""
    found = {when: one.summary() for when, one in beside.classic.items()}
    before, after = found.get("before", {}), found.get("after", {})
    scores = [Score(name, before.get(name), one, "%.2f") for name, one in after.items()]
    if "after" in beside.fluency:
        scores.append(Score("fluency", beside.fluency.get("before"), beside.fluency["after"], "%.0f"))
    if "after" in beside.consistency:
        scores.append(Score("consistency", beside.consistency.get("before"), beside.consistency["after"], "%.2f"))
    return scores


def _effects(beside: Beside) -> list[Embedded]:
    if not beside.effects or not beside.effects.effects:
        return []
    from surgery.verification.effect_figure import plot_effects  # which draws

    told = f"Change on each axis: {'; '.join(one.told for one in beside.effects.effects)}."
    return [_drawn(partial(plot_effects, beside.effects), "Each change in multiples of the smallest that counts", told)]


def _depths(beside: Beside) -> list[Embedded]:
    if not beside.depth:
        return []
    from surgery.verification.figures import plot_depth  # which draws

    return [
        _drawn(partial(plot_depth, one), f"What is missing at each layer: {one.fact}", one.told)
        for one in beside.depth.values()
    ]


def _drawn(plot: Callable[[], Axes], title: str, told: str) -> Embedded:
    import matplotlib.pyplot as plt

    from surgery.report_figures import embedded

    ax = plot()
    try:
        return embedded(ax, title, alt=told, kind="svg")
    finally:
        plt.close(ax.get_figure(root=True))
