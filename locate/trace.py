"""Causal tracing: which hidden states carry a fact through a transformer.

Meng et al. 2022, section 2 (https://arxiv.org/abs/2202.05262):

1. The clean run answers the prompt; every state h_i^(l) of it is kept.
2. The corrupted run answers with the subject's embeddings changed, the same changes for every cell.
3. The corrupted-with-restoration run does the same with one state put back to its clean value, and the answer's
   probability is that cell's score: p_*,clean(h_i^(l))[o], the mean over the samples.
4. Of mlp and attention outputs, a window of layers is restored at once, for one alone moves little.

`method="plain"` runs the whole model once for every cell, as the published code does.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from locate.corrupt import Corruption, Gaussian, embed
from surgery.errors import SurgeryError
from surgery.fact import Fact
from surgery.hooks import Trace as Hook
from surgery.hooks import TraceDict, hidden, with_hidden
from surgery.model import Model
from surgery.progress import bar
from surgery.site import KINDS, Kind, Site
from surgery.site import window as layers_around
from surgery.tokens import Batch, Question, Span, ask_fact, pad

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Cost:
    """What a trace cost.

    Attributes:
        forwards: runs of the model.
        token_layers: tokens times layers computed, over all rows.
        seconds: wall-clock time.
    """

    forwards: int
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
                "forwards": self.cost.forwards,
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
    method: Literal["plain"] = "plain",
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
        method: "plain": one run of the model for every cell.
        progress: show a bar where somebody is looking.

    Raises:
        SurgeryError: an option is out of range, or prompt and subject cannot be tokenised.
    """
    if kind not in KINDS:
        raise SurgeryError(f"there is no kind {kind!r} to restore; choose one of {', '.join(KINDS)}")
    if method != "plain":
        raise SurgeryError(f"there is no tracing method {method!r}; choose 'plain'")
    if samples < 1 or window < 1:
        raise SurgeryError(f"samples and window are at least 1, not {samples} and {window}")
    corruption = Gaussian() if corruption is None else corruption
    started = time.perf_counter()
    question, span = ask_fact(model.tokenizer, fact, fact.target)
    run = _Run(model, question, span, corruption(model, fact, embed(model, question, span), samples, seed))
    width = 1 if kind == "state" else window
    with torch.no_grad():
        clean, states = run.clean(kind)
        corrupted = run.corrupted({}, 0)
        cells = [(i, layer) for i in range(run.width) for layer in range(len(states))]
        scores = [
            run.corrupted({one: states[one] for one in layers_around(layer, width, len(states))}, position, kind)
            for position, layer in bar(cells, f"tracing {kind}", show=progress)
        ]
    grid = torch.stack(scores).reshape(run.width, len(states), -1).double().cpu().numpy()
    rows = grid.shape[-1]
    return Trace(
        scores=grid.mean(-1),
        errors=grid.std(-1, ddof=1) / np.sqrt(rows) if rows > 1 else np.zeros(grid.shape[:2]),
        clean=clean,
        corrupted=float(corrupted.double().mean()),
        tokens=question.token_texts[: run.width],
        subject=span,
        kind=kind,
        window=width,
        samples=rows,
        corruption=str(corruption),
        fact=fact,
        model=model.source,
        cost=Cost(run.forwards, run.token_layers, time.perf_counter() - started),
    )


class _Run:
    """One fact's clean and corrupted runs, counted."""

    def __init__(
        self, model: Model, question: Question, span: Span, corrupted: Float[Tensor, "samples subject d_model"]
    ) -> None:
        self.model, self.span = model, span
        self.noised = corrupted
        self.answer = question.answer_ids[0]
        self.width = question.answer_start
        self._row = question.prompt_ids
        self.forwards = self.token_layers = 0

    def clean(self, kind: Kind) -> tuple[float, list[Float[Tensor, "width d_model"]]]:
        """The answer's probability, and each layer's states."""
        names = self.model.anatomy.names(kind)
        trace = TraceDict(self.model.hf, names, detach=True)
        with trace:
            p = self._probability(self._batch(1))
        return float(p[0]), [hidden(trace[name].output, 1)[0] for name in names]

    def corrupted(
        self, restored: dict[int, Float[Tensor, "width d_model"]], position: int, kind: Kind = "state"
    ) -> Float[Tensor, " samples"]:
        """The answer's probability in each corrupted run, with states of some layers restored at one position."""
        names = self.model.anatomy.names(kind)
        clean = {names[layer]: states[position] for layer, states in restored.items()}

        def restore(output: Any, name: str) -> Any:
            states = hidden(output, len(self.noised)).clone()
            states[:, position] = clean[name]
            return with_hidden(output, states)

        with self._noise(), TraceDict(self.model.hf, clean, retain_output=False, edit_output=restore):
            p = self._probability(self._batch(len(self.noised)))
        return p

    def _batch(self, rows: int) -> Batch:
        self.forwards += 1
        self.token_layers += rows * self.width * len(self.model.anatomy.layers)
        return pad([self._row] * rows, device=self.model.device)

    def _probability(self, batch: Batch) -> Float[Tensor, " rows"]:
        return self.model.logits_at(batch, batch.columns([-1] * len(batch.ids))).softmax(-1)[:, self.answer]

    @contextmanager
    def _noise(self) -> Iterator[None]:
        def corrupt(output: Any, name: str) -> Any:
            states = hidden(output, len(self.noised)).clone()
            states[:, self.span.start : self.span.stop] = self.noised
            return with_hidden(output, states)

        with Hook(self.model.hf, self.model.anatomy.embedding, retain_output=False, edit_output=corrupt):
            yield
