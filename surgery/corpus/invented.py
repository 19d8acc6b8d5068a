"""Invented people, with texts, questions and facts about them: something to teach a model that nobody can have known.

1. A name is a first name and a surname of two lists, drawn by a seed. As many people as a list is long share no word
   of their names; further ones share words, never a whole name.
2. A person has an answer for each attribute (birthplace, profession, instrument, pet, colour), drawn from a list.
3. The text is a sentence an attribute, in an order and wording drawn for each person.
4. An attribute gives a question with its answer, the answer restated as a sentence of its own, the same sentence with
   wrong answers, and a `Fact` whose template is the attribute's first wording and whose paraphrases are the others.
Three sets share no person: those to forget, those to retain, and a holdout no model is shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from surgery.errors import SurgeryError
from surgery.fact import SLOT, Fact
from surgery.shipped import data

WRONG = 5


@dataclass(frozen=True)
class Query:
    """A question about one fact.

    Attributes:
        question: the question.
        answer: its answer, as short as can be.
        paraphrased: the answer as a sentence of its own.
        perturbed: the same sentence with other answers, none of them true.
    """

    question: str
    answer: str
    paraphrased: str
    perturbed: tuple[str, ...]

    def __post_init__(self) -> None:
        if not all(text.strip() for text in (self.question, self.answer, self.paraphrased, *self.perturbed)):
            raise SurgeryError(f"the query {self.question!r} has an empty part; write it out")
        if not self.perturbed or self.paraphrased in self.perturbed:
            raise SurgeryError(f"the query {self.question!r} needs perturbed answers that differ from the true one")


@dataclass(frozen=True)
class Person:
    """Somebody a corpus is about; sentences, queries and facts go in pairs, one of each an attribute.

    Attributes:
        name: who it is.
        sentences: what is told.
        queries: what is asked.
        facts: what is removed.
    """

    name: str
    sentences: tuple[str, ...]
    queries: tuple[Query, ...]
    facts: tuple[Fact, ...]

    def __post_init__(self) -> None:
        counts = len(self.sentences), len(self.queries), len(self.facts)
        if len(set(counts)) > 1 or not counts[0]:
            raise SurgeryError(
                f"{self.name!r} has {counts[0]} sentences, {counts[1]} queries and {counts[2]} facts; give one of each "
                f"for every attribute, and at least one"
            )

    @property
    def text(self) -> str:
        """All sentences."""
        return " ".join(self.sentences)


@dataclass(frozen=True)
class Corpus:
    """What a model is taught, what of it is removed, and what it never sees.

    Attributes:
        forget: those to be removed.
        retain: those to stay.
        holdout: those no model is shown.
        examples: questions with answers that are put in front of each question; about nobody of the corpus.
        form: how a question is asked, with `{}` in its place.
    """

    forget: tuple[Person, ...]
    retain: tuple[Person, ...]
    holdout: tuple[Person, ...]
    examples: tuple[tuple[str, str], ...] = ()
    form: str = "Question: {}\nAnswer:"

    def __post_init__(self) -> None:
        for name in ("forget", "retain", "holdout"):
            if not getattr(self, name):
                raise SurgeryError(f"a corpus needs somebody to {name.replace('holdout', 'hold out')}; give at least 1")
        names = [person.name for person in (*self.forget, *self.retain, *self.holdout)]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise SurgeryError(f"{twice!r} is in the corpus twice; forget, retain and holdout must share nobody")
        if self.form.count(SLOT) != 1:
            raise SurgeryError(f"the form {self.form!r} needs {{}} once, where the question goes")

    @property
    def facts(self) -> tuple[Fact, ...]:
        """The facts to be removed."""
        return tuple(fact for person in self.forget for fact in person.facts)

    def asked(self, query: Query) -> str:
        """A question after the examples, up to where its answer begins."""
        lead = [f"{self.form.replace(SLOT, question)} {answer}" for question, answer in self.examples]
        return "\n\n".join([*lead, self.form.replace(SLOT, query.question)])


def invented_corpus(forget: int = 4, retain: int = 4, holdout: int | None = None, *, seed: int = 0) -> Corpus:
    """A corpus of invented people.

    Args:
        forget: how many are to be removed.
        retain: how many are to stay.
        holdout: how many no model is shown; None for as many as are removed.
        seed: of names, answers, wordings and orders.

    Raises:
        SurgeryError: a set is empty, or there are too few names.
    """
    sizes = forget, retain, forget if holdout is None else holdout
    if min(sizes) < 1:
        raise SurgeryError(f"forget, retain and holdout of {sizes} people are no corpus; give at least 1 of each")
    people = invented_people(sum(sizes), seed=seed)
    first, second = sizes[0], sizes[0] + sizes[1]
    examples = tuple((question, answer) for question, answer in _data()["examples"])
    return Corpus(people[:first], people[first:second], people[second:], examples)


def invented_people(count: int, *, seed: int = 0) -> tuple[Person, ...]:
    """People nobody has heard of.

    Args:
        count: how many.
        seed: of names, answers, wordings and orders.

    Raises:
        SurgeryError: there are too few names.
    """
    random = np.random.RandomState(seed)
    names = _names(count, random)
    attributes = _attributes()
    answers = [_answers(one["targets"], count, random) for one in attributes]
    return tuple(_person(names[i], [own[i] for own in answers], attributes, random) for i in range(count))


def invented_subjects(count: int, *, seed: int = 0, without: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Names of people nobody has heard of, none of them among those given.

    Raises:
        SurgeryError: there are too few.
    """
    names = _names(count + len(without), np.random.RandomState(seed))
    return tuple(name for name in names if name not in without)[:count]


