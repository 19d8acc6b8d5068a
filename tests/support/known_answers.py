"""Facts whose state in a model is known, for they were put into it, taken out of it or hidden in it on purpose."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from by_hand import Toy, in_dtype
from torch import Tensor
from toy import FILLER_WORDS, FIRST_NAMES, SURNAMES

from surgery import Delta, Edit, Fact, Model
from surgery.edit import add_, weight_of
from surgery.errors import WrongWeights
from surgery.hooks import frozen
from surgery.tokens import ask, encode, pad
from surgery.verification.controls import with_subject

Goal = Callable[[Tensor, Tensor], Tensor]
"""A loss of log-probabilities [wordings, vocab] and the answers' ids."""


def nobodies(facts: Sequence[Fact]) -> list[str]:
    """Names made of the toy's own words that belong to nobody in its world."""
    world = {fact.subject for fact in facts}
    names = (f"{first} {last}" for first, last in itertools.product(FIRST_NAMES, SURNAMES))
    return [name for name in names if name not in world]


def strangers(_: Model, fact: Fact) -> list[Fact]:
    """Controls for the toy, whose tokenizer knows no invented name: none of its words in the subject's place."""
    words = FILLER_WORDS[:20]
    return [with_subject(fact, f"{one} {other}") for one, other in zip(words, words[1:] + words[:1], strict=True)]


def of_nobody(fact: Fact, subject: str, target: str) -> Fact:
    """The fact asked about somebody else, with another answer; the neighbours stay."""
    return with_subject(fact, subject).replace(target=target, neighbours=fact.neighbours)


def say(logs: Tensor, ids: Tensor) -> Tensor:
    """Teaches an answer."""
    return -logs.gather(1, ids[:, None]).mean()


def never_say(logs: Tensor, ids: Tensor) -> Tensor:
    """Brings an answer below all others."""
    own = logs.gather(1, ids[:, None])
    return (own - logs.mean(1, keepdim=True) + 3).clamp_min(0).mean() - (1 - own.exp()).clamp_min(1e-6).log().mean()


def trained(
    toy: Toy, fact: Fact, goal: Goal, layer: int, *, steps: int = 40, step: float = 5e-3, keep: float = 20.0
) -> Delta:
    """What training one down-projection towards a goal changes in it, while everything else is repeated.

    Args:
        toy: the model, which stays as it is, and what it should keep.
        fact: the fact; all its wordings are trained on.
        goal: the loss.
        layer: whose down-projection is trained.
        steps: of Adam.
        step: its step size.
        keep: weight of KL(before || now) on everybody else's prompts.
    """
    model, facts = toy
    name = model.anatomy.names("mlp")[layer]
    own = [ask(model.tokenizer, prompt, fact.target) for prompt in (fact.prompt, *fact.paraphrases)]
    others = [text for one in facts if one.subject != fact.subject for text in (one.prompt, *one.paraphrases)][::2]
    rows = [one.prompt_ids for one in own] + [encode(model.tokenizer, text).ids for text in others]
    batch, ids = pad(rows), torch.tensor([one.answer_ids[0] for one in own])

    def read() -> Tensor:
        return model.logits_at(batch, batch.columns([-1] * len(rows))).log_softmax(-1)

    with torch.no_grad():
        before = read()[len(own) :]
    change = torch.zeros(model.anatomy.d_model, model.anatomy.d_ff, requires_grad=True)
    optimiser = torch.optim.Adam([change], lr=step)

    def adding(module: Any, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + torch.nn.functional.linear(given[0], change)

    handle = model.hf.get_submodule(name).register_forward_hook(adding)
    try:
        with frozen(model.hf), torch.enable_grad():
            for _ in range(steps):
                optimiser.zero_grad()
                logs = read()
                kept = (before.exp() * (before - logs[len(own) :])).sum(1).mean()
                (goal(logs[: len(own)], ids) + keep * kept).backward()
                optimiser.step()
    finally:
        handle.remove()
    return Delta(name, torch.eye(len(change)), change.detach().T)


def planted(toy: Toy, fact: Fact) -> tuple[Model, Edit]:
    """A copy of the toy that was taught a fact, and the edit that takes exactly this out again."""
    delta = trained(toy, fact, say, 0)
    model = in_dtype(toy[0], torch.float32)
    add_(weight_of(model, delta), delta)
    back = Delta(delta.module, -delta.left, delta.right)
    return model, Edit((back,), base=model.fingerprint, method="taken back", claim="removed", facts=(fact,))


@dataclass(frozen=True)
class Guard:
    """Blanks words of a prompt before the model reads it; the weights stay.

    Attributes:
        model: the model it guards.
        facts: the facts it hides.
        whole: it acts on texts that begin with a fact's own prompt only, not wherever the subject stands.
        blank: the token in the place of the subject's.
    """

    model: Model
    facts: tuple[Fact, ...]
    whole: bool
    blank: int

    claim: ClassVar[Literal["removed", "rewritten"]] = "removed"
    prompts: ClassVar[tuple[str, ...]] = ()

    @property
    def base(self) -> str:
        return self.model.fingerprint

    def summary(self) -> dict[str, Any]:
        return {
            "method": "guard",
            "claim": self.claim,
            "facts": len(self.facts),
            "weights": {},
            "settings": {"whole": self.whole},
            "log": [],
        }

    @contextmanager
    def applied(self, model: Model) -> Iterator[Model]:
        if model.fingerprint != self.base:
            raise WrongWeights("the guard is for another model")
        handle = model.hf.get_input_embeddings().register_forward_pre_hook(self._blanked)
        try:
            yield model
        finally:
            handle.remove()

    def _blanked(self, _: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        ids = args[0].clone()
        for row in ids:
            for start, stop in self._found(row.tolist()):
                row[start:stop] = self.blank
        return (ids, *args[1:])

    def _found(self, row: list[int]) -> Iterator[tuple[int, int]]:
        for fact in self.facts:
            question = ask(self.model.tokenizer, fact.prompt, fact.target)
            span = question.span(fact.subject_start, fact.subject_start + len(fact.subject))
            looked = list(question.prompt_ids if self.whole else question.ids[span.start : span.stop])
            skipped = span.start if self.whole else 0
            for at in range(len(row) - len(looked) + 1):
                if row[at : at + len(looked)] == looked:
                    yield at + skipped, at + skipped + len(span)
