"""Paraphrases: is the answer likelier after other words than it is of a subject nobody knows?

The black-box attack of Patil et al. 2023 (https://arxiv.org/abs/2309.17410, section 4.2) draws a few one-token samples
for each rephrasing and succeeds if any is the answer. Drawing is not needed: n draws after a paraphrase hold an answer
of probability p with chance 1 - (1 - p)^n. That chance is near 1 for controls too where an answer is easily guessed,
so it is p itself that is compared, of each paraphrase by itself. Paraphrases that do not name the subject are left out,
for a control cannot be asked them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from surgery.fact import Fact
from surgery.model import Model
from surgery.verification.attack import Aspect, Attempt, Profile
from surgery.verification.attacks.wordings import WORDINGS, rated


@dataclass(frozen=True, kw_only=True)
class Paraphrases:
    """Ask in other words."""

    name: ClassVar[str] = "paraphrases"
    about: ClassVar[str] = "held-out paraphrases, beside the same asked of invented subjects"
    aspect: ClassVar[Aspect] = "extraction"
    own_words: ClassVar[bool] = True
    profile: ClassVar[Profile] = "quick"
    unit: ClassVar[str] = "probability"
    floor: ClassVar[float] = 0.05

    def __call__(self, model: Model, facts: Sequence[Fact]) -> Attempt:
        """The answer's probability after each; nan for a fact without paraphrases."""
        return Attempt(WORDINGS[1:], rated(model, facts, chosen=range(1, len(WORDINGS))))
