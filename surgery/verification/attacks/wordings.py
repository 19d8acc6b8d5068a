"""A fact's own prompt and its first paraphrases, asked by attacks that change the model and not the words.

`Asking` asks them of the model as it is. It is no attack of a battery: it tells whether a fact is known at all, where
there is no model before an edit to look at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from surgery.fact import Fact
from surgery.model import Model
from surgery.predict import rate
from surgery.verification.attack import Aspect, Attempt, Profile

WORDINGS = ("prompt", "paraphrase 1", "paraphrase 2", "paraphrase 3")


def wordings(fact: Fact) -> tuple[str, ...]:
    """The prompt and the first three paraphrases that name the subject, which a fact and its controls share."""
    named = [text for text in fact.paraphrases if fact.subject in text]
    return (fact.prompt, *named)[: len(WORDINGS)]


def rated(model: Model, facts: Sequence[Fact], *, start: int = 0) -> Float[np.ndarray, "facts wordings"]:
    """The probability of each fact's answer after its wordings from `start` on; nan elsewhere."""
    asked = [(i, j, text) for i, fact in enumerate(facts) for j, text in enumerate(wordings(fact)) if j >= start]
    asked.sort(key=lambda one: len(one[2]))
    answers = rate(model, [(text, facts[i].target) for i, _, text in asked])
    scores = np.full((len(facts), len(WORDINGS)), np.nan)
    for (i, j, _), answer in zip(asked, answers, strict=True):
        scores[i, j] = answer.probability
    return scores


@dataclass(frozen=True, kw_only=True)
class Asking:
    """Ask, no more."""

    name: ClassVar[str] = "asking"
    about: ClassVar[str] = "the prompt and its paraphrases, beside the same asked of invented subjects"
    aspect: ClassVar[Aspect] = "extraction"
    profile: ClassVar[Profile] = "quick"
    unit: ClassVar[str] = "probability"
    floor: ClassVar[float] = 0.05

    def __call__(self, model: Model, facts: Sequence[Fact]) -> Attempt:
        """The answer's probability after each."""
        return Attempt(WORDINGS, rated(model, facts))
