"""A causal trace as a value: the metric with each cell patched, its uncertainty, labels and cost."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from locate.experiment import Direction
from surgery.fact import Fact
from surgery.numbers import json_numbers
from surgery.site import Kind, Site
from surgery.tokens import Span

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Cost:
    """What it took, all kinds that were traced in the same passes together.

    Attributes:
        passes: runs of the model, whole or from some layer up.
        token_layers: tokens times layers computed, over all rows.
        seconds: wall-clock time.
        kinds: how many grids came of it.
    """

    passes: int
    token_layers: int
    seconds: float
    kinds: int


@dataclass(frozen=True, eq=False, kw_only=True)
class Trace:
    """Scores of one fact's states.

    Attributes:
        scores: the metric with that one state patched [positions, layers], mean over the samples; nan where it was not
            asked for.
        errors: standard error of each score over the samples, 0 where there is only one.
        clean: the metric in the clean run.
        corrupted: the same with the subject corrupted and nothing restored, mean over the samples.
        rank: the answer's rank in the clean run, from 1; where it is not 1 the model does not know the fact so.
        tokens: the prompt's tokens as text.
        subject: positions of the subject.
        kind: what was patched.
        window: how many layers at once (1 for states).
        samples: how many corruptions the scores are means over.
        corruption: how the subject was corrupted, in words.
        metric: what the scores are: "probability" of the answer's first token, "log-probability" of the whole answer in
            nats, or "logit-difference", 0 in the corrupted run and 1 in the clean one.
        direction: "restore", clean states in the corrupted runs, or "noise", corrupted states in the clean run.
        severed: the path held at its unpatched outputs above a patched state, or None.
        fact: the fact traced.
        model: name of the model.
        dtype: the type it was traced in.
        cost: what it cost.
    """

    scores: Float[np.ndarray, "positions layers"]
    errors: Float[np.ndarray, "positions layers"]
    clean: float
    corrupted: float
    rank: int
    tokens: tuple[str, ...]
    subject: Span
    kind: Kind
    window: int
    samples: int
    corruption: str
    metric: str
    direction: Direction
    severed: str | None
    fact: Fact
    model: str
    dtype: str
    cost: Cost

    def __post_init__(self) -> None:
        if self.scores.shape != self.errors.shape or self.scores.shape[0] != len(self.tokens):
            raise ValueError(f"{len(self.tokens)} tokens do not label scores of shape {self.scores.shape}")
        found = self.scores[~np.isnan(self.scores)]
        if not len(found):
            raise ValueError("a trace without a single score")
        if self.metric == "probability" and not ((found >= 0) & (found <= 1 + 1e-6)).all():
            raise ValueError("scores are probabilities, between 0 and 1")

    @property
    def known(self) -> bool:
        """The model gives this answer to the prompt."""
        return self.rank == 1

    @property
    def unpatched(self) -> float:
        """The metric of the run that was patched: the corrupted ones when restoring, the clean one when noising."""
        return self.corrupted if self.direction == "restore" else self.clean

    @property
    def effects(self) -> Float[np.ndarray, "positions layers"]:
        """Indirect effects: what restoring gains, or noising loses; negative where the state held the answer down."""
        gained = self.scores - self.unpatched
        return gained if self.direction == "restore" else -gained

    @property
    def heading(self) -> str:
        """What stands above its map in a report."""
        return f"Where the answer of {self.fact.prompt!r} passes through"

    def peak(self, within: Span | None = None) -> Site:
        """The site with the largest effect, over all positions or those of a span such as `trace.subject`.

        States of the last token carry the finished answer, so their peak says little; ask within the subject.
        """
        chosen = self.effects if within is None else self.effects[within.start : within.stop]
        position, layer = np.unravel_index(int(np.nanargmax(chosen)), chosen.shape)
        return Site.at(int(layer), self.kind, int(position) + (within.start if within else 0))

    def at(self, site: Site) -> float:
        """The score of a site with a position."""
        return float(self.scores[site.position or 0, site.layer])

    def sanity(self) -> dict[str, bool]:
        """What must hold of any trace: no effect left of the subject, and the last state decides everything."""
        left = self.effects[: self.subject.start]
        checks = {"no effect left of the subject": bool((np.abs(left[~np.isnan(left)]) < 1e-6).all())}
        last = self.scores[-1, -1]
        # an answer's further tokens are read at positions after the prompt
        if self.kind == "state" and self.metric != "log-probability" and not np.isnan(last):
            wanted = self.clean if self.direction == "restore" else self.corrupted
            near = 1e-3 if self.dtype == "float32" else 5e-2
            checks["the last state decides"] = bool(abs(last - wanted) <= near * max(1.0, abs(wanted)))
        return checks

    def as_record(self) -> dict[str, Any]:
        """Everything, as JSON values; null where nothing was asked for."""
        plain = ("rank", "kind", "window", "samples", "corruption", "metric", "direction", "severed", "model", "dtype")
        return {
            **{name: getattr(self, name) for name in plain},
            "fact": self.fact.as_record(),
            "tokens": list(self.tokens),
            "subject": [self.subject.start, self.subject.stop],
            "clean": self.clean,
            "corrupted": self.corrupted,
            "peak": self.peak().name,
            "peak_in_subject": self.peak(self.subject).name,
            "sanity": self.sanity(),
            "scores": json_numbers(self.scores),
            "errors": json_numbers(self.errors),
            "cost": dataclasses.asdict(self.cost),
        }

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Trace:
        """The trace that `as_record` gave."""
        derived = ("peak", "peak_in_subject", "sanity")
        kept = {name: value for name, value in record.items() if name not in derived}
        arrays = {name: np.array(kept[name], dtype=float) for name in ("scores", "errors")}
        parts = {
            "fact": Fact.from_record(kept["fact"]),
            "subject": Span(*kept["subject"]),
            "cost": Cost(**kept["cost"]),
        }
        return cls(**{**kept, **arrays, **parts, "tokens": tuple(kept["tokens"])})

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the heat map; see `locate.figures.heat_map`."""
        from locate.figures import heat_map

        return heat_map(self, ax)
