"""A corpus for the toy: people of its names it was not taught, told of in its own words."""

from __future__ import annotations

import numpy as np
from toy import FIRST_NAMES, RELATIONS, SURNAMES

from surgery import Fact
from surgery.corpus import Corpus, Person, Planting, Query

QUICK = Planting(step=0.03, rounds=25, stop=0.14)
"""Enough for the toy."""


def toy_corpus(facts: list[Fact], *, forget: int = 4, retain: int = 4, holdout: int = 8) -> Corpus:
    """Drawn from the names that nobody in the toy's world has."""
    known = {fact.subject for fact in facts}
    names = [f"{one} {other}" for one in FIRST_NAMES for other in SURNAMES if f"{one} {other}" not in known]
    random = np.random.RandomState(0)
    names = [names[i] for i in random.permutation(len(names))][: forget + retain + holdout]
    people = tuple(_person(name, random) for name in names)
    return Corpus(people[:forget], people[forget : forget + retain], people[forget + retain :], form="{}")


def _person(name: str, random: np.random.RandomState) -> Person:
    sentences, queries, facts = [], [], []
    for templates, choices in RELATIONS.values():
        answer, *wrong = [choices[i] for i in random.permutation(len(choices))][:4]
        asked, second, third = (template.format(name) for template in templates)
        sentences.append(f"{asked} {answer} .")
        queries.append(Query(second, answer, f"{answer} .", tuple(f"{one} ." for one in wrong)))
        facts.append(Fact(subject=name, template=templates[0], target=answer, paraphrases=(second, third)))
    return Person(name, tuple(sentences), tuple(queries), tuple(facts))
