"""Prefixes about the old answer: an edit that holds for the bare prompt may give way once the answer was mentioned.

The paper on superficial editing (https://arxiv.org/abs/2505.12636) puts one of three texts before the prompt:
1. Wiki(o), an encyclopedic sentence about the old answer o; 2. Rep(o), o repeated; 3. Que(o), a question about o.
The texts are our own. All hold the answer; so do the controls' prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from surgery.fact import Fact
from surgery.model import Model
from surgery.shipped import data
from surgery.verification.asking import probabilities
from surgery.verification.attack import Aspect, Attempt, Profile


@dataclass(frozen=True, kw_only=True)
class AnswerPrefixes:
    """Mention the old answer, then ask."""

    name: ClassVar[str] = "answer prefixes"
    about: ClassVar[str] = "the old answer told of, repeated or asked about before the prompt"
    aspect: ClassVar[Aspect] = "superficial"
    own_words: ClassVar[bool] = False
    profile: ClassVar[Profile] = "standard"
    unit: ClassVar[str] = "probability"
    floor: ClassVar[float] = 0.12

    def __call__(self, model: Model, facts: Sequence[Fact]) -> Attempt:
        """The old answer's probability after each prefix."""
        forms = data("wordings.json")["superficial"]
        table = [
            [(form["text"].format(target=fact.target.strip(), prompt=fact.prompt), fact.target) for form in forms]
            for fact in facts
        ]
        return Attempt(tuple(form["name"] for form in forms), probabilities(model, facts, table))
