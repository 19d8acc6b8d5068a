"""The answer read off hidden states: what a layer would say, and what it says more or less than the one before.

Patil et al. 2023 (https://arxiv.org/abs/2309.17410, section 4.1):
1. h_l: the residual stream at the prompt's last token after layer l; D_l = softmax(head(norm(h_l))) (logit lens).
2. Head projection: the candidates are the k likeliest tokens of every layer.
3. Probability delta: the candidates are the k tokens that gain most, and the k that lose most, from D_l to D_{l+1}.
There an answer counts that is a candidate. Candidates of thirty layers are many, and an answer that is easily guessed
is among them for invented subjects too; so here a layer scores what it gives the answer's first token: its probability,
or how much that changes. Answers of several tokens are read by their first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from surgery.fact import Fact
from surgery.model import Model
from surgery.tokens import ask
from surgery.verification.attack import Aspect, Attempt, Profile
from surgery.verification.states import last_states

ROWS = 32


@dataclass(frozen=True, kw_only=True)
class LogitLens:
    """Read every layer's last state by the model's own head."""

    name: ClassVar[str] = "logit lens"
    about: ClassVar[str] = "every layer's last state, read by the model's own head"
    aspect: ClassVar[Aspect] = "traces"
    own_words: ClassVar[bool] = False
    profile: ClassVar[Profile] = "quick"
    unit: ClassVar[str] = "probability"
    floor: ClassVar[float] = 0.05

    def __call__(self, model: Model, facts: Sequence[Fact]) -> Attempt:
        """The probability each layer gives the answer's first token."""
        scores = torch.cat(list(_read(model, facts)))
        return Attempt(_layers(scores.shape[1]), scores.numpy())


@dataclass(frozen=True, kw_only=True)
class ProbabilityDelta:
    """Read what changes from layer to layer."""

    name: ClassVar[str] = "probability delta"
    about: ClassVar[str] = "how much the answer gains or loses from one layer to the next"
    aspect: ClassVar[Aspect] = "traces"
    own_words: ClassVar[bool] = False
    profile: ClassVar[Profile] = "standard"
    unit: ClassVar[str] = "change of probability"
    floor: ClassVar[float] = 0.05
    source: ClassVar[LogitLens] = LogitLens()

    def __call__(self, model: Model, facts: Sequence[Fact]) -> Attempt:
        """Its size, from each layer to the next."""
        return self.derived(self.source(model, facts))

    def derived(self, attempt: Attempt) -> Attempt:
        """The same from what the lens read."""
        return Attempt(tuple(f"to {one}" for one in attempt.forms[1:]), np.abs(np.diff(attempt.scores, axis=1)))


def _layers(count: int) -> tuple[str, ...]:
    return tuple(f"layer {layer}" for layer in range(count))


@torch.no_grad()
def _read(model: Model, facts: Sequence[Fact]) -> Iterator[Float[Tensor, "rows layers"]]:
    """Probability of each answer's first token at every layer, at the last token of some prompts at a time."""
    questions = [ask(model.tokenizer, fact.prompt, fact.target) for fact in facts]
    layers = range(len(model.anatomy.layers))
    for start in range(0, len(questions), ROWS):
        part = questions[start : start + ROWS]
        states = last_states(model, [one.prompt_ids for one in part], layers)
        wanted = torch.tensor([one.answer_ids[0] for one in part], device=model.device)
        said = model.anatomy.unembed(states).float().softmax(-1)
        yield said.gather(2, wanted[:, None, None].expand(-1, said.shape[1], 1)).squeeze(-1).double().cpu()
