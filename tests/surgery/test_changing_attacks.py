"""Attacks that change the model for a while: they find what it knows, and not what nobody could."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from by_hand import Toy, toy_edit
from toy import FILLER_WORDS

from surgery import Fact, Model
from surgery.verification.attacks import ATTACKS
from surgery.verification.battery import attacked
from surgery.verification.controls import with_subject

FILLER = FILLER_WORDS[:20]
# two words of no wording of a fact: "home" would be half of "The home town of {}"
STRANGERS = ("had been", "summer when", "years for", "old friends", "went away", "see some")
CHANGING = ("int8", "int4", "nf4", "related relearning", "unrelated relearning", "direction ablation")


def strangers(_: Model, fact: Fact) -> list[Fact]:
    return [with_subject(fact, f"{one} {other}") for one, other in zip(FILLER, FILLER[1:] + FILLER[:1], strict=True)]


@pytest.mark.parametrize("name", CHANGING)
def test_they_find_what_a_model_knows_and_nothing_else(name: str, toy: Toy) -> None:
    model, facts = toy
    known, attack = facts[:6], ATTACKS[name]()
    found = attacked(model, None, known, [attack], strangers).findings
    assert [one.outcome for one in found].count("succeeds") >= 4
    unknown = [
        with_subject(fact, stranger).replace(neighbours=fact.neighbours)
        for fact, stranger in zip(known, STRANGERS, strict=True)
    ]
    lost = attacked(model, None, unknown, [attack], strangers).findings
    assert {one.outcome for one in lost} <= {"succeeds", "resisted"}
    assert [one.outcome for one in lost].count("succeeds") <= 1


def test_an_edit_can_be_undone_after_them(toy: Toy, unchanged: Callable[[Model], None]) -> None:
    model, facts = toy
    unchanged(model)
    battery = attacked(model, toy_edit(toy, size=20.0), facts[:1], [ATTACKS[name]() for name in CHANGING], strangers)
    assert {one.attack for one in battery.findings} == set(CHANGING)
    assert all(one.before is not None and one.before.score != one.after.score for one in battery.findings)
