"""What a method of attribution is: its own configuration, which scores every neuron of a model for a fact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from surgery.fact import Fact
from surgery.model import Model
from surgery.site import Neuron


@dataclass(frozen=True, eq=False)
class Scores:
    """What a method found.

    Attributes:
        values: a score for every neuron, higher the more the answer owes it [layers, d_ff].
        unit: what a score is, in words.
        gap: completeness gap, None where a method promises no sum (see `IntegratedGradients`).
        chosen: the neurons the method itself picks out, best first; None if it only ranks.
        rule: how it picked them, in words.
    """

    values: Float[np.ndarray, "layers d_ff"]
    unit: str
    gap: float | None = None
    chosen: tuple[Neuron, ...] | None = None
    rule: str = ""

    def __post_init__(self) -> None:
        if not np.isfinite(self.values).all():
            raise ValueError("a neuron's score is not a finite number")

    def ranked(self, count: int) -> tuple[Neuron, ...]:
        """The neurons of the highest scores, best first."""
        return ranked(self.values, count)


@runtime_checkable
class Method(Protocol):
    """Scores every neuron for one fact."""

    def __call__(self, model: Model, fact: Fact, *, progress: bool = True) -> Scores:
        """The scores."""
        ...


def ranked(values: Float[np.ndarray, "layers d_ff"], count: int) -> tuple[Neuron, ...]:
    """The neurons of the highest values, best first; of equal ones, the lower layer and index first."""
    order = np.argsort(-values, axis=None, kind="stable")[:count]
    return tuple(Neuron(int(i) // values.shape[1], int(i) % values.shape[1]) for i in order)


def by_score(neurons: Sequence[Neuron], values: Float[np.ndarray, "layers d_ff"]) -> tuple[Neuron, ...]:
    """These neurons, best first."""
    return tuple(sorted(neurons, key=lambda one: (-values[one.layer, one.index], one)))
