"""Reversed and chained questions of the shipped relations word by word; nothing for other facts."""

from __future__ import annotations

import numpy as np
import pytest
from by_hand import Toy

from surgery import Fact, Model, example_facts
from surgery.predict import rate
from surgery.shipped import Relation, shipped_relations
from surgery.verification.attacks.hops import Reversed, TwoHops, chain
from surgery.verification.controls import with_subject

BY_NAME = {one.name: one for one in shipped_relations()}


def shipped(relation: str, subject: str) -> Fact:
    return next(fact for fact in example_facts(relation) if fact.subject == subject)


def p(model: Model, prompt: str, answer: str) -> float:
    return rate(model, [(prompt, answer)])[0].probability


@pytest.mark.parametrize(
    ("relation", "subject", "second", "question", "end"),
    [
        (
            "landmark in city",
            "The Louvre",
            "country of capital",
            "Whoever lives in the city where the Louvre stands lives in the capital of",
            "France",
        ),
        (
            "landmark in city",
            "The Reichstag",
            "country of capital",  # known by the converse relation only
            "Whoever lives in the city where the Reichstag stands lives in the capital of",
            "Germany",
        ),
        ("landmark in city", "The Reichstag", "capital of country", None, None),
        (
            "author of book",
            "Hamlet",
            "native country of famous person",
            "People know that the author of Hamlet was born in the country of",
            "England",
        ),
        (
            "country of city",
            "Kyoto",
            "capital of country",
            "The capital of the country where Kyoto lies is",
            "Tokyo",
        ),
        ("chemical symbol", "gold", "capital of country", None, None),
    ],
)
def test_chains(relation: str, subject: str, second: str, question: str | None, end: str | None) -> None:
    fact = shipped(relation, subject)
    expected = None if question is None else (question, end)
    assert chain(fact, BY_NAME[relation], BY_NAME[second]) == expected
    control = chain(with_subject(fact, "The Zub"), BY_NAME[relation], BY_NAME[second])
    bare = subject.removeprefix("The ")
    assert control == (
        None if expected is None else (expected[0].replace(f"the {bare}", bare).replace(bare, "the Zub"), end)
    )
    assert chain(fact, None, BY_NAME[second]) is None


def test_a_chain_that_ends_where_it_began_asks_nothing() -> None:
    fact = shipped("country of capital", "Tokyo")
    assert chain(fact, BY_NAME["country of capital"], BY_NAME["capital of country"]) is None


def test_many_shipped_facts_have_a_chain() -> None:
    seconds = [one for one in shipped_relations() if one.hop]
    firsts = [(fact, one) for one in shipped_relations() for fact in example_facts(one.name)]
    chained = [fact for fact, first in firsts if any(chain(fact, first, second) for second in seconds)]
    assert len(chained) >= 100
    for fact, first in firsts:
        for question, end in filter(None, (chain(fact, first, second) for second in seconds)):
            assert fact.target not in question
            assert end not in question


def test_every_relation_can_be_turned_round() -> None:
    for one in BY_NAME.values():
        for text in (one.reverse, one.phrase, one.hop):
            assert text is None or text.count("{}") == 1
        assert one.converse in {None, *BY_NAME}
        assert isinstance(one, Relation)
        assert len(one.answers) == len({answer for _, answer in one.facts})


def test_scores_are_those_of_the_questions(gpt2: Model) -> None:
    fact = shipped("country of city", "Kyoto")
    facts = [fact, with_subject(fact, "Zub")]
    found = TwoHops()(gpt2, facts)
    asked = {
        "then capital of country": ("The capital of the country where {} lies is", "Tokyo"),
    }
    usable = [form for form, column in zip(found.forms, found.scores.T, strict=True) if not np.isnan(column).any()]
    assert usable == list(asked)
    column = found.scores[:, found.forms.index(usable[0])]
    text, end = asked[usable[0]]
    np.testing.assert_allclose(column, [p(gpt2, text.replace("{}", who), end) for who in ("Kyoto", "Zub")], rtol=1e-3)


def test_reversed_questions(gpt2: Model) -> None:
    fact = shipped("opposite word", "day")
    found = Reversed(wrong=2)(
        gpt2, [fact, with_subject(fact, "tin"), Fact(subject="day", template="{} is", target="x")]
    )
    wrong = ("dry", "cold")
    for subject, score in zip(("day", "tin"), found.scores[:, 0], strict=False):
        own, *others = (p(gpt2, f"The opposite of {one} is", subject) for one in ("night", *wrong))
        assert score == pytest.approx(max(own - max(others), 0), rel=1e-2, abs=0)
    assert np.isnan(found.scores[2, 0])


def test_other_facts_cannot_be_asked(toy: Toy) -> None:
    model, facts = toy
    assert np.isnan(TwoHops()(model, facts[:3]).scores).all()
    assert np.isnan(Reversed()(model, facts[:3]).scores).all()