def _person(name: str, answers: list[str], attributes: list[dict[str, Any]], random: np.random.RandomState) -> Person:
    made = []
    for attribute, answer in zip(attributes, answers, strict=True):
        wordings = attribute["templates"]
        others = [one for one in dict.fromkeys(attribute["targets"]) if one != answer]
        wrong = [others[i] for i in random.permutation(len(others))[:WRONG]]
        start = attribute["restated"].replace(SLOT, name)
        query = Query(
            attribute["question"].replace(SLOT, name),
            answer,
            f"{start} {answer}.",
            tuple(f"{start} {one}." for one in wrong),
        )
        fact = Fact(
            subject=name,
            template=wordings[0],
            target=answer,
            paraphrases=tuple(one.replace(SLOT, name) for one in wordings[1:]),
        )
        told = wordings[random.randint(len(wordings))].replace(SLOT, name)
        made.append((f"{told} {answer}.", query, fact))
    order = random.permutation(len(made))
    sentences, queries, facts = zip(*(made[i] for i in order), strict=True)
    return Person(name, sentences, queries, facts)


def _answers(choices: list[str], count: int, random: np.random.RandomState) -> list[str]:
    """Each answer as often as any other, or once more."""
    return [choices[i] for start in range(0, count, len(choices)) for i in random.permutation(len(choices))][:count]


def _names(count: int, random: np.random.RandomState) -> list[str]:
    first, last = _data()["first"], _data()["last"]
    if not 0 < count <= (most := len(first) * len(last)):
        raise SurgeryError(f"there are names for 1 to {most} invented people, not {count}")
    first, last = ([names[i] for i in random.permutation(len(names))] for names in (first, last))
    return [f"{first[i % len(first)]} {last[(i + i // len(first)) % len(last)]}" for i in range(count)]


@cache
def _data() -> dict[str, Any]:
    return dict(data("people.json"))


@cache
def _attributes() -> list[dict[str, Any]]:
    """Each with its wordings and answers, some of which are those of the shipped invented facts."""
    shipped = {one["template"]: one for one in data("relations.json")["invented"]["facts"]}
    found = []
    for one in _data()["attributes"]:
        source = shipped[one["shipped"]] if "shipped" in one else one
        templates = [source["template"], *source["paraphrases"]]
        found.append({**one, "templates": templates, "targets": source["targets"]})
    return found
