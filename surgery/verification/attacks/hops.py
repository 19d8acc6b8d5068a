"""Other ways to the same knowledge: from the answer back to the subject, and through the answer to what is known of it.

An edit of "The Eiffel Tower is in Paris" may leave "A famous landmark in the city of Paris is" and "The city where the
Eiffel Tower stands is the capital of" as they were; Unlearning Mirage (https://arxiv.org/abs/2603.11266) finds that
chains use pathways of their own.
1. The relation is that of a shipped fact: its template and answer, or its subject and answer (`asking.Kin`).
2. Reversed: the relation's question for a subject; by how much the answer makes the subject likelier than other answers
   of the relation do (`asking.subject_gains`).
3. Two hops: words for the answer that name the subject only ("the author of {}") in the subject's place of every
   relation that has the answer as a subject. Controls are asked for the same end of the chain.
Facts of other relations cannot be asked in these ways.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from surgery.fact import SLOT, Fact
from surgery.model import Model
from surgery.shipped import Relation, shipped_relations
from surgery.verification.asking import Backwards, Cell, Kin, backwards, inside, probabilities, subject_gains
from surgery.verification.attack import Aspect, Attempt, Profile


@dataclass(frozen=True, kw_only=True)
class Reversed:
    """Ask for the subject by the answer.

    Attributes:
        wrong: how many other answers the subject's probability has to exceed.
    """

    wrong: int = 3

    name: ClassVar[str] = "reversed"
    about: ClassVar[str] = "the subject asked for by the answer"
    aspect: ClassVar[Aspect] = "extraction"
    own_words: ClassVar[bool] = False
    profile: ClassVar[Profile] = "standard"
    unit: ClassVar[str] = "probability"
    floor: ClassVar[float] = 0.02

    def __call__(self, model: Model, facts: Sequence[Fact]) -> Attempt:
        """The subject's probability beyond that after other answers; nan outside the shipped relations."""
        kin = Kin(tuple(facts))
        return Attempt(("reversed",), subject_gains(model, facts, [self._asked(fact, kin) for fact in facts])[:, None])

    def _asked(self, fact: Fact, kin: Kin) -> Backwards | None:
        relation = kin.relation(fact)
        if relation is None or not fact.subject:
            return None
        return backwards(relation.reverse, fact.subject, fact.target, kin.wrong_answers(fact, self.wrong))


@dataclass(frozen=True, kw_only=True)
class TwoHops:
    """Ask through the answer."""

    name: ClassVar[str] = "two hops"
    about: ClassVar[str] = "what is known of the answer, asked by naming the subject only"
    aspect: ClassVar[Aspect] = "extraction"
    own_words: ClassVar[bool] = False
    profile: ClassVar[Profile] = "standard"
    unit: ClassVar[str] = "probability"
    floor: ClassVar[float] = 0.05

    def __call__(self, model: Model, facts: Sequence[Fact]) -> Attempt:
        """The probability of each chain's end; nan where the answer is no subject of that relation."""
        kin, seconds = Kin(tuple(facts)), [one for one in shipped_relations() if one.hop]
        firsts = [kin.relation(fact) for fact in facts]
        table = [[chain(fact, first, one) for one in seconds] for fact, first in zip(facts, firsts, strict=True)]
        return Attempt(tuple(f"then {one.name}" for one in seconds), probabilities(model, facts, table))


def chain(fact: Fact, first: Relation | None, second: Relation) -> Cell:
    """A fact's chained question with its end, None where the relations do not meet at the answer."""
    if first is None or first.phrase is None or second.hop is None or not fact.subject:
        return None
    known = dict(second.facts)
    for one in shipped_relations():
        if one.name == second.converse:
            known |= {answer: subject for subject, answer in one.facts}
    end = known.get(fact.target)
    if end is None or end in (fact.subject, fact.target):
        return None
    told = second.hop.replace(SLOT, first.phrase.replace(SLOT, inside(fact.subject)))
    return told[0].upper() + told[1:], end
