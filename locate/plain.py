"""Causal tracing as published: the whole model runs once for every cell."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from jaxtyping import Float
from torch import Tensor

from locate.experiment import Experiment, Grids, Patch, unpatched
from surgery.hooks import TraceDict, hidden, with_hidden
from surgery.progress import bar
from surgery.site import KINDS, Kind
from surgery.tokens import pad

Outputs = dict[Kind, list[Float[Tensor, "_ width d_model"]]]


def plain_grids(experiment: Experiment, *, progress: bool) -> Grids:
    """Run an experiment, one run of the model a cell.

    Args:
        experiment: what to run.
        progress: show a bar where somebody is looking.
    """
    runs = _Runs(experiment)
    clean, clean_outputs = runs.watched(corrupted=False)
    corrupted, corrupted_outputs = runs.watched(corrupted=True)
    restoring = experiment.direction == "restore"
    base, other = (corrupted_outputs, clean_outputs) if restoring else (clean_outputs, corrupted_outputs)
    grids = unpatched(experiment, clean[0], corrupted)
    cells = [(position, patch) for position in experiment.positions for patch in experiment.patches()]
    for position, patch in bar(cells, f"tracing {', '.join(experiment.kinds)}", show=progress):
        grids[patch.kind][position, patch.layer] = runs.patched(patch, position, base, other, corrupted=restoring)
    return Grids(float(clean[0]), corrupted, grids, runs.passes, runs.token_layers)


class _Runs:
    """One fact's runs, counted."""

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment
        self.passes = self.token_layers = 0

    def watched(self, *, corrupted: bool) -> tuple[Float[Tensor, " rows"], Outputs]:
        """The metric and all outputs of the clean run, or of the corrupted ones."""
        experiment, hf, anatomy = self._experiment, self._experiment.pair.model.hf, self._experiment.pair.model.anatomy
        rows = experiment.pair.samples if corrupted else 1
        names = [name for kind in KINDS for name in anatomy.names(kind)]
        trace = TraceDict(hf, names, detach=True, clone=True)  # Falcon adds to its mlp's output in place
        with trace:
            score = self._run(rows, corrupted)
        found: Outputs = {kind: [hidden(trace[name].output, rows) for name in anatomy.names(kind)] for kind in KINDS}
        return score, found

    def patched(
        self, patch: Patch, position: int, base: Outputs, other: Outputs, *, corrupted: bool
    ) -> Float[Tensor, " samples"]:
        """The metric with one cell's states exchanged."""
        anatomy, states = self._experiment.pair.model.anatomy, {}
        if patch.outputs is not None:
            source = other if patch.outputs.patched else base
            kind = patch.outputs.kind
            states = {anatomy.names(kind)[i]: source[kind][i][:, position] for i in patch.outputs.layers}
        if patch.state:
            states[anatomy.names("state")[patch.layer]] = other["state"][patch.layer][:, position]

        def exchange(output: Any, name: str) -> Any:
            new = hidden(output, self._experiment.pair.samples).clone()
            new[:, position] = states[name]
            return with_hidden(output, new)

        with TraceDict(self._experiment.pair.model.hf, states, retain_output=False, edit_output=exchange):
            score = self._run(self._experiment.pair.samples, corrupted)
        return score

    def _run(self, rows: int, corrupted: bool) -> Float[Tensor, " rows"]:
        pair, model = self._experiment.pair, self._experiment.pair.model
        batch = pad([pair.ids] * rows, device=model.device)
        self.passes += 1
        self.token_layers += rows * len(pair.ids) * self._experiment.layers
        with pair.corrupting() if corrupted else nullcontext():
            states = model.hf.base_model(**model.inputs(batch)).last_hidden_state
        first = pair.question.answer_start - 1
        return pair.readout(model.anatomy.head(states[:, first : first + pair.readout.tokens]).float())
