"""Gradient screens: estimate what restoring each part of a model would do, all of them at once.

Exact tracing runs the model once for every part. Attribution patching (Nanda 2023,
https://www.neelnanda.io/mechanistic-interpretability/attribution-patching; Syed et al. 2023,
https://arxiv.org/abs/2310.10348; its failures: AtP*, https://arxiv.org/abs/2403.00745) replaces the runs by a
first-order estimate:

1. The clean run gives every unit's activation a_clean, the corrupted runs theirs, a_corrupted; the draws are those of
   `causal_trace`.
2. One backward pass through the corrupted runs gives the gradient of the answer's metric by each unit.
3. The estimated effect of restoring a unit is (a_clean - a_corrupted) . gradient, the mean over the samples.

Relevance patching (`locate.relevance`) is the same with another backward pass. Either costs two forward passes and one
backward pass for any number of units.

An estimate is no measurement: `Screen.verify` restores the largest exactly. On the default model, attribution patching
ranks units better and finds more of the largest, heads above all. Among its largest mlp estimates a few can be far off,
even in sign; relevance patching's stay closer to a line there, which is where its published gain lies too, the linear
correlation over mlp outputs.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from locate.contrast import Contrast, Runs, Unit, UnitKind, check_choices
from locate.corrupt import Corruption, Gaussian
from locate.metrics import LogProbability, Metric
from locate.relevance import RelevancePatching
from surgery.errors import SurgeryError
from surgery.fact import Fact
from surgery.model import Model
from surgery.numbers import mean_and_error
from surgery.tokens import Span

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from locate.exact import Verified


@dataclass(frozen=True, kw_only=True)
class AttributionPatching:
    """Screen by the plain gradient (AtP)."""

    def __str__(self) -> str:
        return "attribution patching"

    def __call__(self, model: Model) -> AbstractContextManager[None]:
        """The context in which the model runs forward: none."""
        return nullcontext()


@dataclass(frozen=True, eq=False)
class Screen:
    """Estimated effects of restoring one unit in the corrupted run.

    Attributes:
        scores: in units of the metric, [positions, layers] for mlp and attention outputs, [positions, layers, heads] or
            [positions, layers, d_ff] for heads and neurons; negative where restoring would hurt the answer.
        errors: standard error of each score over the samples, 0 where there is only one.
        clean: the metric in the clean run.
        corrupted: the same with the subject corrupted, mean over the samples.
        tokens: the prompt's tokens as text.
        subject: positions of the subject.
        unit: what is rated.
        metric: what clean, corrupted and scores are values of; a logit difference is in logits, not normalised.
        method: how it was rated.
        corruption: how the subject was corrupted.
        samples: how many corruptions the scores are means over.
        seed: of the draws.
        fact: the fact.
        model: name of the model.
        forwards: forward passes.
        backwards: backward passes.
        seconds: wall-clock time.
    """

    scores: Float[np.ndarray, "positions layers *units"]
    errors: Float[np.ndarray, "positions layers *units"]
    clean: float
    corrupted: float
    tokens: tuple[str, ...]
    subject: Span
    unit: UnitKind
    metric: Metric
    method: AttributionPatching | RelevancePatching
    corruption: Corruption
    samples: int
    seed: int
    fact: Fact
    model: str
    forwards: int
    backwards: int
    seconds: float

    def __post_init__(self) -> None:
        if self.scores.shape != self.errors.shape or self.scores.shape[0] != len(self.tokens):
            raise ValueError(f"{len(self.tokens)} tokens do not label scores of shape {self.scores.shape}")
        if self.scores.ndim != (3 if self.unit in ("head", "neuron") else 2):
            raise ValueError(f"scores of shape {self.scores.shape} are not those of {self.unit} units")
        if not np.isfinite(self.scores).all():
            raise ValueError("a score is not finite")

    @property
    def by_layer(self) -> Float[np.ndarray, "positions layers"]:
        """Scores of whole layers: of heads and neurons the sum, which is the attention's or mlp's own score."""
        return self.scores if self.scores.ndim == 2 else self.scores.sum(-1)

    def top(self, k: int) -> tuple[Unit, ...]:
        """The k units with the largest scores by magnitude, harmful ones among them, largest first.

        Raises:
            SurgeryError: there are fewer units, or none is asked for.
        """
        if not 1 <= k <= self.scores.size:
            raise SurgeryError(f"there is no top {k} of {self.scores.size} units; ask for 1 to {self.scores.size}")
        order = np.argsort(-np.abs(self.scores), axis=None, kind="stable")[:k]
        places = np.stack(np.unravel_index(order, self.scores.shape), -1).tolist()
        return tuple(Unit(self.unit, layer, position, *index) for position, layer, *index in places)

    def score(self, unit: Unit) -> float:
        """The score of one unit."""
        index = () if unit.index is None else (unit.index,)
        return float(self.scores[(unit.position, unit.layer, *index)])

    def verify(self, model: Model, k: int = 20) -> Verified:
        """Restore the top k units exactly, one at a time; see `locate.exact`."""
        from locate.exact import verified

        return verified(self, model, self.top(k))

    def as_record(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        top = self.top(min(20, self.scores.size))
        return {
            "fact": self.fact.as_record(),
            "model": self.model,
            "unit": self.unit,
            "metric": self.metric.name,
            "method": str(self.method),
            "corruption": str(self.corruption),
            "samples": self.samples,
            "seed": self.seed,
            "tokens": list(self.tokens),
            "subject": [self.subject.start, self.subject.stop],
            "clean": self.clean,
            "corrupted": self.corrupted,
            "top": [{"unit": str(unit), "score": self.score(unit)} for unit in top],
            "scores": self.scores.tolist(),
            "errors": self.errors.tolist(),
            "cost": {"forwards": self.forwards, "backwards": self.backwards, "seconds": self.seconds},
        }

    def plot(self, ax: Axes | None = None, *, position: int | None = None) -> Axes:
        """Draw the map; see `locate.figures.screen_map`."""
        from locate.figures import screen_map

        return screen_map(self, ax, position=position)


def screen(
    model: Model,
    fact: Fact,
    *,
    method: AttributionPatching | RelevancePatching | None = None,
    unit: UnitKind = "mlp",
    metric: Metric | None = None,
    corruption: Corruption | None = None,
    samples: int = 10,
    seed: int = 1,
) -> Screen:
    """Rate every unit of a model at every position by what restoring it should do.

    Args:
        model: the model.
        fact: the fact; its `target` is the answer.
        method: `AttributionPatching()` by default, or `RelevancePatching()` where the plain gradient breaks down.
        unit: rate outputs of mlps or attentions, single heads or single neurons.
        metric: what is read off, as in `causal_trace`; by default the log-probability of the whole answer, which still
            has a gradient where the corrupted run gives the answer next to none.
        corruption: how the subject is hidden; Gaussian noise of 3 times the embeddings' deviation by default.
        samples: draws of the noise.
        seed: of the draws, the same as in `causal_trace`.

    Raises:
        SurgeryError: an option is out of range, prompt and subject cannot be tokenised, or the model computes something
            in a way the relevance rules do not meet.
    """
    check_choices(unit, samples)
    metric = LogProbability() if metric is None else metric
    method = AttributionPatching() if method is None else method
    corruption = Gaussian() if corruption is None else corruption
    started = time.perf_counter()
    contrast = Contrast(model, fact, unit, metric, corruption, samples, seed)
    clean, corrupted = contrast.clean(), contrast.differentiated(method)
    layers = [
        mean_and_error(_estimates(contrast, clean, corrupted, layer).movedim(0, -1).cpu().numpy())
        for layer in range(len(contrast.sites))
    ]
    return Screen(
        scores=np.stack([mean for mean, _ in layers], 1),
        errors=np.stack([error for _, error in layers], 1),
        clean=float(clean.metric[0]),
        corrupted=float(corrupted.metric.double().mean()),
        tokens=contrast.pair.question.token_texts[: contrast.width],
        subject=contrast.pair.span,
        unit=unit,
        metric=metric,
        method=method,
        corruption=contrast.pair.corruption,
        samples=contrast.pair.samples,
        seed=seed,
        fact=fact,
        model=model.source,
        forwards=contrast.forwards,
        backwards=contrast.backwards,
        seconds=time.perf_counter() - started,
    )


def _estimates(
    contrast: Contrast, clean: Runs, corrupted: Runs, layer: int
) -> Float[Tensor, "samples positions *units"]:
    """One layer's estimated effects."""
    moved = (clean.units[layer] - corrupted.units[layer]).double()
    gradient = corrupted.gradients[layer]
    if contrast.unit in ("head", "neuron"):
        gradient = gradient @ contrast.model.anatomy.matrix(contrast.sites[layer])
    effects = moved * gradient.double()
    if contrast.unit == "neuron":
        return effects
    return effects.unflatten(-1, (contrast.indices, -1)).sum(-1) if contrast.unit == "head" else effects.sum(-1)
