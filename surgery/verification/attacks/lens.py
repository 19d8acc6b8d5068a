"""The answer read off hidden states: what a layer would say, and what it says more or less than the one before.

Patil et al. 2023 (https://arxiv.org/abs/2309.17410, section 4.1):
1. h_l: the residual stream at the prompt's last token after layer l; D_l = softmax(head(norm(h_l))) (logit lens).
2. Head projection: the candidates are the k likeliest tokens of every layer.
3. Probability delta: the candidates are the k tokens that gain most, and the k that lose most, from D_l to D_{l+1}.
The attack has the answer where its first token is a candidate; so a layer scores 1 / rank, and with a floor of 1/4
at least rank 4 counts, k = 4 there too. Answers of several tokens are read by their first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from surgery.fact import Fact
from surgery.hooks import TraceDict, hidden
from surgery.model import Model
from surgery.tokens import ask, pad
from surgery.verification.attack import Aspect, Attempt, Profile

ROWS = 32


@dataclass(frozen=True, kw_only=True)
class LogitLens:
    """Read every layer's last state by the model's own head."""

    name: ClassVar[str] = "logit lens"
    about: ClassVar[str] = "the answer among the four likeliest tokens of some layer, read by the model's own head"
    aspect: ClassVar[Aspect] = "traces"
    profile: ClassVar[Profile] = "quick"
    unit: ClassVar[str] = "1 / rank"
    floor: ClassVar[float] = 0.2

    def __call__(self, model: Model, facts: Sequence[Fact]) -> Attempt:
        """One over the rank of each answer's first token, at each layer."""
        scores = torch.cat([_ranks(said, wanted) for said, wanted in _read(model, facts)])
        return Attempt(_layers(scores.shape[1]), (1 / scores).numpy())


@dataclass(frozen=True, kw_only=True)
class ProbabilityDelta:
    """Read what changes from layer to layer."""

    name: ClassVar[str] = "probability delta"
    about: ClassVar[str] = "the answer among the four tokens that gain or lose most from one layer to the next"
    aspect: ClassVar[Aspect] = "traces"
    profile: ClassVar[Profile] = "quick"
    unit: ClassVar[str] = "1 / rank"
    floor: ClassVar[float] = 0.2

    def __call__(self, model: Model, facts: Sequence[Fact]) -> Attempt:
        """One over the better of two ranks: among the tokens that gain most, and among those that lose most."""
        found = []
        for said, wanted in _read(model, facts):
            change = said.softmax(-1).diff(dim=1)
            found.append(torch.minimum(_ranks(change, wanted), _ranks(-change, wanted)))
        scores = torch.cat(found)
        return Attempt(tuple(f"to {one}" for one in _layers(scores.shape[1] + 1)[1:]), (1 / scores).numpy())


def _layers(count: int) -> tuple[str, ...]:
    return tuple(f"layer {layer}" for layer in range(count))


def _ranks(said: Float[Tensor, "rows layers vocab"], wanted: Int[Tensor, " rows"]) -> Float[Tensor, "rows layers"]:
    own = said.gather(2, wanted[:, None, None].expand(-1, said.shape[1], 1))
    return (said > own).sum(-1).double().cpu() + 1


@torch.no_grad()
def _read(
    model: Model, facts: Sequence[Fact]
) -> Iterator[tuple[Float[Tensor, "rows layers vocab"], Int[Tensor, " rows"]]]:
    """Logits of every layer at the last token of some prompts at a time, and the ids looked for."""
    questions = [ask(model.tokenizer, fact.prompt, fact.target) for fact in facts]
    names = model.anatomy.names("state")
    for start in range(0, len(questions), ROWS):
        part = questions[start : start + ROWS]
        batch = pad([one.prompt_ids for one in part], device=model.device)
        ends, rows = batch.columns([-1] * len(part)), torch.arange(len(part), device=model.device)
        with TraceDict(model.hf, names) as seen:
            model.normed_states(batch)
        states = torch.stack([hidden(seen[name].output, len(part))[rows, ends] for name in names], 1)
        wanted = torch.tensor([one.answer_ids[0] for one in part], device=model.device)
        yield model.anatomy.unembed(states).float(), wanted
