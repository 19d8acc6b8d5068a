"""The facts and texts the package brings along."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest

from surgery import Fact, Model, SurgeryError, example_facts, invented_facts
from surgery.predict import rate
from surgery.shipped import neutral_texts, relations

FACTS = example_facts()
INVENTED = invented_facts()


def by_relation() -> dict[str, list[Fact]]:
    return {name: example_facts(name) for name in relations()}


def test_there_are_enough_facts_of_enough_relations() -> None:
    assert len(FACTS) >= 200
    assert len(set(relations())) == len(relations()) >= 12
    assert [fact for facts in by_relation().values() for fact in facts] == FACTS
    assert min(len(facts) for facts in by_relation().values()) >= 5


def test_each_fact_has_three_phrasings_that_name_the_subject() -> None:
    for fact in FACTS + INVENTED:
        phrasings = {fact.prompt, *fact.paraphrases}
        assert len(phrasings) == 1 + len(fact.paraphrases) >= 3
        assert all(fact.subject in text for text in phrasings)


def test_no_prompt_gives_its_answer_away() -> None:
    for fact in FACTS:
        assert f" {fact.target}" not in fact.prompt.replace(fact.subject, "")


def test_neighbours_are_about_other_subjects() -> None:
    for fact in FACTS + INVENTED:
        before, after = fact.template.split("{}")
        assert len(fact.neighbours) >= 3
        for one in fact.neighbours:
            assert one.prompt.startswith(before)
            assert one.prompt.endswith(after)
            assert one.prompt[len(before) : len(one.prompt) - len(after)] != fact.subject
            assert fact.subject not in one.prompt


def test_neighbours_are_facts_of_the_same_relation() -> None:
    for facts in by_relation().values():
        known = {(fact.prompt, fact.target) for fact in facts}
        assert all((one.prompt, one.target) in known for fact in facts for one in fact.neighbours)


def test_there_are_twenty_invented_people_nobody_else_is_called_like() -> None:
    people = {fact.subject for fact in INVENTED}
    assert len(people) == 20
    assert not people & {fact.subject for fact in FACTS}
    assert len(INVENTED) % 20 == 0


def test_nothing_is_there_twice() -> None:
    prompts = [fact.prompt for fact in FACTS + INVENTED]
    assert len(prompts) == len(set(prompts))
    texts = neutral_texts()
    assert len(texts) == len(set(texts)) >= 20
    assert all(text.strip() == text != "" for text in texts)


def test_neutral_texts_are_about_none_of_the_subjects() -> None:
    # but for those that are everyday words
    common = {fact.subject for fact in example_facts("opposite word")}
    subjects = {fact.subject for fact in FACTS + INVENTED} - common

    def named(text: str) -> list[str]:
        words = {name: re.escape(name.removeprefix("The ")) for name in subjects}
        return [name for name, pattern in words.items() if re.search(rf"\b{pattern}\b", text, re.IGNORECASE)]

    assert named("\n".join(neutral_texts())) == []
    assert named("We went to the eiffel tower.") == ["The Eiffel Tower"]
    assert len(common) < len(subjects) / 10


def test_an_unknown_relation_is_refused_with_those_there_are() -> None:
    with pytest.raises(SurgeryError, match="there is no relation 'x'; there are landmark in city"):
        example_facts("x")


def test_the_default_model_knows_most_of_them_and_no_invented_one(smol: Model) -> None:
    sample = sorted(random.Random(0).sample(FACTS, 60), key=lambda fact: len(fact.prompt))  # less padding
    answers = rate(smol, [(fact.prompt, fact.target) for fact in sample])
    assert np.mean([one.rank == 1 for one in answers]) >= 0.8
    invented = rate(smol, [(fact.prompt, fact.target) for fact in random.Random(0).sample(INVENTED, 8)])
    assert np.mean([one.rank == 1 for one in invented]) <= 0.2
