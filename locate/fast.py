"""Causal tracing without repeating what a patch cannot change. Exact: the numbers are the plain method's to rounding.

In a causal model, patching position t at layer l changes positions t, t + 1, ... above l and nothing else:

1. Positions before the subject are the same in all runs; their keys and values come from the clean run, and patching
   one of them changes nothing.
2. The clean and the corrupted runs are done once; each block's inputs, keys, values and outputs are kept.
3. For one position, the rows of all kinds, layers and samples go up together. A row joins at the first block whose work
   its patch changes, with the unpatched run's states of positions t, t + 1, ...; keys and values before t are that
   run's.
4. Windows of layers that begin at layer 0 differ only in where they end: each begins where the one before it ends, with
   that one's states.
5. Of the last block, only the positions that predict the answer are computed, and only they meet the vocabulary.

Rows go up in batches: on a CPU as many as its caches like, on a GPU as many as its free memory holds; where memory runs
out all the same, the batch is halved and done again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from locate.experiment import Experiment, Grids, Patch, unpatched
from surgery.errors import SurgeryError
from surgery.hooks import Trace, hidden, with_hidden
from surgery.products import fast_products
from surgery.progress import bar
from surgery.replay import KeysValues, Replay
from surgery.site import Kind
from surgery.tokens import pad

logger = logging.getLogger(__name__)

CPU_TOKENS = 2560
# what a row's copies of earlier keys and values cost, in tokens a position
KEYS_SHARE = 0.3


def fast_grids(experiment: Experiment, replay: Replay, *, tokens: int | None, progress: bool) -> Grids:
    """Run an experiment by replay.

    Args:
        experiment: what to run.
        replay: a recording of the experiment's `ids`.
        tokens: how many to compute at a time; None to choose.
        progress: show a bar where somebody is looking.
    """
    model = experiment.pair.model
    with fast_products(model.hf):
        stairs = _Stairs(experiment, replay)
        most = _batch_tokens(experiment) if tokens is None else tokens
        clean, corrupted = (experiment.read(run.last(experiment)) for run in (stairs.clean, stairs.corrupted))
        grids = unpatched(experiment, clean[0], corrupted)
        patches = _forked(experiment.patches())
        for position in bar(experiment.positions, f"tracing {', '.join(experiment.kinds)}", show=progress):
            live = len(experiment.pair.ids) - position
            for part, scores in _batches(
                stairs, patches, position, most / (live + KEYS_SHARE * len(experiment.pair.ids))
            ):
                for patch, score in zip(part, scores, strict=True):
                    grids[patch.kind][position, patch.layer] = score
    return Grids(float(clean[0]), corrupted, grids, stairs.passes, stairs.token_layers)


@dataclass(frozen=True, eq=False)
class _Run:
    """One run's rows from the subject on: the input of every block and the last one's output, keys, outputs."""

    inputs: list[Float[Tensor, "rows live d_model"]]
    past: list[KeysValues]
    outputs: dict[Kind, list[Float[Tensor, "rows live d_model"]]]

    def last(self, experiment: Experiment) -> Float[Tensor, "rows answer d_model"]:
        """Last states where the answer is predicted."""
        return self.inputs[-1][:, -experiment.pair.readout.tokens :]


@dataclass(frozen=True)
class _Step:
    """A patch, and the one before it whose row it forks from, if any."""

    patch: Patch
    after: Patch | None

    @property
    def joins(self) -> int:
        """The first block whose work differs from the row it begins with."""
        if self.after is None or self.after.outputs is None:
            return self.patch.joins
        return self.after.outputs.layers.stop


def _forked(patches: Sequence[Patch]) -> list[_Step]:
    """Patches in the order in which they join; those of windows from layer 0 on fork from the next shorter window's."""
    steps: list[_Step] = []
    shorter: dict[Kind, Patch] = {}
    for patch in patches:
        clipped = not patch.state and patch.outputs is not None and patch.joins == 0
        before = shorter.get(patch.kind) if clipped else None
        same = before is not None and before.outputs == patch.outputs
        steps.append(_Step(patch, None if same else before))
        if clipped and not same:
            shorter[patch.kind] = patch
    return sorted(steps, key=lambda step: step.joins)


