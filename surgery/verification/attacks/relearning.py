"""A few steps of training on texts that do not hold the fact, and the question again.

Fine-tuning on loosely related text (https://arxiv.org/abs/2406.13356), or on any text at all
(https://arxiv.org/abs/2409.18025), brings back much of what was unlearned. Here:
1. Lessons. Related: true statements about other subjects in the fact's own template, its neighbours and shipped facts
   of a relation with that template; each template has a course of its own. Unrelated: neutral everyday sentences, which
   come with the package.
2. Statements that name a subject the model is attacked for are left out, and those with the answer of a fact of the
   same template too, where others are left: they would teach every subject that answer, and tell nothing.
3. Five steps of AdamW, 2e-5, no decay, on all parameters of the blocks; L = mean negative log-likelihood of a token of
   the lessons, all of which are in every step.
4. The trained model is asked the prompt and its paraphrases. Controls are asked after the same training, so that what
   it teaches about the wording is not taken for memory.
Adam moves each number by about its step size at each step, here 1e-4 in all, a two-thousandth of what the default
model's weights measure. That halves its loss on ten related lessons, and the facts it knows stay known: p of five
prompts 0.53 to 0.99 after it, 0.27 to 0.94 before. Weights of 16 bits are trained in float32, rounded after each step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from surgery.errors import SurgeryError
from surgery.exchange import exchanged
from surgery.fact import SLOT, Fact
from surgery.hooks import frozen
from surgery.model import Model
from surgery.shipped import example_facts, neutral_texts
from surgery.tokens import ask, encode, pad
from surgery.verification.attack import Aspect, Attempt, Profile
from surgery.verification.attacks.wordings import WORDINGS, rated
from surgery.verification.naming import names, renamed, telling_subjects

ROWS = 32


Course = tuple[list[tuple[int, ...]], list[int]]
"""Token ids of the texts to train on, and which of the facts are asked then."""


@dataclass(frozen=True, kw_only=True)
class _Relearning(ABC):
    """Train a little, then ask; what on is the subclass's.

    Attributes:
        texts: how many lessons a course has.
        steps: of training.
        step: AdamW's step size.
        seed: which of the lessons are drawn where there are more; training draws nothing.
    """

    texts: int = 10
    steps: int = 5
    step: float = 2e-5
    seed: int = 1

    profile: ClassVar[Profile] = "standard"
    aspect: ClassVar[Aspect] = "relearning"
    own_words: ClassVar[bool] = True
    unit: ClassVar[str] = "probability"
    floor: ClassVar[float] = 0.05

    def __post_init__(self) -> None:
        if self.texts < 1 or self.steps < 1 or self.step <= 0:
            raise SurgeryError("texts, steps and step of relearning must be above 0")

    def __call__(self, model: Model, facts: Sequence[Fact]) -> Attempt:
        """The answer's probability after each wording, once trained; nan for facts with no lessons."""
        scores = np.full((len(facts), len(WORDINGS)), np.nan)
        for lessons, taught in self.courses(model, facts):
            with trained(model, lessons, steps=self.steps, step=self.step):
                scores[taught] = rated(model, [facts[i] for i in taught])
        return Attempt(WORDINGS, scores)

    @abstractmethod
    def courses(self, model: Model, facts: Sequence[Fact]) -> list[Course]:
        """What to train on, each time from the weights as they are; none of them is empty."""

    def _drawn(self, texts: Sequence[str]) -> list[str]:
        """So many of the texts, in their order."""
        if len(texts) <= self.texts:
            return list(texts)
        picked = np.random.RandomState(self.seed).choice(len(texts), self.texts, replace=False)
        return [texts[i] for i in sorted(picked)]


@dataclass(frozen=True, kw_only=True)
class RelatedRelearning(_Relearning):
    """Train on true statements about other subjects."""

    name: ClassVar[str] = "related relearning"
    about: ClassVar[str] = "five steps of training on other facts of the same relation, then asked again"

    def courses(self, model: Model, facts: Sequence[Fact]) -> list[Course]:
        """One a template: statements about the neighbours of its facts, and about shipped facts of that template."""
        made: list[Course] = []
        for template in dict.fromkeys(fact.template for fact in facts):
            own = [i for i, fact in enumerate(facts) if fact.template == template]
            pairs = _others(template, facts)
            answers = {facts[i].target.strip() for i in own}
            pairs = [pair for pair in pairs if pair[1].strip() not in answers] or pairs
            texts = {_statement(*pair): pair for pair in pairs}
            lessons = [ask(model.tokenizer, *texts[text]).ids for text in self._drawn(list(texts))]
            if lessons:
                made.append((lessons, own))
        return made


