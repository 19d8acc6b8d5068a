"""Gradient times activation: the first-order estimate of what zeroing a neuron takes from the answer.

1. One forward run, in which every neuron's activation a at the chosen positions is a + 0, with that 0 to be
   differentiated for; one backward run from log p(answer).
2. Score = sum over positions of a * d log p / da: for small a, what setting a to 0 would cost in nats.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from locate.neurons.activations import Positions, answer_log_prob, changed_neurons, columns
from locate.neurons.method import Scores
from surgery.fact import Fact
from surgery.hooks import frozen
from surgery.model import Model
from surgery.tokens import ask_fact


@dataclass(frozen=True, kw_only=True)
class GradientActivation:
    """Score neurons by activation times gradient of the log probability of the answer's first token, in nats.

    Attributes:
        positions: where activations count: the prompt's last position, those of the subject (where facts are looked
            up), or all.
    """

    positions: Positions = "last"

    def __str__(self) -> str:
        return f"gradient x activation, {self.positions}"

    def __call__(self, model: Model, fact: Fact, *, progress: bool = True) -> Scores:
        """Scores in nats.

        Raises:
            SurgeryError: prompt and subject cannot be tokenised, or there are no such positions.
        """
        question, span = ask_fact(model.tokenizer, fact, fact.target)
        at = columns(question, span, self.positions)
        nothing: dict[int, Tensor] = {}
        given: dict[int, Tensor] = {}

        def add_nothing(layer: int, states: Tensor) -> Tensor:
            given[layer] = states[0, at].detach()
            nothing[layer] = torch.zeros_like(given[layer], requires_grad=True)
            states = states.clone()
            states[0, at] += nothing[layer]
            return states

        with torch.enable_grad(), frozen(model.hf), changed_neurons(model, add_nothing, rows=1):
            answer_log_prob(model, question, 1).sum().backward()
        rows = []
        for layer in range(len(given)):
            gradient = nothing[layer].grad
            assert gradient is not None
            rows.append((given[layer].double() * gradient.double()).sum(0).cpu())
        return Scores(torch.stack(rows).numpy(), "activation x gradient (nats)")
