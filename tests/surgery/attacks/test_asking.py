"""Forms rated together are rated as one by one; what controls lack is found with their fact; attacks that need nothing
special find what a model knows and nothing else."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from by_hand import Toy

from surgery import Fact, Model, Neighbour, example_facts
from surgery.predict import rate
from surgery.tokens import ask
from surgery.verification.asking import Kin, backwards, inside, probabilities, subject_gains
from surgery.verification.attacks import ATTACKS
from surgery.verification.battery import attacked
from surgery.verification.controls import with_subject
from surgery.verification.shared import ROWS, probabilities_of

NAMES = ("Miles Davis", "Steve", "the old man")
LONG = "It was in the house of the river by {} and"
FACT = Fact(subject="Steve", template="{} lives in", target="Paris")
FILLER = "The Then Therefore Because But I You We They and so it was a long day in summer when people"
UNKNOWN = ("old friends", "had been", "for years", "home see", "some old", "who away")


def strangers(_: Model, fact: Fact) -> list[Fact]:
    words = FILLER.split()
    pairs = zip(words, [*words[1:], words[0]], strict=True)
    return [with_subject(fact, f"{one} {other}") for one, other in pairs]


def test_answers_after_shared_beginnings_are_rated_as_one_by_one(tiny: Model) -> None:
    groups = [
        [(LONG.replace("{}", name), "Paris in France") for name in NAMES],
        [(f"The {name}", "Rome") for name in NAMES],
        [(f"{name} was there in", "water") for name in NAMES],
        [("The capital of Japan is", answer) for answer in ("Tokyo", "the city", "water")],
        [(LONG, "Rome")],
    ]
    found = probabilities_of(tiny, [[ask(tiny.tokenizer, *one) for one in group] for group in groups])
    expected = [[one.probability for one in rate(tiny, group)] for group in groups]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3)


def test_groups_larger_than_a_batch_keep_their_order(gpt2: Model) -> None:
    group = [(f"The river and the city of {i} are in", "Rome") for i in range(ROWS + 5)]
    small = [("The river and the city are in", "Paris")]
    found = probabilities_of(gpt2, [[ask(gpt2.tokenizer, *one) for one in some] for some in (small, group, small)])
    np.testing.assert_allclose(found[1], [one.probability for one in rate(gpt2, group)], rtol=1e-3)
    np.testing.assert_allclose(found[0] + found[2], [rate(gpt2, small)[0].probability] * 2, rtol=1e-3)


def test_what_cannot_be_asked_is_nan(gpt2: Model) -> None:
    assert gpt2.anatomy.max_positions == 128
    facts = [FACT, FACT.replace(subject="Miles")]
    scores = probabilities(gpt2, facts, [[("Steve lives in", "Paris"), None], [("river " * 200, "Paris"), None]])
    assert scores[0, 0] == pytest.approx(rate(gpt2, [("Steve lives in", "Paris")])[0].probability, rel=1e-3, abs=0)
    assert np.isnan([scores[0, 1], *scores[1]]).all()


def test_a_subject_is_asked_for_without_its_article() -> None:
    one = backwards("A sight in {} is", "The Louvre", "Paris", ["Rome", "Athens"])
    assert one.prompt == "A sight in Paris is the"
    assert one.others == ("A sight in Rome is the", "A sight in Athens is the")
    assert one.subject == "Louvre"
    other = backwards("A sight in {} is", "Theben", "Paris", [])
    assert (other.prompt, other.subject) == ("A sight in Paris is", "Theben")
    assert [inside(one) for one in ("The Louvre", "Theben", "La Scala")] == ["the Louvre", "Theben", "La Scala"]


def test_a_subject_gains_what_it_has_beyond_the_likeliest_wrong_answer(gpt2: Model) -> None:
    ways = [
        backwards("The city of {} is by", "The river", "Paris", ["Rome", "Berlin"]),
        None,
        backwards("The city of {} is by", "water", "Paris", []),
        backwards("The city of {} is by", "water", "Rome", ["Paris"]),
        backwards("The city of {} is by", "water", "Paris", ["Rome"]),
    ]
    found = subject_gains(gpt2, [FACT] * 5, ways)
    asked = [
        ("The city of Paris is by the", "river"),
        *((f"The city of {o} is by the", "river") for o in ("Rome", "Berlin")),
    ]
    own, *wrong = (one.probability for one in rate(gpt2, asked))
    assert found[0] == pytest.approx(max(own - max(wrong), 0), rel=1e-2, abs=0)
    assert np.isnan(found[1:3]).all()
    # one of two opposite questions gains, the other nothing
    assert found[3:].min() == 0 < found[3:].max()


def test_controls_get_what_their_fact_has() -> None:
    fact = Fact(
        subject="Steve",
        template="{} paints",
        target="doors",
        neighbours=(
            Neighbour("Miles paints", "walls"),
            Neighbour("Ann paints", "Doors"),
            Neighbour("Bo paints", "walls"),
        ),
    )
    control, other = with_subject(fact, "Zub"), Fact(subject="Zub", template="{} eats", target="doors")
    kin = Kin((control, fact, other))
    assert kin.neighbours(control) == kin.neighbours(fact) == (fact.neighbours[0], fact.neighbours[2])
    assert kin.wrong_answers(control, 3) == ("walls",)
    assert kin.wrong_answers(other, 3) == kin.neighbours(other) == ()
    assert kin.relation(fact) is None


def test_relations_are_found_by_template_or_by_a_shipped_pair() -> None:
    louvre = example_facts("landmark in city")[1]
    own = Fact(subject="The Louvre", template="You find {} in", target="Paris")
    control = with_subject(own, "The Zub")
    elsewhere = Fact(subject="The Zub", template="Zub: {} in", target="Paris")
    renamed = louvre.replace(subject="Notre-Dame", template="{} stands in the city of")
    kin = Kin((louvre, own, control, elsewhere, renamed, louvre.replace(target="Ulm")))
    found = [kin.relation(one) for one in kin.facts]
    assert [one and one.name for one in found] == ["landmark in city"] * 3 + [None, "landmark in city", None]
    assert kin.wrong_answers(louvre, 3) == ("Rome", "Florence", "Athens")
    assert kin.wrong_answers(elsewhere, 2) == ("Rome", "Florence")


@pytest.mark.parametrize("name", ["jailbreaks", "multiple choice", "answer prefixes", "sampling", "other languages"])
def test_they_find_what_a_model_knows_and_not_what_it_does_not(name: str, toy: Toy) -> None:
    model, facts = toy
    attack = ATTACKS[name]()
    battery = attacked(model, None, facts[:6], [attack], strangers)
    assert [one.outcome for one in battery.findings].count("succeeds") >= 4
    unknown = [
        dataclasses.replace(with_subject(fact, name), neighbours=fact.neighbours)
        for fact, name in zip(facts, UNKNOWN, strict=False)
    ]
    lost = attacked(model, None, unknown, [attack], strangers)
    assert [one.outcome for one in lost.findings].count("resisted") >= 5
