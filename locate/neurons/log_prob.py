"""Log-probability increase: what a neuron adds to the answer's log probability by itself.

Yu & Ananiadou 2024, section 3.3 (https://arxiv.org/abs/2312.12141), "importance score of a value neuron":

1. h is the residual stream at the prompt's last position just before the layer's mlp adds to it (`stream`).
2. Imp(neuron i) = log p(w | h + m_i v_i) - log p(w | h), where p(. | x) = softmax(head(norm(x))) over the whole
   vocabulary and w is the answer's first token.

It sees what a neuron says to the answer directly, not through later layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from locate.neurons.method import Scores
from locate.neurons.stream import read_stream
from surgery.fact import Fact
from surgery.model import Model
from surgery.progress import bar
from surgery.tokens import ask

MOST_LOGITS = 2**24
"""Logits held at a time: 64 MB."""


@dataclass(frozen=True, kw_only=True)
class LogProbIncrease:
    """Score neurons by the log probability each adds to the stream before its mlp, at the last position, in nats.

    Costs one run of the model and one product of every neuron with the vocabulary, in bounded memory.
    """

    def __str__(self) -> str:
        return "log-probability increase"

    @torch.no_grad()
    def __call__(self, model: Model, fact: Fact, *, progress: bool = True) -> Scores:
        """Scores in nats.

        Raises:
            SurgeryError: the prompt or its answer has no tokens.
            UnsupportedModel: a neuron's share of the stream is not defined (see `stream`).
        """
        question = ask(model.tokenizer, fact.prompt, fact.target)
        stream, answer = read_stream(model, question), question.answer_ids[0]
        layers, d_ff = stream.activations.shape
        rows = max(1, MOST_LOGITS // model.anatomy.vocab)
        values = np.empty((layers, d_ff))
        for layer in bar(range(layers), "log-probability increase", show=progress):
            before = stream.before[layer]
            base = _log_prob(model, before[None], answer)
            for first in range(0, d_ff, rows):
                part = slice(first, min(first + rows, d_ff))
                increase = _log_prob(model, before + stream.added(layer, part), answer) - base
                values[layer, part] = increase.double().cpu().numpy()
        return Scores(values, "log-probability increase (nats)")


def _log_prob(model: Model, states: torch.Tensor, answer: int) -> torch.Tensor:
    logits = model.anatomy.unembed(states.to(model.dtype)).float()
    return logits[:, answer] - logits.logsumexp(-1)
