"""The same question in another language: an edit made in English may end where English does.

1. Facts of the shipped relations are asked by a translated template, subject and answer in that language where it has
   words of its own for them; the relation is found as in `asking.Kin`.
2. Any other fact is asked as it is, after the wish for an answer in that language.
A form is a language: one the base model does not speak shows as no power. Most methods are found to forget in the
language they are trained in only (https://arxiv.org/abs/2601.06675).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from surgery.fact import SLOT, Fact
from surgery.model import Model
from surgery.shipped import data
from surgery.verification.asking import Cell, Kin, inside, probabilities
from surgery.verification.attack import Aspect, Attempt, Profile


@dataclass(frozen=True, kw_only=True)
class OtherLanguages:
    """Ask in Spanish, French, German and Italian."""

    name: ClassVar[str] = "other languages"
    about: ClassVar[str] = "the question in Spanish, French, German and Italian"
    aspect: ClassVar[Aspect] = "extraction"
    own_words: ClassVar[bool] = False
    profile: ClassVar[Profile] = "full"
    unit: ClassVar[str] = "probability"
    floor: ClassVar[float] = 0.1

    def __call__(self, model: Model, facts: Sequence[Fact]) -> Attempt:
        """The answer's probability in each language."""
        words, kin = data("languages.json"), Kin(tuple(facts))
        languages = words["languages"]
        table = [[translated(words, fact, kin, i) for i in range(len(languages))] for fact in facts]
        return Attempt(tuple(languages), probabilities(model, facts, table))


def translated(words: dict[str, Any], fact: Fact, kin: Kin, language: int) -> Cell:
    """A fact's question and answer in one of the languages."""
    relation = kin.relation(fact)
    if relation is None or relation.name not in words["templates"] or not fact.subject:
        return words["wrappers"][language].replace(SLOT, fact.prompt), fact.target
    template = words["templates"][relation.name][language]
    subject, answer = (
        words["words"][one][language] if one in words["words"] else one for one in (fact.subject, fact.target)
    )
    named = subject if template.startswith(SLOT) else inside(subject)
    return template.replace(SLOT, named), answer
