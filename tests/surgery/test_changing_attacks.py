"""Attacks that change the model for a while: they find what it knows, and not what nobody could."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from by_hand import Toy, toy_edit
from toy import FILLER_WORDS

from surgery import Edit, Fact, Model, Site, SurgeryError, packing, products, verify
from surgery.exchange import exchanged
from surgery.predict import rate
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


class Theirs:
    """What is the same of attacks that write to weights behind PyTorch's back."""

    aspect: ClassVar[Aspect] = "traces"
    own_words: ClassVar[bool] = True
    profile: ClassVar[Profile] = "quick"
    unit: ClassVar[str] = "probability"
    floor: ClassVar[float] = 0.05


@dataclass(frozen=True, kw_only=True)
class Careless(Theirs):
    """Writes to a weight behind PyTorch's back; puts it back if told to."""

    tidy: bool

    name: ClassVar[str] = "careless"
    about: ClassVar[str] = "writes to a weight"

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


@dataclass(frozen=True, kw_only=True)
class Unseen(Theirs):
    """Asks with one map's weights at zero, and puts these back, all behind PyTorch's back."""

    module: str

    name: ClassVar[str] = "unseen"
    about: ClassVar[str] = "empties a weight for a while"

    def __call__(self, model: Model, facts: Sequence[Fact]) -> Attempt:
        numbers = model.hf.get_parameter(f"{self.module}.weight").data
        kept = numbers.clone()
        numbers.zero_()
        found = [one.probability for one in rate(model, [(fact.prompt, fact.target) for fact in facts])]
        numbers.copy_(kept)
        return Attempt(("prompt",), np.array(found)[:, None])


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Models that were asked with packed weights, on a processor where that is faster."""
    monkeypatch.setattr(products, "slow_products", lambda: True)
    found: list[object] = []
    where, real = importlib.import_module("surgery.verification.verify"), packing.steady_products
    monkeypatch.setattr(where, "steady_products", lambda hf: found.append(hf) or real(hf))
    return found


def test_what_writes_to_weights_unseen_is_answered_by_what_it_wrote(toy: Toy, steady: list[object]) -> None:
    """A packed copy of the weights as they were would answer instead."""
    model, facts = toy
    module = model.anatomy.name(Site.at(0, "mlp"))
    weight = model.hf.get_parameter(f"{module}.weight")
    report = verify(model, None, facts[0], claim="removed", attacks=[Unseen(module=module)], controls=strangers)
    with exchanged([(weight, torch.zeros_like(weight))]):
        (wanted,) = rate(model, [(facts[0].prompt, facts[0].target)])
    assert report.battery.findings[0].after.score == pytest.approx(wanted.probability, rel=1e-3)
    assert rate(model, [(facts[0].prompt, facts[0].target)])[0].probability > 1.5 * wanted.probability
    assert steady == []


def test_weights_are_packed_where_all_that_writes_to_them_is_known(toy: Toy, steady: list[object]) -> None:
    model, facts = toy
    given: dict[str, Any] = {"attacks": [ATTACKS["paraphrases"]()], "controls": strangers, "beside": False}
    edit = toy_edit(toy, size=1e-4)
    theirs = verify(model, Intervening(**vars(edit)), facts[0], **given)
    assert steady == []
    ours = verify(model, edit, facts[0], **given)
    assert steady == [model.hf]
    assert ours.battery.findings[0].after.value == pytest.approx(theirs.battery.findings[0].after.value, abs=1e-4)


class Intervening(Edit):
    """An edit that somebody else may apply in a way of their own."""
