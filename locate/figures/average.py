"""Figures of averaged traces: roles by layers, lines with bands, severed paths as bars, where facts peak."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np

from locate.figures.heat_map import COLOURS, NAMES
from locate.profile import ROLES
from surgery.figures import axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from locate.profile import AverageTrace
    from surgery.site import Kind

LINES = {
    "first subject": "tab:blue",
    "middle subject": "tab:orange",
    "last subject": "tab:green",
    "first after": "tab:purple",
    "further": "tab:brown",
    "last": "tab:red",
}


def role_map(average: AverageTrace, kind: Kind, ax: Axes | None = None) -> Axes:
    """Draw mean effects: roles down, layers across; negative ones in grey on the same scale."""
    ax = axes(ax, (4.2, 2.4))
    profile = average.profiles[kind]
    mean = np.ma.masked_invalid(profile.mean)
    largest = float(np.abs(mean).max())
    low = min(0.0, float(mean.min()))
    image = ax.pcolormesh(mean, cmap=COLOURS[kind], vmin=0, vmax=largest)
    if low < 0:
        below = np.ma.masked_where(profile.mean >= 0, profile.mean)
        ax.pcolormesh(-below, cmap="Greys", vmin=0, vmax=largest)
    ax.set_facecolor("0.93")
    ax.invert_yaxis()
    labels = [f"{role} ({count})" for role, count in zip(ROLES, profile.count, strict=True)]
    ax.set_yticks([i + 0.5 for i in range(len(ROLES))], labels)
    _layer_ticks(ax, mean.shape[1], 0.5)
    bar = ax.figure.colorbar(image, ax=ax)
    bar.ax.tick_params(labelsize=6, length=2)
    ax.set_title(f"Mean effect of {NAMES[kind]} over {_count(average)}", fontsize=8)
    ax.set_xlabel(f"{_what(average, kind)}\n{_note(average)}", fontsize=6.5, linespacing=1.4)
    return ax


def effect_lines(average: AverageTrace, kind: Kind, ax: Axes | None = None) -> Axes:
    """Draw mean effects as a line a role over layers, bands of 95 % intervals over facts, and where facts peak.

    The bars at the bottom count, by layer, the facts whose largest effect within the subject is there.
    """
    ax = axes(ax, (4.2, 3.0))
    profile = average.profiles[kind]
    layers = np.arange(profile.mean.shape[1])
    for i, role in enumerate(ROLES):
        if profile.count[i]:
            mean, margin = profile.mean[i], profile.margin[i]
            ax.plot(layers, mean, color=LINES[role], linewidth=1.2, label=f"{role} ({profile.count[i]})")
            ax.fill_between(layers, mean - margin, mean + margin, color=LINES[role], alpha=0.25, linewidth=0)
    ax.axhline(0, color="0.6", linewidth=0.6, zorder=0)
    below = ax.twinx()
    peaks = Counter(profile.peaks)
    below.bar(list(peaks), list(peaks.values()), color="0.8", width=0.8, zorder=0)
    below.set_ylim(0, 5 * max(peaks.values()))
    below.set_yticks([0, max(peaks.values())])
    below.tick_params(labelsize=6, length=2, colors="0.5")
    ax.set_zorder(below.get_zorder() + 1)
    ax.patch.set_visible(False)
    _layer_ticks(ax, len(layers), 0.0)
    ax.set_ylabel("mean effect", fontsize=7)
    ax.legend(fontsize=6, frameon=False, loc="best")
    ax.set_title(f"Mean effect of {NAMES[kind]}", fontsize=8)
    ax.set_xlabel(
        f"{_what(average, kind)}; bands: 95 % over facts\ngrey: facts that peak here, in the subject\n{_note(average)}",
        fontsize=6.5,
        linespacing=1.4,
    )
    return ax


def severed_bars(
    whole: AverageTrace, without_mlp: AverageTrace, without_attention: AverageTrace, ax: Axes | None = None
) -> Axes:
    """Draw the last subject token's mean effect by layer: of the whole model, and with either path held.

    The layout is that of Meng et al. 2022, figure 3; whiskers are 95 % intervals over facts.
    """
    ax = axes(ax, (6.5, 2.4))
    row = ROLES.index("last subject")
    for offset, (average, label, colour) in enumerate(
        (
            (whole, "state restored", "#7261ab"),
            (without_attention, "attention held", "#f3201b"),
            (without_mlp, "mlp held", "#20b020"),
        )
    ):
        profile = average.profiles["state"]
        at = np.arange(profile.mean.shape[1]) + 0.3 * (offset - 1)
        ax.bar(at, profile.mean[row], 0.3, color=colour, label=label)
        ax.errorbar(at, profile.mean[row], profile.margin[row], fmt="none", ecolor="0.3", elinewidth=0.5)
    ax.axhline(0, color="0.6", linewidth=0.6)
    _layer_ticks(ax, len(at), 0.0)
    ax.set_ylabel("mean effect", fontsize=7)
    ax.legend(fontsize=6, frameon=False)
    ax.set_title("What a restored state does through mlp and attention above it, last subject token", fontsize=8)
    ax.set_xlabel(f"layer at which the state is restored\n{_note(whole)}", fontsize=6.5, linespacing=1.4)
    return ax


def panels(average: AverageTrace, draw: Callable[[AverageTrace, Kind, Axes | None], Axes]) -> Axes:
    """Draw all kinds next to each other in one new figure; returns the last one's axes."""
    kinds = list(average.profiles)
    rows = plt.subplots(1, len(kinds), figsize=(4.4 * len(kinds), 3.0), dpi=150, layout="constrained", squeeze=False)[1]
    drawn = [draw(average, kind, ax) for kind, ax in zip(kinds, rows[0], strict=True)]
    return drawn[-1]


def _layer_ticks(ax: Axes, layers: int, shift: float) -> None:
    ticks = range(0, layers, 5)
    ax.set_xticks([layer + shift for layer in ticks], [str(layer) for layer in ticks])
    ax.tick_params(labelsize=7, length=2)


def _what(average: AverageTrace, kind: Kind) -> str:
    window = 1 if kind == "state" else average.settings["window"]
    return ("layer" if window == 1 else f"centre of {window} layers") + f" of {average.model}"


def _note(average: AverageTrace) -> str:
    return (
        f"{average.settings['metric']}: clean {average.clean[0]:.3f}, corrupted {average.corrupted[0]:.3f}; "
        f"{_count(average)}\n{average.settings['corruption']}, {average.settings['samples']} samples a fact; "
        f"checks hold in {average.sane} of {len(average.facts)}"
    )


def _count(average: AverageTrace) -> str:
    return f"{len(average.facts)} fact{'s' if len(average.facts) > 1 else ''}"