@dataclass(frozen=True, kw_only=True)
class UnrelatedRelearning(_Relearning):
    """Train on sentences about nothing in particular."""

    name: ClassVar[str] = "unrelated relearning"
    about: ClassVar[str] = "five steps of training on neutral sentences, then asked again"
    profile: ClassVar[Profile] = "full"

    def courses(self, model: Model, facts: Sequence[Fact]) -> list[Course]:
        """Shipped sentences that name no subject of the facts, for all of them."""
        edited = telling_subjects(facts)
        texts = [text for text in neutral_texts() if not _names(text, edited)]
        lessons = [encode(model.tokenizer, text).ids for text in self._drawn(texts)]
        return [(lessons, list(range(len(facts))))] if lessons else []


@contextmanager
def trained(model: Model, lessons: Sequence[Sequence[int]], *, steps: int, step: float) -> Iterator[Model]:
    """The model after a few steps of AdamW on all parameters of its blocks, for the length of a `with` block.

    Args:
        model: the model; afterwards it has its own weights again, bit for bit.
        lessons: token ids of the texts, all of which are in every step.
        steps: how many.
        step: AdamW's step size.

    Raises:
        SurgeryError: no lesson has two tokens.
    """
    rows = sorted((row for row in lessons if len(row) > 1), key=len)
    if not rows:
        raise SurgeryError("a text to train on needs at least two tokens; give longer ones")
    blocks = [model.hf.get_submodule(name) for name in model.anatomy.names("state")]
    weights = list({id(weight): weight for block in blocks for weight in block.parameters()}.values())
    sums = [weight.detach().float().clone() for weight in weights]
    # weights in float32 are the trained numbers themselves
    pairs = ((weight, one.to(weight.dtype)) for weight, one in zip(weights, sums, strict=True))
    with exchanged(pairs):
        with frozen(model.hf), torch.enable_grad():
            _descend_(model, weights, sums, rows, steps, step)
        yield model


def _descend_(
    model: Model, weights: list[nn.Parameter], sums: list[Tensor], rows: list[Sequence[int]], steps: int, step: float
) -> None:
    optimiser = torch.optim.AdamW(sums, lr=step, weight_decay=0.0, fused=True)
    count = sum(len(row) - 1 for row in rows)
    gradients = [weight.grad for weight in weights]
    try:
        for weight in weights:
            weight.requires_grad_(True)
            weight.grad = None
        for _ in range(steps):
            for start in range(0, len(rows), ROWS):
                (_loss(model, rows[start : start + ROWS]) / count).backward()
            for weight, one in zip(weights, sums, strict=True):
                one.grad = None if weight.grad is None else weight.grad.float()
                weight.grad = None
            optimiser.step()
            with torch.no_grad():
                for weight, one in zip(weights, sums, strict=True):
                    if weight.dtype != one.dtype:
                        weight.copy_(one)
    finally:
        for weight, one, old in zip(weights, sums, gradients, strict=True):
            weight.grad, one.grad = old, None


def _loss(model: Model, rows: Sequence[Sequence[int]]) -> Tensor:
    """Negative log-likelihood of the rows' tokens, each given those before it, summed."""
    batch = pad(rows, device=model.device)
    wanted = batch.ids[:, 1:][batch.mask[:, 1:].bool()]
    states = model.normed_states(batch)[:, :-1][batch.mask[:, 1:].bool()]
    return cross_entropy(model.anatomy.head(states).float(), wanted, reduction="sum")


def _others(template: str, facts: Sequence[Fact]) -> list[tuple[str, str]]:
    """Prompts with their answers: what may be taught of a template's relation."""
    near = [(one.prompt, one.target) for fact in facts if fact.template == template for one in fact.neighbours]
    near += [
        (template.replace(SLOT, one.subject), one.target)
        for one in example_facts()
        if template in (one.template, *(renamed(text, one.subject, SLOT) for text in one.paraphrases))
    ]
    asked = {text for fact in facts for text in (fact.prompt, *fact.paraphrases)}
    edited = telling_subjects(facts)
    return [pair for pair in dict.fromkeys(near) if pair[0] not in asked and not _names(_statement(*pair), edited)]


def _statement(prompt: str, target: str) -> str:
    return f"{prompt.strip()} {target.strip()}"


def _names(text: str, subjects: Sequence[str]) -> bool:
    return any(names(text, subject, any_case=True) for subject in subjects)
