"""A fact in neurons that were chosen for it: ground truth for locators.

The injection of the INJ benchmark, Chang et al. 2024 (https://arxiv.org/abs/2311.09060, section 3.1):

1. Choose a share of the neurons of every layer at random.
2. Learn an addition to their value vectors (their columns of the down-projections) with Adam on the mean negative log
   probability of the text's tokens, until it is below a limit or the steps are used up. Nothing else can hold the fact.
3. Add it to the weights for the length of a block; then put the old columns back, bit for bit, whatever happened.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from locate.neurons.activations import changed_neurons
from locate.neurons.text import Told, telling_loss
from surgery.fact import Fact
from surgery.hooks import TraceDict, frozen, hidden, with_hidden
from surgery.linear_map import oriented
from surgery.model import Model
from surgery.tokens import Question, ask

STEP = 0.1
"""Adam's step, as a share of the root mean square of a layer's weights."""


@dataclass(frozen=True, eq=False)
class Planted:
    """A fact in neurons that were chosen for it.

    Attributes:
        fact: the fact.
        neurons: indices of the neurons of each layer, sorted [layers, planted].
        loss_before: mean negative log probability of the answer's tokens before, in nats.
        loss: the same after.
        greedy: whether every token of the answer is the likeliest after.
        steps: optimiser steps taken.
        learned: whether the loss fell below the limit, or the steps at least made the answer the greedy one. Locators
            are only tried on learned facts.
    """

    fact: Fact
    neurons: Int[np.ndarray, "layers planted"]
    loss_before: float
    loss: float
    greedy: bool
    steps: int
    learned: bool


def draw_neurons(layers: int, d_ff: int, share: float, seed: int) -> Int[np.ndarray, "layers planted"]:
    """Indices of random neurons, as many in each layer, at least one; sorted [layers, planted]."""
    random = np.random.RandomState(seed)
    count = max(1, round(share * d_ff))
    return np.stack([np.sort(random.choice(d_ff, count, replace=False)) for _ in range(layers)])


@contextmanager
def planted(
    model: Model,
    fact: Fact,
    neurons: Int[np.ndarray, "layers planted"],
    *,
    told: Told = "all",
    limit: float = 0.05,
    steps: int = 200,
) -> Iterator[Planted]:
    """Inside the block, the model has learned a fact in the value vectors of some neurons; afterwards it is as it was.

    Args:
        model: the model.
        fact: what it learns.
        neurons: indices of the neurons of each layer [layers, planted].
        told: the tokens learned: the answer's, or all of prompt and answer but the first.
        limit: the loss to reach, in nats.
        steps: most optimiser steps.
    """
    question = ask(model.tokenizer, fact.prompt, fact.target)
    with torch.no_grad():
        before = float(telling_loss(model, question, told)[0])
    columns, taken = _learn(model, question, told, neurons, limit, steps)
    matrices = [oriented(model.hf.get_submodule(name)) for name in model.anatomy.names("mlp")]
    chosen = [torch.as_tensor(row, device=matrix.device) for row, matrix in zip(neurons, matrices, strict=True)]
    old = [matrix[:, at].detach().clone() for matrix, at in zip(matrices, chosen, strict=True)]
    try:
        with torch.no_grad():
            for matrix, at, new in zip(matrices, chosen, columns, strict=True):
                matrix[:, at] = (matrix[:, at].float() + new.to(matrix.device)).to(matrix.dtype)
            loss, greedy = telling_loss(model, question, told)
        yield Planted(fact, neurons, before, float(loss), greedy, taken, greedy or float(loss) < limit)
    finally:
        with torch.no_grad():
            for matrix, at, column in zip(matrices, chosen, old, strict=True):
                matrix[:, at] = column


def _learn(
    model: Model, question: Question, told: Told, neurons: Int[np.ndarray, "layers planted"], limit: float, steps: int
) -> tuple[list[Float[Tensor, "d_model planted"]], int]:
    """What to add to the columns of some neurons for the loss to fall below the limit, and the steps taken."""
    names = model.anatomy.names("mlp")
    indices = [torch.as_tensor(row) for row in neurons]
    added, groups = [], []
    for name, row in zip(names, indices, strict=True):
        matrix = oriented(model.hf.get_submodule(name))
        added.append(torch.zeros(len(matrix), len(row), device=matrix.device, requires_grad=True))
        groups.append({"params": [added[-1]], "lr": STEP * float(matrix.detach().float().square().mean().sqrt())})
    optimizer = torch.optim.Adam(groups)
    given: dict[int, Tensor] = {}
    taken = 0

    def keep(layer: int, states: Tensor) -> Tensor:
        given[layer] = states[..., indices[layer]].float()
        return states

    def add(output: Any, name: str) -> Any:
        layer, states = names.index(name), hidden(output, 1)
        return with_hidden(output, states + (given[layer] @ added[layer].T).to(states.dtype))

    with (
        torch.enable_grad(),
        frozen(model.hf),
        changed_neurons(model, keep, rows=1),
        TraceDict(model.hf, names, retain_output=False, edit_output=add),
    ):
        for _ in range(steps):
            loss, _ = telling_loss(model, question, told)
            if float(loss.detach()) < 0.9 * limit:  # well below it, as adding to weights rounds
                break
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            taken += 1
    return [one.detach() for one in added], taken
