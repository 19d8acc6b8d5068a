"""A report as one page: nothing loaded from elsewhere, every text shown as text, readable on a phone and on paper."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from surgery.report_beside import ends, shown_beside, spread
from surgery.visible import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from surgery.report import Report
    from surgery.report_figures import Embedded

SHOWN = 40
"""Rows of a table that are open; the others are folded."""
DRAWN = 6
"""Facts whose attacks are drawn, those that withstood least first."""
LONGEST = 2000
"""Characters of a text that are shown."""


def page(report: Report, figures: Mapping[str, Figure | Axes], where: Mapping[str, Figure | Axes] | None = None) -> str:
    """The page's text.

    Args:
        report: what was found.
        figures: more figures to show, by what stands above each.
        where: maps of where the answer passes through; they stand beside a removal's depth, or, without, by the others.
    """
    traced = where or {}
    drawn, attacked = _drawn(report)
    return _template().render(
        report=report,
        edit=report.edit or {},
        words=in_words(report),
        given=_given(figures if report.beside.depth else {**traced, **figures}),
        traced=_given(traced if report.beside.depth else {}),
        **shown_beside(report.beside),
        drawn=drawn,
        undrawn=attacked - len(drawn),
    )


@cache
def _template() -> Template:
    """The page's template, compiled once; it is the same for every report."""
    environment = Environment(
        loader=PackageLoader("surgery", "data"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=shown,
    )
    environment.filters |= {"folded": folded, "number": number, "ends": ends, "spread": spread}
    return environment.get_template("report.html.jinja")


def in_words(report: Report) -> list[tuple[str, int]]:
    """What became of the facts, in words, and of how many; the gravest first."""
    order = ("still there", "suppressed", "collateral damage", "never known", "inconclusive", "holds")
    said = {"holds": "every claim holds" if report.claim == "rewritten" else "gone, not tested how deep"}
    counts = Counter(
        (order.index(one.overall), one.depth or said.get(one.overall, one.overall)) for one in report.verdicts
    )
    return [(word, count) for (_, word), count in sorted(counts.items())]


def shown(value: Any) -> Any:
    """A text as a page shows it: not endless, and nothing unseen in it."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    if len(value) > LONGEST:
        value = f"{value[:LONGEST]}… ({len(value):,} characters, whole in report.json)"
    return visible(value)


def number(value: float, shape: str) -> str:
    """A number in that shape; a dash where there is none."""
    return "–" if math.isnan(value) else shape % value


def folded(rows: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
    """The rows that are shown, and those that are folded."""
    return rows[:SHOWN], rows[SHOWN:]


def _given(figures: Mapping[str, Figure | Axes]) -> list[Embedded]:
    if not figures:
        return []
    from surgery.report_figures import embedded  # which draws

    return [embedded(drawn, title) for title, drawn in figures.items()]


def _drawn(report: Report) -> tuple[list[Embedded], int]:
    """Figures of the facts that withstood least, and how many facts were attacked."""
    attacked = sorted({one.fact for one in report.battery.findings})
    if not attacked:
        return [], 0
    from surgery.report_figures import figures_of  # which draws

    succeeded = Counter(one.fact for one in report.battery.findings if one.outcome == "succeeds")
    chosen = sorted(attacked, key=lambda fact: (-succeeded[fact], fact))[:DRAWN]
    return figures_of(report.battery, [(fact, f"Attacks on {report.verdicts[fact].fact}") for fact in chosen]), len(
        attacked
    )
