"""Causal tracing: which hidden states carry a fact through a transformer.

Meng et al. 2022, section 2 (https://arxiv.org/abs/2202.05262):

1. The clean run answers the prompt; every state h_i^(l) of it is kept.
2. The corrupted run answers with the subject's embeddings changed, the same changes for every cell.
3. The corrupted-with-restoration run does the same with one state put back to its clean value, and the answer's
   probability is that cell's score: p_*,clean(h_i^(l))[o], the mean over the samples.
4. Of mlp and attention outputs, a window of layers is restored at once, for one alone moves little.

Two methods give the same numbers: `locate.plain` runs the whole model once for every cell, as the published code does;
`locate.fast` replays only what a restored cell can change.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from locate.corrupt import Corruption, Gaussian, embed
from locate.fast import fast_grid
from locate.plain import Grid, plain_grid
from surgery.errors import SurgeryError
from surgery.fact import Fact
from surgery.model import Model
from surgery.replay import CannotReplay, Replay
from surgery.site import KINDS, Kind, Site
from surgery.tokens import Question, Span, ask_fact

if TYPE_CHECKING:
    from matplotlib.axes import Axes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cost:
    """What a trace cost.

    Attributes:
        passes: runs of the model, whole or from some layer up.
        token_layers: tokens times layers computed, over all rows.
        seconds: wall-clock time.
    """

    passes: int
    token_layers: int
    seconds: float


@dataclass(frozen=True, eq=False)
class Trace:
    """Scores of one fact's states.

    Attributes:
        scores: probability of the answer's first token with that one state restored [positions, layers].
        errors: standard error of each score over the samples, 0 where there is only one.
        clean: the probability in the clean run.
        corrupted: the same with the subject corrupted and nothing restored, mean over the samples.
        tokens: the prompt's tokens as text.
        subject: positions of the subject.
        kind: what was restored.
        window: how many layers at once (1 for states).
        samples: how many corruptions the scores are means over.
        corruption: how the subject was corrupted, in words.
        fact: the fact traced.
        model: name of the model.
        cost: what it cost.
    """

    scores: Float[np.ndarray, "positions layers"]
    errors: Float[np.ndarray, "positions layers"]
    clean: float
    corrupted: float
    tokens: tuple[str, ...]
    subject: Span
    kind: Kind
    window: int
    samples: int
    corruption: str
    fact: Fact
    model: str
    cost: Cost

    def __post_init__(self) -> None:
        if self.scores.shape != self.errors.shape or self.scores.shape[0] != len(self.tokens):
            raise ValueError(f"{len(self.tokens)} tokens do not label scores of shape {self.scores.shape}")
        if not (self.scores >= 0).all() or not (self.scores <= 1 + 1e-6).all():
            raise ValueError("scores are probabilities, between 0 and 1")

    @property
    def effects(self) -> Float[np.ndarray, "positions layers"]:
        """Indirect effects: scores minus the corrupted run's probability; negative where restoring hurts."""
        return self.scores - self.corrupted

    def peak(self, within: Span | None = None) -> Site:
        """The site with the highest score, over all positions or those of a span such as `trace.subject`.

        States of the last token carry the finished answer, so their peak says little; ask within the subject.
        """
        chosen = self.scores if within is None else self.scores[within.start : within.stop]
        position, layer = np.unravel_index(int(chosen.argmax()), chosen.shape)
        return Site.at(int(layer), self.kind, int(position) + (within.start if within else 0))

    def as_record(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        return {
            "fact": self.fact.as_record(),
            "model": self.model,
            "kind": self.kind,
            "window": self.window,
            "samples": self.samples,
            "corruption": self.corruption,
            "tokens": list(self.tokens),
            "subject": [self.subject.start, self.subject.stop],
            "clean": self.clean,
            "corrupted": self.corrupted,
            "peak": self.peak().name,
            "peak_in_subject": self.peak(self.subject).name,
            "scores": self.scores.tolist(),
            "errors": self.errors.tolist(),
            "cost": {
                "passes": self.cost.passes,
                "token_layers": self.cost.token_layers,
                "seconds": self.cost.seconds,
            },
        }

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the heat map; see `locate.figures.heat_map`."""
        from locate.figures import heat_map

        return heat_map(self, ax)


def causal_trace(
    model: Model,
    fact: Fact,
    *,
    kind: Kind = "state",
    window: int = 10,
    corruption: Corruption | None = None,
    samples: int = 10,
    seed: int = 1,
    method: Literal["fast", "plain"] = "fast",
    progress: bool = True,
) -> Trace:
    """Trace one fact through every position and layer.

    Args:
        model: the model.
        fact: the fact; its `target` is the answer traced.
        kind: restore block outputs, or what mlp or attention add.
        window: layers restored at once for mlp and attention.
        corruption: how the subject is hidden; Gaussian noise of 3 times the embeddings' deviation by default.
        samples: draws of the noise; the standard error falls with their root.
        seed: of the draws.
        method: "fast" replays only what a restored cell can change (`locate.fast`); "plain" runs the whole model for
            every cell, as published. Their numbers are the same to rounding. A model whose blocks cannot be replayed is
            traced plainly, with a warning that says why.
        progress: show a bar where somebody is looking.

    Raises:
        SurgeryError: an option is out of range, or prompt and subject cannot be tokenised.
    """
    if kind not in KINDS:
        raise SurgeryError(f"there is no kind {kind!r} to restore; choose one of {', '.join(KINDS)}")
    if method not in ("fast", "plain"):
        raise SurgeryError(f"there is no tracing method {method!r}; choose 'fast' or 'plain'")
    if samples < 1 or window < 1:
        raise SurgeryError(f"samples and window are at least 1, not {samples} and {window}")
    corruption = Gaussian() if corruption is None else corruption
    started = time.perf_counter()
    question, span = ask_fact(model.tokenizer, fact, fact.target)
    noised = corruption(model, fact, embed(model, question, span), samples, seed)
    width = 1 if kind == "state" else window
    with torch.no_grad():
        grid = _grid(method, model, question, span, noised, kind, width, progress)
    scores = grid.scores.double().cpu().numpy()
    rows = scores.shape[-1]
    return Trace(
        scores=scores.mean(-1),
        errors=scores.std(-1, ddof=1) / np.sqrt(rows) if rows > 1 else np.zeros(scores.shape[:2]),
        clean=grid.clean,
        corrupted=float(grid.corrupted.double().mean()),
        tokens=question.token_texts[: question.answer_start],
        subject=span,
        kind=kind,
        window=width,
        samples=rows,
        corruption=str(corruption),
        fact=fact,
        model=model.source,
        cost=Cost(grid.passes, grid.token_layers, time.perf_counter() - started),
    )


def _grid(
    method: str,
    model: Model,
    question: Question,
    span: Span,
    corrupted: Float[Tensor, "samples subject d_model"],
    kind: Kind,
    width: int,
    progress: bool,
) -> Grid:
    if method == "fast":
        try:
            replay = Replay(model, question.prompt_ids)
        except CannotReplay as error:
            logger.warning("%s; tracing plainly, which takes several times longer", error)
        else:
            return fast_grid(replay, question, span, corrupted, kind, width, progress)
    return plain_grid(model, question, span, corrupted, kind, width, progress)
