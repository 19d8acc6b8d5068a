"""Figures of a report: each attack's lift among those of its controls, and how figures get into a page."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from surgery.errors import SurgeryError
from surgery.figures import axes, drawable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.transforms import Transform

    from surgery.verification.attack import Finding
    from surgery.verification.battery import Battery

COLOURS = {"succeeds": "#a33333", "resisted": "#2c7a4b", "no power": "#8a8a94", "not applicable": "#8a8a94"}
GREY = "#8a8a94"
LONGEST = 32


@dataclass(frozen=True)
class Embedded:
    """A figure as a page holds it.

    Attributes:
        title: what stands above it.
        alt: what it shows, in words.
        data: its address, which is its content.
        width: in pixels of a page, where there is room.
    """

    title: str
    alt: str
    data: str
    width: int


def plot_findings(battery: Battery, fact: int, ax: Axes | None = None) -> Axes:
    """Draw what attacks found about one fact: its lift before and after, among those of its controls.

    A row is an attack, a tick a control, a hollow dot the model before the edit, a full one the model judged: red where
    the attack succeeds, green where it is withstood, grey where it could tell nothing. The line to be beyond is dashed.

    Args:
        battery: what was found.
        fact: which of the facts, from 0.
        ax: where to draw.

    Raises:
        SurgeryError: the fact was not attacked.
    """
    found = _found(battery, fact)
    ax = axes(ax, (4.0, 1.2 + 0.26 * len(found)))
    for row, one in enumerate(found):
        after, before = one.after, one.before
        colour = COLOURS[one.outcome]
        if math.isnan(after.value):
            ax.annotate(
                "cannot be tried",
                (0.02, row),
                xycoords=_along(ax),
                fontsize=6.5,
                color=GREY,
                va="center",
            )
            continue
        ax.plot(after.controls, [row] * len(after.controls), "|", color=GREY, markersize=8, markeredgewidth=0.8)
        ax.plot([after.line] * 2, [row - 0.36, row + 0.36], color="black", linewidth=0.9, linestyle=(0, (2, 1.4)))
        if before is not None and not math.isnan(before.value):
            ax.plot([before.value, after.value], [row, row], color=colour, linewidth=0.8, alpha=0.55)
            ax.plot(before.value, row, "o", markersize=6, markerfacecolor="white", markeredgecolor=colour)
        ax.plot(after.value, row, "o", markersize=6, color=colour)
    ax.axvline(0, color="0.8", linewidth=0.7, zorder=0)
    ax.set_yticks(range(len(found)), [drawable(_short(one.attack)) for one in found], fontsize=7.5)
    ax.set_ylim(len(found) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    ax.tick_params(axis="x", labelsize=7, length=2)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.set_xlabel("lift over invented subjects", fontsize=7.5)
    ax.legend(handles=_legend(found), fontsize=7, frameon=False, ncols=2, loc="lower center", bbox_to_anchor=(0.4, 1))
    return ax


def findings_in_words(battery: Battery, fact: int) -> str:
    """What `plot_findings` shows, for those who do not see it.

    Raises:
        SurgeryError: the fact was not attacked.
    """
    told = [
        f"{one.attack} {one.outcome}"
        + ("" if math.isnan(one.after.value) else f", lift {one.after.value:+.2f}, line {one.after.line:+.2f}")
        + ("" if one.before is None or math.isnan(one.before.value) else f", before {one.before.value:+.2f}")
        for one in _found(battery, fact)
    ]
    return f"Lift of each attack among its controls: {'; '.join(told)}."


def embedded(
    drawn: Figure | Axes, title: str, *, alt: str | None = None, kind: Literal["png", "svg"] = "png", dpi: int = 160
) -> Embedded:
    """A figure, or that of some axes, as the content of a page. The figure stays open and is as it was.

    Args:
        drawn: the figure.
        title: what stands above it.
        alt: what it shows, in words; the title by default.
        kind: "svg" for lines and text, "png" for maps of many cells.
        dpi: dots an inch, of a png.
    """
    figure = drawn if isinstance(drawn, Figure) else drawn.get_figure(root=True)
    if not isinstance(figure, Figure):
        raise SurgeryError(f"{title!r} is no figure to put into a report; give a matplotlib Figure or Axes")
    content = io.BytesIO()
    # text as outlines: nothing that a viewer reads again, and no font it must have
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "report"}):
        figure.savefig(
            content, format=kind, dpi=dpi, bbox_inches="tight", metadata={"Date": None} if kind == "svg" else None
        )
    mime = "image/svg+xml" if kind == "svg" else "image/png"
    data = f"data:{mime};base64,{base64.b64encode(content.getvalue()).decode()}"
    return Embedded(title, alt or title, data, round(figure.get_figwidth() * 110))


def figures_of(battery: Battery, facts: Sequence[tuple[int, str]]) -> list[Embedded]:
    """`plot_findings` of some facts, each a number and a name, as the content of a page."""
    made = []
    for fact, label in facts:
        ax = plot_findings(battery, fact)
        try:
            made.append(embedded(ax, label, alt=findings_in_words(battery, fact), kind="svg"))
        finally:
            plt.close(ax.get_figure(root=True))
    return made


def _found(battery: Battery, fact: int) -> list[Finding]:
    found = battery.of(fact)
    if not found:
        raise SurgeryError(
            f"fact {fact} was not attacked, so there is nothing to draw; it has no controls, or no attack"
        )
    return found


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"


def _along(ax: Axes) -> Transform:
    """Across as a share of the axes, down in rows."""
    return ax.get_yaxis_transform()


def _legend(found: Sequence[Finding]) -> list[Line2D]:
    shown = [
        Line2D([], [], marker="|", linestyle="", color=GREY, markersize=8, label="controls"),
        Line2D([], [], color="black", linewidth=0.9, linestyle=(0, (2, 1.4)), label="line to be beyond"),
        Line2D([], [], marker="o", linestyle="", color="black", markersize=6, label="judged"),
    ]
    if any(one.before is not None for one in found):
        before = Line2D([], [], marker="o", linestyle="", markersize=6, markerfacecolor="white", label="before")
        before.set_markeredgecolor("black")
        shown.append(before)
    return shown
