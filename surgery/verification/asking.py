"""What attacks by wording share: many prompts rated at once, and what else is known about a fact and its controls.

Controls have their fact's wording and answer, but no neighbours and a subject nobody has heard of. So that a form puts
to them what it puts to the fact, whatever it needs besides (wrong answers, examples, the relation) is looked up by
wording and answer, among all facts of the attempt (`Kin`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from surgery.fact import Fact, Neighbour
from surgery.model import Model
from surgery.shipped import Relation, relation_of, shipped_relations
from surgery.tokens import Question, ask
from surgery.verification.shared import probabilities_of

Cell = tuple[str, str] | None
"""A prompt and the answer looked for after it; None where there is nothing to ask."""


def probabilities(
    model: Model, facts: Sequence[Fact], table: Sequence[Sequence[Cell]]
) -> Float[np.ndarray, "facts forms"]:
    """The probability of each answer, all its tokens, as `predict.rate` gives it.

    Args:
        model: the model asked.
        facts: what is asked about; those with the same wording and answer are asked together (`shared`).
        table: what to ask, a row a fact.

    Returns:
        a number for each cell; nan where there is nothing to ask, or more than the model can read.
    """
    limit = model.anatomy.max_positions
    groups: dict[tuple[int, str, str], list[tuple[int, int, Question]]] = {}
    for i, (fact, row) in enumerate(zip(facts, table, strict=True)):
        for j, cell in enumerate(row):
            question = ask(model.tokenizer, *cell) if cell else None
            if question and (limit is None or len(question.ids) <= limit):
                groups.setdefault((j, fact.template, fact.target), []).append((i, j, question))
    found = probabilities_of(model, [[one for _, _, one in group] for group in groups.values()])
    scores = np.full((len(table), max(map(len, table))), np.nan)
    for group, numbers in zip(groups.values(), found, strict=True):
        for (i, j, _), number in zip(group, numbers, strict=True):
            scores[i, j] = number
    return scores


@dataclass(frozen=True)
class Backwards:
    """The subject asked for by the answer.

    Attributes:
        prompt: names the answer.
        others: the same prompt with wrong answers.
        subject: the words looked for; an article in front of them ends the prompts, as it is no knowledge.
    """

    prompt: str
    others: tuple[str, ...]
    subject: str


def backwards(text: str, subject: str, answer: str, others: Sequence[str]) -> Backwards:
    """Ask for a subject by a text with `{}` in the answer's place."""
    article, _, rest = subject.partition(" ")
    named = rest.strip() and article in ("The", "the")
    ask_for = text + " the" if named else text
    return Backwards(
        ask_for.replace("{}", answer),
        tuple(ask_for.replace("{}", one) for one in others),
        rest if named else subject,
    )


def subject_gains(
    model: Model, facts: Sequence[Fact], asked: Sequence[Backwards | None]
) -> Float[np.ndarray, " facts"]:
    """By how much the answer makes each subject likelier than the likeliest of the wrong answers does, at least 0.

    A well-known name is likelier than an invented one after any answer, so its probability alone would tell nothing.
    """
    most = max((len(one.others) for one in asked if one), default=0)
    table: list[list[Cell]] = [
        [(one.prompt, one.subject), *((text, one.subject) for text in one.others)] if one else [] for one in asked
    ]
    scores = probabilities(model, facts, [row + [None] * (1 + most - len(row)) for row in table])
    # nan only where a row has fewer wrong answers, or what is asked is too long
    wrong = np.where(np.isnan(scores[:, 1:]), -1.0, scores[:, 1:]).max(1, initial=-1.0)
    return np.where(wrong < 0, np.nan, np.maximum(scores[:, 0] - wrong, 0.0))


@dataclass(frozen=True)
class Kin:
    """What belongs to the facts of an attempt, by wording and answer.

    Attributes:
        facts: all facts of the attempt.
    """

    facts: tuple[Fact, ...]
    _alike: dict[tuple[str, str], list[Fact]] = field(init=False, repr=False, compare=False)
    _relations: dict[tuple[str, str], Relation | None] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        alike: dict[tuple[str, str], list[Fact]] = {}
        for fact in self.facts:
            alike.setdefault((fact.template, fact.target), []).append(fact)
        object.__setattr__(self, "_alike", alike)
        found = {key: relation_of(own[0], {one.subject for one in own}) for key, own in alike.items()}
        object.__setattr__(self, "_relations", found)

    def relation(self, fact: Fact) -> Relation | None:
        """The shipped relation a fact belongs to, or one with its wording and answer (`shipped.relation_of`)."""
        return self._relations[fact.template, fact.target]

    def neighbours(self, fact: Fact) -> tuple[Neighbour, ...]:
        """Neighbours with another answer, of the fact or of one with its wording and answer."""
        mine = (one for other in self._alike[fact.template, fact.target] for one in other.neighbours)
        return tuple(dict.fromkeys(one for one in mine if one.target.casefold() != fact.target.casefold()))

    def wrong_answers(self, fact: Fact, count: int) -> tuple[str, ...]:
        """At most so many others: of a shipped relation that has the answer, else of neighbours, else none."""
        holding = [one for one in shipped_relations() if fact.target in one.answers]
        relation = self.relation(fact) or (holding[0] if holding else None)
        if relation is not None:
            at = relation.answers.index(fact.target)
            return (relation.answers[at + 1 :] + relation.answers[:at])[:count]
        return tuple(dict.fromkeys(one.target for one in self.neighbours(fact)))[:count]


def inside(subject: str) -> str:
    """A subject as it stands inside a sentence."""
    return "the " + subject[4:] if subject.startswith("The ") else subject
