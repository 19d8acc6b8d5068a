"""The questions around a fact: which neighbours, which way round, and which facts have nothing to do with it."""

from __future__ import annotations

from by_hand import Toy

from surgery import Fact, Neighbour
from surgery.predict import rate
from surgery.shipped import shipped_relations
from surgery.verification import Baseline
from surgery.verification.attacks.hops import chain
from surgery.verification.surroundings import (
    REVERSED,
    Case,
    about_subjects,
    around,
    reversed_questions,
    two_hops,
    unrelated_cases,
)

TOYS = ("llama",)


def test_neighbours_are_told_apart_by_their_answer() -> None:
    near = tuple(Neighbour(f"{name} is in", town) for name, town in (("Bob", "Rome"), ("Cid", "roma"), ("Dan", "Ulm")))
    fact = Fact(subject="Ann", template="{} is in", target="Rome", aliases=("Roma",), neighbours=near)
    other = fact.replace(subject="Dan", neighbours=near[:1])
    assert [(one.axis, one.fact, one.prompt) for one in around([fact, other], [0])] == [
        ("same relation, same answer", 0, "Bob is in"),
        ("same relation, same answer", 0, "Cid is in"),
    ]
    assert {one.axis for one in around([fact], [0])} == {"same relation, same answer", "same relation, other answer"}


def test_unrelated_facts_are_known_and_share_nothing(toy: Toy) -> None:
    model, facts = toy
    known = unrelated_cases(Baseline(model), facts[:2], facts, 15, 3)
    assert len(known) == 15
    words = [text for fact in facts[:2] for text in (fact.subject, fact.target)]
    near = [one.prompt for fact in facts[:2] for one in fact.neighbours]
    for case in known:
        assert not any(word in f"{case.prompt} {case.answer}" for word in words)
        assert case.prompt not in near
        assert "lives in the city" not in case.prompt  # other relations come first
        assert rate(model, [(case.prompt, case.answer)])[0].rank == 1
    assert known == unrelated_cases(Baseline(model), facts[:2], facts, 15, 3)
    assert known != unrelated_cases(Baseline(model), facts[:2], facts, 15, 4)
    stranger = Fact(subject="Ann", template="{} is", target="nobody knows what")
    assert unrelated_cases(Baseline(model), facts[:2], [stranger], 15, 3) == []


def test_other_facts_that_are_edited_too_are_no_side_effects(toy: Toy) -> None:
    facts = [fact for fact in toy[1] if fact.subject == toy[1][0].subject]
    assert [one.prompt for one in about_subjects(facts[:2], [0], toy[1])] == [facts[2].prompt]


def test_a_subject_is_asked_for_as_its_relation_does_and_in_general_words_elsewhere() -> None:
    tower = Fact(subject="The Eiffel Tower", template="{} is located in the city of", target="Paris")
    retold = tower.replace(template="Where is {}? In", new_target=" Rome")
    odd = Fact(subject="The Old Mill", template="{} is owned by", target="Ann")
    assert reversed_questions([tower, odd], [0], None, rewritten=False) == [
        Case("reversed", 0, "A famous landmark in the city of Paris is the", "Eiffel Tower")
    ]
    assert [(one.axis, one.prompt, one.answer) for one in reversed_questions([retold], [0], None, rewritten=True)] == [
        ("reversed", "A famous landmark in the city of Paris is the", "Eiffel Tower"),
        ("reversed, new answer", "A famous landmark in the city of Rome is the", "Eiffel Tower"),
    ]
    assert [(one.prompt, one.answer) for one in reversed_questions([tower, odd], [1], None, rewritten=False)] == [
        (f"{text.replace('{}', 'Ann')} the", "Old Mill") for text in REVERSED
    ]
    own = {tower.template: ["In {} stands"]}
    assert [one.prompt for one in reversed_questions([tower, odd], [0], own, rewritten=False)] == [
        "In Paris stands the"
    ]


def test_chains_are_those_of_the_attack() -> None:
    tower = Fact(
        subject="The Eiffel Tower", template="{} is located in the city of", target="Paris", new_target=" Berlin"
    )
    odd = Fact(subject="The Old Mill", template="{} is owned by", target="Ann")
    question = "Whoever lives in the city where the Eiffel Tower stands lives in the capital of"
    (first,) = [one for one in shipped_relations() if one.name == "landmark in city"]
    old = Case("two hops", 1, question, "France")
    assert two_hops([odd, tower], [0, 1], rewritten=False) == [old]
    assert two_hops([odd, tower], [0, 1], rewritten=True) == [old, Case("two hops, new answer", 1, question, "Germany")]
    assert {chain(tower, first, second) for second in shipped_relations()} == {None, (old.prompt, old.answer)}
