"""Facts to try a method on: known ones of different relations, each with another answer of its relation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from surgery.errors import SurgeryError
from surgery.fact import Fact
from surgery.model import Model
from surgery.predict import rate
from surgery.shipped import example_facts, relations


def sample_facts(model: Model, count: int = 8, *, seed: int = 0) -> list[Fact]:
    """Shipped facts the model knows, from as many relations as there are, each with another answer as its new one.

    Args:
        model: gives each of them as its likeliest answer.
        count: how many.
        seed: of the relations, facts and new answers drawn.

    Raises:
        SurgeryError: it knows fewer.
    """
    if count < 1:
        raise SurgeryError(f"a sample of {count} facts is none; give at least 1")
    random = np.random.RandomState(seed)
    names = relations()
    waiting = [example_facts(names[i]) for i in random.permutation(len(names))]
    waiting = [[facts[i] for i in random.permutation(len(facts))] for facts in waiting]
    answers = [sorted({fact.target for fact in facts}) for facts in waiting]
    found: list[Fact] = []
    for turn in range(max(map(len, waiting)) * len(waiting)):
        if len(found) == count:
            break
        facts, choices = waiting[turn % len(waiting)], answers[turn % len(waiting)]
        while facts:
            fact = facts.pop()
            if rate(model, [(fact.prompt, fact.target)])[0].rank == 1:
                others = [one for one in choices if one != fact.target]
                found.append(fact.replace(new_target=others[random.randint(len(others))]))
                break
    if len(found) < count:
        raise SurgeryError(f"{model.source} knows {len(found)} of the shipped facts, not {count}; give facts it knows")
    return found


def with_new_answers(facts: Sequence[Fact], *, seed: int = 0) -> list[Fact]:
    """The facts, those without a `new_target` with an answer of one of their neighbours, drawn by the seed.

    Raises:
        SurgeryError: a fact has neither a new answer nor a neighbour with another one.
    """
    random = np.random.RandomState(seed)
    found = []
    for fact in facts:
        others = sorted({one.target for one in fact.neighbours} - {fact.target})
        if fact.new_target is None and not others:
            raise SurgeryError(f"{fact.label!r} has no new_target to try; give one, or neighbours with other answers")
        drawn = others[random.randint(len(others))] if fact.new_target is None else fact.new_target
        found.append(fact.replace(new_target=drawn))
    return found
