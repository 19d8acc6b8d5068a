"""Zero-out: the exact cost of losing each neuron, one run of the model a neuron.

Score = log p(answer) - log p(answer with the neuron at 0), the "zero-out" of Chang et al. 2024
(https://arxiv.org/abs/2311.09060) and the brute force other scores are estimates of. A model of L layers of d_ff
neurons takes L * d_ff runs, so this is for small models.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from locate.neurons.activations import MOST_TOKENS, Positions, answer_log_prob, changed_neurons, columns
from locate.neurons.method import Scores
from surgery.fact import Fact
from surgery.model import Model
from surgery.progress import bar
from surgery.tokens import ask_fact


@dataclass(frozen=True, kw_only=True)
class ZeroOut:
    """Score neurons by what zeroing each takes from the log probability of the answer's first token, in nats.

    Attributes:
        positions: where a neuron is zeroed: at the last position, at the subject, or everywhere in the prompt.
    """

    positions: Positions = "all"

    def __str__(self) -> str:
        return f"zero-out, {self.positions}"

    @torch.no_grad()
    def __call__(self, model: Model, fact: Fact, *, progress: bool = True) -> Scores:
        """Scores in nats.

        Raises:
            SurgeryError: prompt and subject cannot be tokenised, or there are no such positions.
        """
        question, span = ask_fact(model.tokenizer, fact, fact.target)
        at = torch.tensor(columns(question, span, self.positions))
        layers, d_ff = len(model.anatomy.layers), model.anatomy.d_ff
        most = max(1, MOST_TOKENS // question.answer_start)
        clean = answer_log_prob(model, question, 1)
        values = np.empty((layers, d_ff))
        for layer in bar(range(layers), "zero-out", show=progress):
            for first in range(0, d_ff, most):
                neurons = torch.arange(first, min(first + most, d_ff))

                def zero(layer: int, given: Tensor, neurons: Tensor = neurons) -> Tensor:
                    new = given.clone()
                    new[torch.arange(len(neurons))[:, None], at, neurons[:, None]] = 0
                    return new

                with changed_neurons(model, zero, rows=len(neurons), layers=[layer]):
                    without = answer_log_prob(model, question, len(neurons))
                values[layer, neurons.numpy()] = (clean - without).double().cpu().numpy()
        return Scores(values, "log probability lost (nats)")
