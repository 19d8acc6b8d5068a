"""Translated questions word by word, wrappers for other facts, and a dictionary without holes."""

from __future__ import annotations

import numpy as np
import pytest

from surgery import Fact, Model, example_facts
from surgery.predict import rate
from surgery.shipped import data, shipped_relations
from surgery.verification.asking import Kin
from surgery.verification.attacks.languages import OtherLanguages, translated
from surgery.verification.controls import with_subject

WORDS = data("languages.json")
LANGUAGES = ("Spanish", "French", "German", "Italian")


def asked(fact: Fact) -> list[tuple[str, str] | None]:
    return [translated(WORDS, fact, Kin((fact,)), i) for i in range(len(LANGUAGES))]


@pytest.mark.parametrize(
    ("relation", "subject", "expected"),
    [
        (
            "landmark in city",
            "The Colosseum",
            [
                ("The Colosseum está en la ciudad de", "Roma"),
                ("The Colosseum se trouve dans la ville de", "Rome"),
                ("The Colosseum steht in der Stadt", "Rom"),
                ("The Colosseum si trova nella città di", "Roma"),
            ],
        ),
        (
            "capital of country",
            "Germany",
            [
                ("La capital de Alemania es", "Berlín"),
                ("Pays : Allemagne. Capitale :", "Berlin"),
                ("Die Hauptstadt von Deutschland ist", "Berlin"),
                ("Paese: Germania. Capitale:", "Berlino"),
            ],
        ),
        (
            "chemical symbol",
            "gold",
            [
                ("Responde en español. The chemical symbol for gold is", "Au"),
                ("Réponds en français. The chemical symbol for gold is", "Au"),
                ("Antworte auf Deutsch. The chemical symbol for gold is", "Au"),
                ("Rispondi in italiano. The chemical symbol for gold is", "Au"),
            ],
        ),
    ],
)
def test_questions(relation: str, subject: str, expected: list[tuple[str, str]]) -> None:
    fact = next(fact for fact in example_facts(relation) if fact.subject == subject)
    assert asked(fact) == expected
    control = with_subject(fact, "Zub")
    own = {"Germany": ("Alemania", "Allemagne", "Deutschland", "Germania")}.get(subject, (subject,) * 4)
    assert asked(control) == [
        (text.replace(name, "Zub"), answer) for (text, answer), name in zip(expected, own, strict=True)
    ]


def test_scores_are_those_of_the_questions(gpt2: Model) -> None:
    fact = Fact(subject="Steve", template="{} went to", target="Rome")
    found = OtherLanguages()(gpt2, [fact])
    assert found.forms == LANGUAGES
    expected = [one.probability for one in rate(gpt2, [one for one in asked(fact) if one])]
    np.testing.assert_allclose(found.scores[0], expected, rtol=1e-3)


def test_at_least_ten_relations_are_translated_and_their_common_words() -> None:
    names = {one.name: one for one in shipped_relations()}
    assert tuple(WORDS["languages"]) == LANGUAGES
    assert len(WORDS["templates"]) >= 10
    assert {*WORDS["templates"]} <= {*names}
    for texts in WORDS["templates"].values():
        assert len(texts) == 4
        assert all(text.count("{}") == 1 for text in texts)
    assert all(len(row) == 4 for row in WORDS["words"].values())
    assert all(text.count("{}") == 1 for text in WORDS["wrappers"])
    used = {word for name in WORDS["templates"] for pair in names[name].facts for word in pair}
    assert {*WORDS["words"]} <= used
    # what is written alike in all four
    same = {"Nairobi", "Budapest", "Oslo", "Bangkok", "San Francisco", "Madrid"}
    answers = {a for name in ("capital of country", "landmark in city") for a in names[name].answers}
    assert answers - {*WORDS["words"]} == same
    languages = names["main language of country"].answers
    assert {*languages} <= {*WORDS["words"]}
