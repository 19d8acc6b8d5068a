"""Causal tracing as published: the whole model runs once for every cell."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from surgery.hooks import Trace, TraceDict, hidden, with_hidden
from surgery.model import Model
from surgery.progress import bar
from surgery.site import Kind, window
from surgery.tokens import Batch, Question, Span, pad


@dataclass(frozen=True, eq=False)
class Grid:
    """The answer's probability in every run of a trace.

    Attributes:
        clean: in the clean run.
        corrupted: in each corrupted run with nothing restored.
        scores: in each corrupted run with one cell restored.
        passes: runs of the model, whole or from some layer up.
        token_layers: tokens times layers computed, over all rows.
    """

    clean: float
    corrupted: Float[Tensor, " samples"]
    scores: Float[Tensor, "positions layers samples"]
    passes: int
    token_layers: int


def plain_grid(
    model: Model,
    question: Question,
    span: Span,
    corrupted: Float[Tensor, "samples subject d_model"],
    kind: Kind,
    width: int,
    progress: bool,
) -> Grid:
    """Trace a prompt by one run of the model a cell.

    Args:
        model: the model.
        question: prompt and answer.
        span: the subject's positions.
        corrupted: its embeddings in each corrupted run.
        kind: what to restore.
        width: layers restored at once.
        progress: show a bar where somebody is looking.
    """
    run = _Run(model, question, span, corrupted)
    clean, states = run.clean(kind)
    unrestored = run.corrupted({}, 0)
    cells = [(position, layer) for position in range(run.width) for layer in range(len(states))]
    scores = [
        run.corrupted({one: states[one] for one in window(layer, width, len(states))}, position, kind)
        for position, layer in bar(cells, f"tracing {kind}", show=progress)
    ]
    grid = torch.stack(scores).unflatten(0, (run.width, len(states)))
    return Grid(clean, unrestored, grid, run.passes, run.token_layers)


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
        self.passes = self.token_layers = 0

    def clean(self, kind: Kind) -> tuple[float, list[Float[Tensor, "width d_model"]]]:
        """The answer's probability, and each layer's states."""
        names = self.model.anatomy.names(kind)
        trace = TraceDict(self.model.hf, names, detach=True, clone=True)  # Falcon adds to its mlp's output in place
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
        self.passes += 1
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

        with Trace(self.model.hf, self.model.anatomy.embedding, retain_output=False, edit_output=corrupt):
            yield
