"""A fact's clean and corrupted runs side by side: what each unit did in them, and how far the answer's metric moved.

Units are what a screen rates: the output of a layer's mlp or attention at a position, one attention head's part of it,
or one neuron of the mlp. Heads and neurons are inputs of a linear map W whose output is the site, so both directions
are exact without a hook on the input: the gradient at an input is W' times the gradient at the output, and restoring an
input moves the output by W times what was restored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from locate.corrupt import Corruption
from locate.metrics import Metric
from locate.pair import Pair
from surgery.errors import SurgeryError
from surgery.fact import Fact
from surgery.hooks import TraceDict, frozen, hidden, with_hidden
from surgery.model import Model
from surgery.site import Kind, Site
from surgery.tokens import pad

UnitKind = Literal["mlp", "attention", "head", "neuron"]
UNIT_KINDS: tuple[UnitKind, ...] = get_args(UnitKind)

SITES: dict[UnitKind, Kind] = {"mlp": "mlp", "neuron": "mlp", "attention": "attention", "head": "attention"}
"""The site through which a unit writes to the residual stream."""
MOST_TOKENS = 8192

Gradient = Callable[[Model], AbstractContextManager[None]]
"""The context of the forward run whose graph is differentiated."""


@dataclass(frozen=True)
class Unit:
    """One part of a model at one position: `L4.mlp@3`, or with its number `L4.head2@3`, `L4.neuron17@3`.

    Attributes:
        kind: what it is.
        layer: from 0.
        position: of the token.
        index: of the head or neuron in its layer; None for a whole mlp or attention output.
    """

    kind: UnitKind
    layer: int
    position: int
    index: int | None = None

    def __str__(self) -> str:
        return f"L{self.layer}.{self.kind}{'' if self.index is None else self.index}@{self.position}"


@dataclass(frozen=True, eq=False)
class Runs:
    """What a model did.

    Attributes:
        metric: the answer's, in each run; a logit difference is in logits, not normalised.
        units: by layer, what the units put out: the site's outputs, or its map's inputs for heads and neurons.
        gradients: by layer, of the metric by the site's outputs; empty where none were asked for.
    """

    metric: Float[Tensor, " samples"]
    units: list[Float[Tensor, "samples positions width"]]
    gradients: list[Float[Tensor, "samples positions d_model"]]


class Contrast:
    """One fact, asked cleanly and with its subject corrupted; counts its runs."""

    def __init__(
        self, model: Model, fact: Fact, unit: UnitKind, metric: Metric, corruption: Corruption, samples: int, seed: int
    ) -> None:
        self.model, self.unit, self.metric = model, unit, metric
        self.pair = Pair.of(model, fact, corruption, metric, samples, seed)
        self.width = self.pair.question.answer_start
        self.sites = [Site.at(layer, SITES[unit]) for layer in range(len(model.anatomy.layers))]
        self._names = [model.anatomy.name(site) for site in self.sites]
        self._inputs = unit in ("head", "neuron")
        self.forwards = self.backwards = 0

    @property
    def indices(self) -> int:
        """How many units of the kind there are in a layer at a position."""
        anatomy = self.model.anatomy
        return {"mlp": 1, "attention": 1, "head": anatomy.heads, "neuron": anatomy.d_ff}[self.unit]

    def clean(self) -> Runs:
        """The clean run, one row."""
        with torch.no_grad():
            metric, traces, _ = self._run(1, probes=False)
        return Runs(metric, self._units(traces, 1), [])

    def corrupted(self) -> Runs:
        """The corrupted runs."""
        with torch.no_grad(), self.pair.corrupting():
            metric, traces, _ = self._run(self.pair.samples, probes=False)
        return Runs(metric, self._units(traces, self.pair.samples), [])

    def differentiated(self, gradient: Gradient) -> Runs:
        """The corrupted runs with gradients, one backward pass for all samples.

        Nothing in one row acts on another, so the gradient of the sum holds every row's own.
        """
        rows = self.pair.samples
        with torch.enable_grad(), frozen(self.model.hf), self.pair.corrupting():
            metric, traces, probes = self._run(rows, probes=True, context=gradient(self.model))
            gradients = torch.autograd.grad(metric.sum(), [probes[name] for name in self._names])
        self.backwards += 1
        return Runs(metric.detach(), self._units(traces, rows), [one[:, : self.width] for one in gradients])

    def restored(
        self, units: Sequence[Unit], shifts: Sequence[Float[Tensor, "samples d_model"]]
    ) -> Float[Tensor, "units samples"]:
        """The metric in every corrupted run with one unit restored, units in turn.

        Args:
            units: what is restored, each in rows of its own.
            shifts: what restoring each adds to the output of its site.
        """
        samples = self.pair.samples
        most = max(1, MOST_TOKENS // (samples * len(self.pair.ids)))
        parts = []
        for first in range(0, len(units), most):
            chosen = range(first, min(first + most, len(units)))
            by_name: dict[str, list[int]] = {}
            for i in chosen:
                by_name.setdefault(self._names[units[i].layer], []).append(i)

            def restore(output: Any, name: str, chosen: range = chosen, by_name: dict[str, list[int]] = by_name) -> Any:
                states = hidden(output, len(chosen) * samples).clone()
                for i in by_name[name]:
                    rows = slice((i - chosen.start) * samples, (i - chosen.start + 1) * samples)
                    states[rows, units[i].position] += shifts[i].to(states.dtype)
                return with_hidden(output, states)

            with (
                torch.no_grad(),
                self.pair.corrupting(len(chosen)),
                TraceDict(self.model.hf, by_name, retain_output=False, edit_output=restore),
            ):
                parts.append(self._metric(len(chosen) * samples).unflatten(0, (len(chosen), samples)))
        return torch.cat(parts)

    def _run(
        self, rows: int, *, probes: bool, context: AbstractContextManager[None] | None = None
    ) -> tuple[Float[Tensor, " rows"], TraceDict, dict[str, Tensor]]:
        """The metric, what was kept of each site, and zeros added to its outputs to differentiate by."""
        zeros: dict[str, Tensor] = {}

        def probe(output: Any, name: str) -> Any:
            states = hidden(output, rows)
            zeros[name] = torch.zeros_like(states).requires_grad_()
            return with_hidden(output, states + zeros[name])

        options: dict[str, Any] = {
            "retain_input": self._inputs,
            "retain_output": not self._inputs,
            "detach": True,
            "clone": True,  # Falcon adds to its mlp's output in place
            "edit_output": probe if probes else None,
        }
        with TraceDict(self.model.hf, self._names, **options) as traces:
            metric = self._metric(rows, context)
        return metric, traces, zeros

    def _units(self, traces: TraceDict, rows: int) -> list[Float[Tensor, "rows positions width"]]:
        kept = [traces[name].input if self._inputs else traces[name].output for name in self._names]
        return [hidden(one, rows)[:, : self.width] for one in kept]

    def _metric(self, rows: int, context: AbstractContextManager[None] | None = None) -> Float[Tensor, " rows"]:
        """The answer's metric in a run of so many rows; the context holds for the model, not for the metric."""
        batch = pad([self.pair.ids] * rows, device=self.model.device)
        columns = torch.arange(self.width - 1, len(self.pair.ids), device=self.model.device).expand(rows, -1)
        self.forwards += 1
        with context or nullcontext():
            logits = self.model.logits_at(batch, columns)
        return self.pair.readout(logits)


def check_choices(unit: str, samples: int) -> None:
    """Refuse what is no unit or no number of samples.

    Raises:
        SurgeryError: with the choices there are.
    """
    if unit not in UNIT_KINDS:
        raise SurgeryError(f"there is no unit {unit!r} to screen; choose one of {', '.join(UNIT_KINDS)}")
    if samples < 1:
        raise SurgeryError(f"samples is at least 1, not {samples}")
