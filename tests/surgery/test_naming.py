"""Subjects are whole words, in whatever script, and the shipped facts name theirs as before."""

from __future__ import annotations

import pytest

from surgery import Fact, Model, Neighbour
from surgery.shipped import example_facts, invented_facts, neutral_texts
from surgery.verification.attacks.relearning import UnrelatedRelearning, _others
from surgery.verification.attacks.wordings import wordings
from surgery.verification.controls import with_subject
from surgery.verification.naming import names, renamed, telling_subjects
from surgery.verification.probes import probes_of


@pytest.mark.parametrize(
    ("text", "subject", "named"),
    [
        ("The capital of Niger is", "Niger", True),
        ("The capital of Nigeria is", "Niger", False),
        ("The group went up", "up", True),
        ("The group went", "up", False),
        ("Niger's capital", "Niger", True),
        ("niger is", "Niger", False),
        ("The film (500) Days", "(500)", True),
        ("In 1984, Orwell", "1984", True),
        ("In 19845", "1984", False),
        ("東京タワーは東京にある", "東京", True),
        ("서울에서", "서울", True),
        ("anything", "", False),
        ("C++ and C", "C++", True),
    ],
)
def test_a_subject_is_named_by_whole_words(text: str, subject: str, named: bool) -> None:
    assert names(text, subject) == named
    assert (renamed(text, subject, r"X\1") != text) == named


def test_capitals_may_differ_where_that_is_asked() -> None:
    assert names("the NIGER is long", "Niger", any_case=True)
    assert not names("the NIGERIA is long", "Niger", any_case=True)
    assert renamed("Niger, Nigeria, Niger", "Niger", "Chad") == "Chad, Nigeria, Chad"
    assert renamed("Niger", "", "Chad") == "Niger"


def test_the_shipped_facts_name_their_subjects_as_whole_words() -> None:
    for fact in (*example_facts(), *invented_facts()):
        assert [names(text, fact.subject) for text in fact.paraphrases] == [
            fact.subject in text for text in fact.paraphrases
        ]


NIGER = Fact(
    subject="Niger",
    template="The capital of {} is",
    target="Niamey",
    paraphrases=("Niger has its seat of government in", "Nigeria's neighbour has its seat of government in"),
    neighbours=(Neighbour("The capital of Nigeria is", "Abuja"), Neighbour("The river Niger flows through", "Mali")),
)


def test_a_name_within_another_is_not_the_subject() -> None:
    """Of probes, controls, wordings and lessons alike."""
    probes, left_out = probes_of([NIGER], "removed", ())
    assert left_out == 1
    assert [one.prompt for one in probes if one.role == "neighbour"] == ["The capital of Nigeria is"]
    assert with_subject(NIGER, "Ostmar").paraphrases == ("Ostmar has its seat of government in",)
    assert wordings(NIGER) == (NIGER.prompt, NIGER.paraphrases[0])
    assert ("The capital of Nigeria is", "Abuja") in _others(NIGER.template, [NIGER])
    assert ("The river Niger flows through", "Mali") not in _others(NIGER.template, [NIGER])


def test_lessons_may_hold_a_subject_as_a_part_of_other_words(gpt2: Model) -> None:
    inside, word = (Fact(subject=subject, template="{} is", target="one") for subject in ("ing", "The"))
    assert any("ing" in text for text in neutral_texts())
    every, same, fewer = (UnrelatedRelearning(texts=500).courses(gpt2, [one])[0][0] for one in (NIGER, inside, word))
    assert same == every
    assert len(fewer) < len(every)


def test_a_word_of_most_templates_tells_nothing() -> None:
    facts = [
        Fact(subject="Japan", template="The capital of {} is", target="Tokyo"),
        Fact(subject="The Louvre", template="{} is in the city of", target="Paris"),
        Fact(subject="is", template="{} is a word of", target="English"),
        Fact(subject="capital", template="The word {} is", target="English"),
        Fact(subject="Japan", template="{} speaks", target="Japanese"),
        Fact(subject="", template="Nobody said", target="so"),
    ]
    assert telling_subjects(facts) == ("Japan", "The Louvre", "capital")
