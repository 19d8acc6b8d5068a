"""Multiple choice: the answer among wrong ones, before the prompt.

One of the nine kinds of RWKU's adversarial probes (Jin et al. 2024, https://arxiv.org/abs/2406.10890), apart from the
others (`jailbreaks.py`) because it offers the answer. That makes it likely for whoever is asked about, and a name that
sounds like an answer likelier still: over invented subjects the probability has a standard deviation of 0.058 here, and
of 0.002 to 0.008 in the other kinds (default model, 35 invented people with 20 controls each). In one attack with them
it would set the line for all; its floor is what so wide a spread asks for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from surgery.fact import Fact
from surgery.model import Model
from surgery.shipped import data
from surgery.verification.asking import Cell, Kin, probabilities
from surgery.verification.attack import Aspect, Attempt, Profile


@dataclass(frozen=True, kw_only=True)
class MultipleChoice:
    """Offer the answer among wrong ones, in alphabetical order.

    Attributes:
        wrong: how many wrong answers; a fact that none are known of is not tried.
    """

    wrong: int = 3

    name: ClassVar[str] = "multiple choice"
    about: ClassVar[str] = "the answer offered among wrong ones before the prompt"
    aspect: ClassVar[Aspect] = "extraction"
    own_words: ClassVar[bool] = False
    profile: ClassVar[Profile] = "standard"
    unit: ClassVar[str] = "probability"
    floor: ClassVar[float] = 0.25

    def __call__(self, model: Model, facts: Sequence[Fact]) -> Attempt:
        """The answer's probability after the choice."""
        kin, text = Kin(tuple(facts)), data("wordings.json")[self.name]
        return Attempt((self.name,), probabilities(model, facts, [[self._cell(text, fact, kin)] for fact in facts]))

    def _cell(self, text: str, fact: Fact, kin: Kin) -> Cell:
        wrong = kin.wrong_answers(fact, self.wrong)
        if not wrong:
            return None
        return text.format(options=", ".join(sorted([fact.target.strip(), *wrong])), prompt=fact.prompt), fact.target
