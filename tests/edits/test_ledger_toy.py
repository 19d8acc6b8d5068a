"""A ledger on models that really know their facts: what is taken back is answered as before, the others hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from ledgers import FAR
from sweeping import CHOSEN, CONTEXTS, Toy

from edits import Ledger, Objective, RankOne, Replace, Statistics, Suppress, ValueSearch
from surgery import Edit, Fact, Model, Site
from surgery.predict import rate

SITE = Site("L0.mlp")
SEARCH = ValueSearch(steps=60, clamp=8.0, stop=0.005)


def answered(model: Model, facts: Sequence[Fact], new: bool) -> list[bool]:
    """Whether each fact's answer is the likeliest: the new one at its prompt, the old one in every wording."""
    found = []
    for fact in facts:
        asked = [(fact.prompt, str(fact.new_target))] if new else [(p, fact.target) for p in wordings(fact)]
        found.append(all(one.rank == 1 for one in rate(model, asked)))
    return found


def wordings(fact: Fact) -> tuple[str, ...]:
    return (fact.prompt, *fact.paraphrases)


@pytest.fixture
def three(toy: Toy) -> list[Fact]:
    """Facts with another person's answer."""
    known = [toy[1][i] for i in CHOSEN]
    return [
        fact.replace(new_target=next(one.target for one in fact.neighbours if one.target != fact.target))
        for fact in known
    ]


@pytest.fixture
def ledger(toy: Toy, statistics: Statistics, tmp_path: Path) -> Callable[[Objective], Ledger]:
    def make(objective: Objective) -> Ledger:
        settings: dict[str, Any] = {"contexts": CONTEXTS, "search": SEARCH, "limits": FAR}
        method = RankOne(statistics=statistics, objective=objective, **settings)
        return Ledger.create(tmp_path / "ledger", toy[0], method, [SITE])

    return make


def test_a_rewrite_that_is_taken_back_gives_the_old_answer_again(
    toy: Toy, three: list[Fact], ledger: Callable[[Objective], Ledger], unchanged: Callable[[Model], None]
) -> None:
    model = toy[0]
    unchanged(model)
    kept = ledger(Replace())
    kept.add(model, three)
    with kept.edit().applied(model):
        assert answered(model, three, new=True) == [True, True, True]
        assert answered(model, three, new=False) == [False, False, False]
    kept.remove(model, three[1])
    with kept.edit().applied(model):
        assert answered(model, three, new=True) == [True, False, True]
        assert answered(model, three, new=False) == [False, True, False]


def test_a_removal_that_is_taken_back_is_known_again(
    toy: Toy, three: list[Fact], ledger: Callable[[Objective], Ledger]
) -> None:
    model = toy[0]
    gone = [fact.replace(new_target=None) for fact in three]
    kept = ledger(Suppress())
    kept.add(model, gone)
    with kept.edit().applied(model):
        assert answered(model, gone, new=False) == [False, False, False]
    kept.remove(model, gone[0])
    edit: Edit = kept.edit()
    assert edit.claim == "removed"
    with edit.applied(model):
        assert answered(model, gone, new=False) == [True, False, False]
