"""Averaged traces as a value: mean effects by role and layer, their intervals, and the facts they come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from jaxtyping import Float
from scipy import stats

from locate.trace import Trace
from surgery.numbers import counted, json_numbers
from surgery.site import Kind
from surgery.tokens import Span

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Role = Literal["first subject", "middle subject", "last subject", "first after", "further", "last"]
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True, eq=False)
class Profile:
    """Mean effects of one kind of site.

    Attributes:
        mean: mean effect over facts [roles, layers], nan where no fact has the role.
        margin: half the width of its 95 % interval, nan where fewer than two facts have the role.
        count: facts that have the role [roles].
        peaks: for each fact, the layer of its largest effect within the subject.
    """

    mean: Float[np.ndarray, "roles layers"]
    margin: Float[np.ndarray, "roles layers"]
    count: tuple[int, ...]
    peaks: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.mean.shape != self.margin.shape or {len(self.mean), len(self.count)} != {len(ROLES)}:
            raise ValueError(f"{len(ROLES)} roles do not label effects of shape {self.mean.shape}")


@dataclass(frozen=True, eq=False, kw_only=True)
class AverageTrace:
    """Traces averaged over facts.

    Attributes:
        profiles: by kind.
        clean: mean of the metric in the clean runs, and half its 95 % interval.
        corrupted: the same of the corrupted runs.
        facts: labels of the facts averaged.
        unknown: labels of those left out since the model does not know them, with the answer's rank.
        failed: labels of those that could not be traced, with the reason.
        sane: how many facts' traces pass all checks of `Trace.sanity`.
        settings: of the traces, in words.
        model: name of the model.
        seconds: what tracing took, also of traces found on disk.
    """

    profiles: dict[Kind, Profile]
    clean: tuple[float, float]
    corrupted: tuple[float, float]
    facts: tuple[str, ...]
    unknown: tuple[tuple[str, int], ...]
    failed: tuple[tuple[str, str], ...]
    sane: int
    settings: dict[str, Any]
    model: str
    seconds: float

    def peak(self, kind: Kind) -> tuple[Role, int]:
        """Role and layer of the largest mean effect, the last token aside: it carries the finished answer."""
        mean = self.profiles[kind].mean[: ROLES.index("last")]
        role, layer = np.unravel_index(int(np.nanargmax(mean)), mean.shape)
        return ROLES[int(role)], int(layer)

    def told(self) -> list[str]:
        """The findings in a few lines."""
        lines = [
            f"{counted(len(self.facts), 'fact')}; {len(self.unknown)} the model does not know, "
            f"{len(self.failed)} not traced; checks hold in {self.sane}",
            f"{self.settings['metric']}: clean {_within(*self.clean)}, corrupted {_within(*self.corrupted)}",
        ]
        for kind, profile in self.profiles.items():
            role, layer = self.peak(kind)
            at = ROLES.index(role), layer
            found = _within(profile.mean[at], profile.margin[at])
            lines.append(f"{kind}: {found} at layer {layer}, {role} token")
        return lines

    def as_record(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        profiles = {
            kind: {
                "mean": json_numbers(one.mean),
                "margin": json_numbers(one.margin),
                "count": list(one.count),
                "peaks": list(one.peaks),
            }
            for kind, one in self.profiles.items()
        }
        return {
            "model": self.model,
            "sane": self.sane,
            "settings": self.settings,
            "roles": list(ROLES),
            "profiles": profiles,
            "clean": json_numbers(np.array(self.clean)),
            "corrupted": json_numbers(np.array(self.corrupted)),
            "facts": list(self.facts),
            "unknown": [list(one) for one in self.unknown],
            "failed": [list(one) for one in self.failed],
            "seconds": self.seconds,
        }

    def plot(self, ax: Axes | None = None, *, kind: Kind | None = None) -> Axes:
        """Draw lines with bands of one kind, the first by default; see `locate.figures.effect_lines`."""
        from locate.figures import effect_lines

        first: Kind = next(iter(self.profiles))
        return effect_lines(self, kind or first, ax)


def averaged(
    rows: Sequence[Sequence[Trace]],
    *,
    unknown: tuple[tuple[str, int], ...] = (),
    failed: tuple[tuple[str, str], ...] = (),
) -> AverageTrace:
    """Average traces of several facts, each with the same kinds and settings."""
    first = rows[0][0]
    same = ("window", "samples", "metric", "direction", "severed", "dtype")
    profiles = {one.kind: _profile([row[i] for row in rows]) for i, one in enumerate(rows[0])}
    return AverageTrace(
        profiles=profiles,
        clean=_of_numbers([row[0].clean for row in rows]),
        corrupted=_of_numbers([row[0].corrupted for row in rows]),
        facts=tuple(row[0].fact.label for row in rows),
        unknown=unknown,
        failed=failed,
        sane=sum(all(all(one.sanity().values()) for one in row) for row in rows),
        settings={
            **{name: getattr(first, name) for name in same},
            "window": max(one.window for one in rows[0]),
            "corruption": first.corruption if "swapped" not in first.corruption else "swapped subject",
        },
        model=first.model,
        seconds=sum(row[0].cost.seconds for row in rows),
    )


def roles(subject: Span, tokens: int) -> dict[Role, list[int]]:
    """The positions of a prompt of so many tokens by role; those left of the subject have none."""
    start, last, end = subject.start, subject.last, tokens - 1
    return {
        "first subject": [start] if start < last else [],
        "middle subject": list(range(start + 1, last)),
        "last subject": [last],
        "first after": [last + 1] if last + 1 < end else [],
        "further": list(range(last + 2, end)),
        "last": [end] if end > last else [],
    }


def _profile(traces: Sequence[Trace]) -> Profile:
    layers = traces[0].scores.shape[1]
    means, margins, counts = [], [], []
    for role in ROLES:
        found = [trace.effects[at].mean(0) for trace in traces if (at := roles(trace.subject, len(trace.tokens))[role])]
        found = [one for one in found if not np.isnan(one).any()]
        values = np.array(found).reshape(-1, layers)
        mean, margin = _mean_and_margin(values)
        means.append(mean)
        margins.append(margin)
        counts.append(len(values))
    peaks = tuple(trace.peak(trace.subject).layer for trace in traces)
    return Profile(np.array(means), np.array(margins), tuple(counts), peaks)


def _mean_and_margin(values: Float[np.ndarray, facts * layers]) -> tuple[Any, Any]:
    """Mean over facts, and half its 95 % interval by Student's t; nan where there are too few."""
    count, nothing = len(values), np.full(values.shape[1], np.nan)
    if count < 2:
        return (values[0] if count else nothing), nothing
    return values.mean(0), stats.t.ppf(0.975, count - 1) * stats.sem(values, axis=0)


def _of_numbers(values: Sequence[float]) -> tuple[float, float]:
    mean, margin = _mean_and_margin(np.array(values)[:, None])
    return float(mean[0]), float(margin[0])


def _within(mean: float, margin: float) -> str:
    """A mean with its interval, where there is one."""
    return f"{mean:.3f}" + ("" if np.isnan(margin) else f" ± {margin:.3f}")
