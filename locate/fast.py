"""Causal tracing without repeating what a restored cell cannot change. Exact: the numbers are the plain method's.

In a causal model, restoring position t at layer l changes positions t, t + 1, ... above l and nothing else:

1. Positions before the subject are the same in every run; their keys and values come from the clean run, and restoring
   one of them changes nothing.
2. The corrupted runs are done once; each block's inputs, keys and values are kept.
3. For one position t, the rows of all layers and samples go up together. A row joins at the first layer it can differ
   in, with the corrupted run's states of positions t, t + 1, ...; keys and values before t are the corrupted run's.
4. Only the last position meets the vocabulary.

Rows of a position are split where they would exceed `MOST_TOKENS` at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from locate.plain import Grid
from surgery.hooks import Trace, TraceDict, hidden, with_hidden
from surgery.model import Model
from surgery.progress import bar
from surgery.replay import KeysValues, Replay
from surgery.site import Kind, window
from surgery.tokens import Question, Span, pad

MOST_TOKENS = 8192


def fast_grid(
    replay: Replay,
    question: Question,
    span: Span,
    corrupted: Float[Tensor, "samples subject d_model"],
    kind: Kind,
    width: int,
    progress: bool,
) -> Grid:
    """Trace a prompt by replay.

    Args:
        replay: the recorded prompt.
        question: prompt and answer.
        span: the subject's positions.
        corrupted: its embeddings in each corrupted run.
        kind: what to restore.
        width: layers restored at once.
        progress: show a bar where somebody is looking.
    """
    answer, layers, samples = question.answer_ids[0], len(replay.states) - 1, len(corrupted)
    sites = _clean_sites(replay, question, kind)
    run = _CorruptedRun(replay, question, span, corrupted)
    unrestored = _probability(replay.model, run.inputs[-1][:, -1], answer)
    scores = unrestored.expand(replay.width, layers, samples).clone()
    cells = [_Cell.of(layer, kind, width, layers) for layer in range(layers)]
    for position in bar(range(span.start, replay.width), f"tracing {kind}", show=progress):
        most = max(1, MOST_TOKENS // (samples * (replay.width - position)))
        for first in range(0, layers, most):
            part = cells[first : first + most]
            last = run.restored(part, position, sites, kind)
            scores[position, first : first + most] = _probability(replay.model, last, answer).unflatten(
                0, (len(part), samples)
            )
    clean = _probability(replay.model, replay.states[-1][-1:], answer)
    return Grid(float(clean[0]), unrestored, scores, run.passes, run.token_layers)


@dataclass(frozen=True)
class _Cell:
    """A cell's layer, the first layer its row can differ in, and the layers whose mlp or attention is restored."""

    layer: int
    joins: int
    restored: range

    @classmethod
    def of(cls, layer: int, kind: Kind, width: int, layers: int) -> _Cell:
        if kind == "state":
            return cls(layer, layer + 1, range(0))
        restored = window(layer, width, layers)
        return cls(layer, restored.start, restored)


class _CorruptedRun:
    """The corrupted runs, kept layer by layer, and replays from them with cells restored."""

    def __init__(
        self, replay: Replay, question: Question, span: Span, corrupted: Float[Tensor, "samples subject d_model"]
    ) -> None:
        self._replay, self._start, self._samples = replay, span.start, len(corrupted)
        layers = len(replay.states) - 1
        # the recording and the check ran the prompt 2 + 3 + 2 and 1 + 1/2 times, finding the sites once more
        self.passes, self.token_layers = 6, 9 * replay.width * layers
        states = self._noised(question, span, corrupted)[:, span.start :]
        self.inputs: list[Float[Tensor, "samples live d_model"]] = [states]
        self._past: list[KeysValues] = []
        for layer in range(layers):
            states, seen = self._block(layer, states, replay.keys_values[layer].before(span.start, len(corrupted)))
            self.inputs.append(states)
            self._past.append(seen)
        self.passes += 1

    def restored(
        self, cells: Sequence[_Cell], position: int, sites: Sequence[Float[Tensor, "width d_model"]], kind: Kind
    ) -> Float[Tensor, "rows d_model"]:
        """Last states at the last position of every sample with each cell restored, cells in turn."""
        live, rows = self.inputs[0].shape[1] - (position - self._start), self._samples
        states = self.inputs[0].new_empty(0, live, self.inputs[0].shape[2])
        joined = 0
        for layer in range(cells[0].joins, len(self.inputs)):
            new = [cell for cell in cells if cell.joins == layer]
            for cell in new:
                own = self.inputs[layer][:, -live:].clone()
                if kind == "state":
                    own[:, 0] = sites[cell.layer][position]
                states = torch.cat([states, own])
            joined += len(new)
            if layer < len(self._past):
                put_back = [cell for cell in cells[:joined] if layer in cell.restored]
                hook = nullcontext()
                if put_back:
                    chosen = slice(cells.index(put_back[0]) * rows, (cells.index(put_back[-1]) + 1) * rows)
                    hook = self._restoring(kind, layer, len(states), chosen, sites[layer][position])
                with hook:
                    states, _ = self._block(layer, states, self._past[layer].before(position, joined))
        self.passes += 1
        return states[:, -1]

    def _block(
        self, layer: int, states: Float[Tensor, "rows live d_model"], past: KeysValues | None
    ) -> tuple[Float[Tensor, "rows live d_model"], KeysValues]:
        self.token_layers += states.shape[0] * states.shape[1]
        return self._replay.block(layer, states, past)

    def _restoring(self, kind: Kind, layer: int, batch: int, rows: slice, clean: Float[Tensor, " d_model"]) -> Any:
        def restore(output: Any, name: str) -> Any:
            states = hidden(output, batch).clone()
            states[rows, 0] = clean
            return with_hidden(output, states)

        model = self._replay.model
        return Trace(model.hf, model.anatomy.names(kind)[layer], retain_output=False, edit_output=restore)

    def _noised(
        self, question: Question, span: Span, corrupted: Float[Tensor, "samples subject d_model"]
    ) -> Float[Tensor, "samples width d_model"]:
        """Input of the first block in each corrupted run."""

        def corrupt(output: Any, name: str) -> Any:
            states = hidden(output, len(corrupted)).clone()
            states[:, span.start : span.stop] = corrupted
            return with_hidden(output, states)

        model = self._replay.model
        batch = pad([question.prompt_ids] * len(corrupted), device=model.device)
        first = model.anatomy.names("state")[0]
        with (
            Trace(model.hf, first, retain_output=False, retain_input=True, stop=True) as trace,
            Trace(model.hf, model.anatomy.embedding, retain_output=False, edit_output=corrupt),
        ):
            model.hf.base_model(**model.inputs(batch))
        return trace.input


def _clean_sites(replay: Replay, question: Question, kind: Kind) -> list[Float[Tensor, "width d_model"]]:
    """What is put back, by layer."""
    if kind == "state":
        return replay.states[1:]
    model, names = replay.model, replay.model.anatomy.names(kind)
    with TraceDict(model.hf, names, clone=True) as trace:  # Falcon adds to its mlp's output in place
        model.hf.base_model(**model.inputs(pad([question.prompt_ids], device=model.device)))
    return [hidden(trace[name].output, 1)[0] for name in names]


def _probability(model: Model, states: Float[Tensor, "rows d_model"], answer: int) -> Float[Tensor, " rows"]:
    """The answer's probability from last states at the last position."""
    return model.anatomy.unembed(states).float().softmax(-1)[:, answer]
