"""What zeroing a set of neurons does: to the fact, against random sets, and to other facts.

1. Zero the chosen neurons at every position; ask the fact and its neighbours again.
2. The same for several random sets with as many neurons in each layer, none of them chosen.
3. The chosen neurons keep the fact if its probability falls by more than with random sets; they keep it alone if its
   neighbours' do not fall.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from locate.neurons.activations import zeroed
from surgery.fact import Fact, Neighbour
from surgery.model import Model
from surgery.predict import rate
from surgery.shipped import example_facts
from surgery.site import Neuron

MOST_NEIGHBOURS = 6


@dataclass(frozen=True)
class Ablation:
    """Probabilities of whole answers before and after zeroing neurons.

    Attributes:
        neurons: how many were zeroed.
        before: the fact's probability in the model as it is.
        after: with the chosen neurons at 0.
        random: with each random set at 0.
        neighbours: the prompts asked beside the fact.
        neighbours_before: their answers' probabilities in the model as it is.
        neighbours_after: with the chosen neurons at 0.
        neighbours_random: with random sets at 0, mean over the sets.
    """

    neurons: int
    before: float
    after: float
    random: tuple[float, ...]
    neighbours: tuple[Neighbour, ...]
    neighbours_before: tuple[float, ...]
    neighbours_after: tuple[float, ...]
    neighbours_random: tuple[float, ...]

    def __post_init__(self) -> None:
        counts = {len(one) for one in (self.neighbours_before, self.neighbours_after, self.neighbours_random)}
        if counts != {len(self.neighbours)}:
            raise ValueError(f"{len(self.neighbours)} neighbours do not label {counts} probabilities")
        if not self.random:
            raise ValueError("an ablation without random sets compares with nothing")

    @property
    def effect(self) -> float:
        """What the fact's probability falls by."""
        return self.before - self.after

    @property
    def random_effect(self) -> float:
        """What it falls by with random sets, in the mean."""
        return self.before - float(np.mean(self.random))

    @property
    def random_error(self) -> float | None:
        """Standard error of that mean; None with one set."""
        return float(np.std(self.random, ddof=1) / np.sqrt(len(self.random))) if len(self.random) > 1 else None

    @property
    def neighbour_effect(self) -> float | None:
        """What the neighbours' probabilities fall by, in the mean; None without neighbours."""
        return float(np.subtract(self.neighbours_before, self.neighbours_after).mean()) if self.neighbours else None

    def __str__(self) -> str:
        error = "" if self.random_error is None else f" ± {self.random_error:.3f}"
        beside = "no neighbours"
        if self.neighbours:
            means = np.mean(self.neighbours_before), np.mean(self.neighbours_after)
            beside = f"{len(self.neighbours)} neighbours {means[0]:.3f} to {means[1]:.3f}"
        return (
            f"{self.neurons} neurons zeroed: {self.before:.3f} to {self.after:.3f}; "
            f"random sets to {np.mean(self.random):.3f}{error}; {beside}"
        )

    def as_record(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        return {
            "neurons": self.neurons,
            "before": self.before,
            "after": self.after,
            "effect": self.effect,
            "random": list(self.random),
            "random_effect": self.random_effect,
            "random_error": self.random_error,
            "neighbours": [{"prompt": one.prompt, "target": one.target} for one in self.neighbours],
            "neighbours_before": list(self.neighbours_before),
            "neighbours_after": list(self.neighbours_after),
            "neighbours_random": list(self.neighbours_random),
            "neighbour_effect": self.neighbour_effect,
        }


def ablate(model: Model, fact: Fact, neurons: Sequence[Neuron], *, sets: int, seed: int) -> Ablation:
    """Zero neurons and random sets, and ask a fact and its neighbours each time.

    Args:
        model: the model; it is not changed.
        fact: the fact. If it has no neighbours, shipped facts of the same template are asked.
        neurons: those to zero.
        sets: how many random sets.
        seed: of the random sets.
    """
    neighbours = tuple(fact.neighbours) or _of_the_relation(fact)
    asked = [(fact.prompt, fact.target), *((one.prompt, one.target) for one in neighbours)]

    def probabilities(zero: Sequence[Neuron]) -> list[float]:
        with zeroed(model, zero):
            return [answer.probability for answer in rate(model, asked)]

    before, after = probabilities([]), probabilities(neurons)
    draws = np.array([probabilities(one) for one in random_sets(neurons, model.anatomy.d_ff, sets, seed)])
    return Ablation(
        neurons=len(neurons),
        before=before[0],
        after=after[0],
        random=tuple(draws[:, 0].tolist()),
        neighbours=neighbours,
        neighbours_before=tuple(before[1:]),
        neighbours_after=tuple(after[1:]),
        neighbours_random=tuple(draws[:, 1:].mean(0).tolist()),
    )


def random_sets(neurons: Sequence[Neuron], d_ff: int, sets: int, seed: int) -> list[tuple[Neuron, ...]]:
    """Random sets with as many neurons in each layer as given, drawn from those not given where they are enough."""
    random = np.random.RandomState(seed)
    counts = Counter(neuron.layer for neuron in neurons)
    pools = {}
    for layer, count in counts.items():
        taken = {neuron.index for neuron in neurons if neuron.layer == layer}
        others = [i for i in range(d_ff) if i not in taken]
        pools[layer] = others if len(others) >= count else list(range(d_ff))
    return [
        tuple(
            Neuron(layer, int(i))
            for layer, count in sorted(counts.items())
            for i in sorted(random.choice(pools[layer], count, replace=False))
        )
        for _ in range(sets)
    ]


def _of_the_relation(fact: Fact) -> tuple[Neighbour, ...]:
    others = [one for one in example_facts() if one.template == fact.template and one.subject != fact.subject]
    return tuple(Neighbour(one.prompt, one.target) for one in others[:MOST_NEIGHBOURS])