def _batches(
    stairs: _Stairs, steps: Sequence[_Step], position: int, rows: float
) -> Iterator[tuple[list[Patch], Float[Tensor, "patches samples"]]]:
    """The metric of all patches of a position, as many at a time as `rows` allow; halved where memory runs out."""
    samples, first = stairs.experiment.pair.samples, 0
    most = max(1, int(rows) // samples)
    while first < len(steps):
        part = list(steps[first : first + most])
        present = {step.patch for step in part}
        part = [step if step.after in present else replace(step, after=None) for step in part]
        part.sort(key=lambda step: step.joins)
        try:
            scores = stairs.experiment.read(stairs.climbed(part, position))
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if "memory" not in str(error):
                raise
            if most == 1:
                raise SurgeryError(
                    f"memory is too small for {samples} rows of this prompt at a time; take fewer samples"
                ) from error
            most //= 2
            logger.info("memory is full; going on with %d patches at a time", most)
            continue
        yield [step.patch for step in part], scores.unflatten(0, (len(part), samples))
        first += len(part)


def _batch_tokens(experiment: Experiment) -> int:
    """How many tokens to compute at a time."""
    model = experiment.pair.model
    if model.device.type != "cuda":
        return CPU_TOKENS
    free, _ = torch.cuda.mem_get_info(model.device)
    a_token = (12 * model.anatomy.d_model + 4 * model.anatomy.d_ff) * model.dtype.itemsize
    return max(CPU_TOKENS, int(0.5 * free / a_token))


class _Stairs:
    """The runs of an experiment, kept layer by layer, and rows that climb from them."""

    def __init__(self, experiment: Experiment, replay: Replay) -> None:
        self.experiment, self._replay = experiment, replay
        self._start = experiment.pair.span.start
        # the recording ran the prompt 2 + 3 + 2 times and its check about 1 + 1/2 + 1/4
        self.passes, self.token_layers = 4, 9 * replay.width * experiment.layers
        self.clean = self._run(replay.states[0][None, self._start :])
        self.corrupted = self._run(self._noised()[:, self._start :])
        restoring = experiment.direction == "restore"
        self._base, self._other = (self.corrupted, self.clean) if restoring else (self.clean, self.corrupted)

    def climbed(self, steps: Sequence[_Step], position: int) -> Float[Tensor, "rows answer d_model"]:
        """Last states, where the answer is predicted, of every sample with each patch, patches in turn."""
        experiment, samples = self.experiment, self.experiment.pair.samples
        at, live = position - self._start, len(experiment.pair.ids) - position
        base = torch.arange(samples, device=experiment.pair.model.device) % len(self._base.inputs[0])
        states = self._base.inputs[0].new_empty(0, live, experiment.pair.model.anatomy.d_model)
        place = {step.patch: slice(i * samples, (i + 1) * samples) for i, step in enumerate(steps)}
        joined = 0
        for layer in range(steps[0].joins, experiment.layers + 1):
            for step in [step for step in steps if step.joins == layer]:
                before = place.get(step.after) if step.after is not None else None
                own = self._base.inputs[layer][base, at:] if before is None else states[before]
                if step.patch.state:
                    own[:, 0] = self._other.inputs[layer][:, at]
                states = torch.cat([states, own[:, -states.shape[1] :]])
                joined += 1
            if layer == experiment.layers:
                break
            past = self._base.past[layer].before(position, base.repeat(joined))
            answer = experiment.pair.readout.tokens if layer == experiment.layers - 1 else live
            held = [step.patch for step in steps[:joined]]
            with self._holding(held, layer, at, len(states)) if answer == live else ExitStack():
                states = self._block(layer, states, past, answer)[0]
        self.passes += 1
        return states[:, -experiment.pair.readout.tokens :]

    @contextmanager
    def _holding(self, patches: Sequence[Patch], layer: int, at: int, rows: int) -> Iterator[None]:
        """Outputs of a layer are set, in the rows of the patches that say so, at their position."""
        with ExitStack() as stack:
            for kind in ("mlp", "attention"):
                found = [i for i, patch in enumerate(patches) if patch.holds(kind, layer)]
                if found:
                    values = [self._source(patches[i]).outputs[kind][layer][:, at] for i in found]
                    stack.enter_context(self._setting(kind, layer, rows, found, values))
            yield

    def _source(self, patch: Patch) -> _Run:
        assert patch.outputs is not None
        return self._other if patch.outputs.patched else self._base

    def _setting(
        self, kind: Kind, layer: int, rows: int, patches: list[int], values: list[Float[Tensor, "_ d_model"]]
    ) -> Trace:
        samples, model = self.experiment.pair.samples, self.experiment.pair.model
        chosen: Int[Tensor, "patches samples"] = torch.tensor(patches, device=model.device)[:, None] * samples
        chosen = chosen + torch.arange(samples, device=model.device)
        wanted = torch.stack([value.expand(samples, -1) for value in values])

        def put(output: Any, name: str) -> Any:
            states = hidden(output, rows).clone()
            states[chosen, 0] = wanted
            return with_hidden(output, states)

        return Trace(model.hf, model.anatomy.names(kind)[layer], retain_output=False, edit_output=put)

    def _block(
        self, layer: int, states: Float[Tensor, "rows live d_model"], past: KeysValues | None, queries: int
    ) -> tuple[Float[Tensor, "rows queries d_model"], KeysValues]:
        self.token_layers += states.shape[0] * queries
        return self._replay.block(layer, states, past, queries)

    def _run(self, states: Float[Tensor, "rows live d_model"]) -> _Run:
        """A whole run from the subject on, block by block."""
        model, rows = self.experiment.pair.model, len(states)
        run = _Run([states], [], {"mlp": [], "attention": []})
        for layer in range(self.experiment.layers):
            past = self._replay.keys_values[layer].before(self._start, torch.zeros(rows, dtype=torch.long))
            with ExitStack() as stack:
                watched = {
                    kind: stack.enter_context(Trace(model.hf, model.anatomy.names(kind)[layer], clone=True))
                    for kind in run.outputs
                }
                states, seen = self._block(layer, states, past, states.shape[1])
            run.inputs.append(states)
            run.past.append(seen)
            for kind, trace in watched.items():
                run.outputs[kind].append(hidden(trace.output, rows))
        self.passes += 1
        return run

    def _noised(self) -> Float[Tensor, "samples width d_model"]:
        """Input of the first block in each corrupted run."""
        model = self.experiment.pair.model
        batch = pad([self.experiment.pair.ids] * self.experiment.pair.samples, device=model.device)
        first = model.anatomy.names("state")[0]
        with (
            Trace(model.hf, first, retain_output=False, retain_input=True, stop=True) as trace,
            self.experiment.pair.corrupting(),
        ):
            model.hf.base_model(**model.inputs(batch))
        return hidden(trace.input, self.experiment.pair.samples)
