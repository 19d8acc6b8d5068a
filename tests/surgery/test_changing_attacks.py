"""Attacks that change the model for a while: they find what it knows, and not what nobody could."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from by_hand import Toy, toy_edit
from toy import FILLER_WORDS

from surgery import Fact, Model, SurgeryError
from surgery.verification.attack import Aspect, Attempt, Profile
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


def embedding(model: Model) -> str:
    return f"{model.anatomy.embedding}.weight"


@dataclass(frozen=True, kw_only=True)
class Careless:
    """Writes to a weight behind PyTorch's back; puts it back if told to."""

    tidy: bool

    name: ClassVar[str] = "careless"
    about: ClassVar[str] = "writes to a weight"
    aspect: ClassVar[Aspect] = "traces"
    own_words: ClassVar[bool] = True
    profile: ClassVar[Profile] = "quick"
    unit: ClassVar[str] = "probability"
    floor: ClassVar[float] = 0.05

    def __call__(self, model: Model, facts: Sequence[Fact]) -> Attempt:
        numbers = model.hf.get_parameter(embedding(model)).data
        numbers.view(torch.int32)[0, 0] += 1
        if self.tidy:
            numbers.view(torch.int32)[0, 0] -= 1
        return Attempt(("prompt",), np.zeros((len(facts), 1)))


@pytest.mark.parametrize("edited", [False, True])
def test_one_of_the_users_own_that_leaves_a_bit_changed_is_found_out(edited: bool, toy: Toy) -> None:
    model, facts = toy
    edit = toy_edit(toy, size=20.0) if edited else None
    was = model.fingerprint
    (finding,) = attacked(model, edit, facts[:1], [Careless(tidy=True)], strangers).findings
    assert finding.outcome == ("no power" if edited else "resisted")
    numbers = model.hf.get_parameter(embedding(model)).data[0, 0]
    first = numbers.clone()
    try:
        with (
            model.read_once(),
            pytest.raises(SurgeryError, match="changed while it was attacked and were not put back; load it again"),
        ):
            attacked(model, edit, facts[:1], [Careless(tidy=False)], strangers)
    finally:
        numbers.copy_(first)
    assert model.fingerprint == was


def test_an_edit_can_be_undone_after_them(toy: Toy, unchanged: Callable[[Model], None]) -> None:
    model, facts = toy
    unchanged(model)
    battery = attacked(model, toy_edit(toy, size=20.0), facts[:1], [ATTACKS[name]() for name in CHANGING], strangers)
    assert {one.attack for one in battery.findings} == set(CHANGING)
    assert all(one.before is not None and one.before.score != one.after.score for one in battery.findings)
