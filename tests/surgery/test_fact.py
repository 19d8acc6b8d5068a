"""Facts as values: what is refused, where the subject stands, the way to a record and back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from surgery import Fact, FactError, Neighbour, SurgeryError
from surgery.fact import derive_neighbours

quick = settings(max_examples=60, deadline=None, derandomize=True, database=None)
words = st.text(min_size=1, max_size=30).filter(lambda text: bool(text.strip()))
hostile = st.one_of(
    words, st.sampled_from(["{", "}", "{}", "{0}", "{name}", "%s", "\\", '"', "\u2028", "\x00", "\r\n"])
)
hostile_words = hostile.filter(lambda text: bool(text.strip()))
around = st.text(max_size=20).filter(lambda text: "{}" not in text)


# plain values: beartype, which draws at random, may not run while hypothesis draws
neighbours = st.lists(st.fixed_dictionaries({"prompt": hostile_words, "target": hostile_words}), max_size=3)
fields = st.fixed_dictionaries(
    {
        "subject": hostile_words,
        "template": st.tuples(around, around).map("{}".join),
        "target": hostile_words,
        "new_target": st.none() | hostile_words,
        "paraphrases": st.lists(hostile_words, max_size=3),
        "neighbours": neighbours,
        "aliases": st.lists(hostile_words, max_size=2),
        "id": st.none() | st.text(max_size=10),
    }
)


def fact(**changes: Any) -> Fact:
    return Fact(**{"subject": "The tower", "template": "{} is in", "target": "Paris", **changes})


@pytest.mark.parametrize(
    ("changes", "field", "says"),
    [
        ({"subject": ""}, "subject", "is empty, but '{} is in' has {} for it"),
        ({"subject": " \n\t"}, "subject", "is blank"),
        ({"target": ""}, "target", "is empty"),
        ({"new_target": " "}, "new_target", "leave the field away to remove the fact"),
        ({"paraphrases": ("Where is it?", "")}, "paraphrases", "one of them is empty"),
        ({"aliases": ("City of Light", " ")}, "aliases", "one of them is empty"),
        ({"aliases": "City of Light"}, "aliases", "is one text; write a list, as ('City of Light',)"),
        ({"template": "The tower is in"}, "template", "'The tower is in' has no {} for the subject"),
        ({"template": ""}, "template", "is empty"),
        ({"template": "{} and {} are in"}, "template", "has 2 times {}"),
    ],
)
def test_a_fact_that_cannot_be_asked_is_refused_by_field(changes: dict[str, Any], field: str, says: str) -> None:
    with pytest.raises(FactError) as caught:
        fact(**changes)
    assert caught.value.field == field
    assert says in caught.value.detail
    assert str(caught.value) == f"{field}: {caught.value.detail}"
    assert "\n" not in caught.value.detail
    assert isinstance(caught.value, SurgeryError)


@pytest.mark.parametrize(("prompt", "target", "field"), [("", "x", "prompt"), ("x", " ", "target")])
def test_an_empty_neighbour_is_refused(prompt: str, target: str, field: str) -> None:
    with pytest.raises(FactError, match=f"neighbours.{field}: is empty"):
        Neighbour(prompt, target)


def test_the_subject_stands_where_the_slot_was_though_its_words_come_earlier() -> None:
    twice = fact(subject="Paris", template="Paris Hilton lives in {}, a city of", target="France")
    assert twice.prompt == "Paris Hilton lives in Paris, a city of"
    assert twice.subject_start == 22
    assert twice.prompt.index("Paris") == 0


@pytest.mark.parametrize("subject", ["{}", "{0}", "{subject}", "a{b", "}{", "%s"])
def test_braces_in_a_subject_are_only_characters(subject: str) -> None:
    one = fact(subject=subject, template="a {x} b {} c")
    assert one.prompt == "a {x} b " + subject + " c"
    assert one.subject_start == 8


@quick
@given(subject=hostile_words, before=around, after=around)
@example(subject="{}", before="{", after="}")
def test_the_prompt_holds_the_subject_at_subject_start(subject: str, before: str, after: str) -> None:
    one = fact(subject=subject, template=before + "{}" + after)
    assert one.subject_start == len(before)
    assert one.prompt == before + subject + after


def test_replace_changes_a_copy_and_checks_it() -> None:
    one = fact()
    other = one.replace(new_target="Rome")
    assert (one.new_target, other.new_target) == (None, "Rome")
    assert other.replace(new_target=None) == one
    with pytest.raises(FactError, match="new_target"):
        one.replace(new_target="")


def test_lists_become_tuples_so_facts_can_be_compared_and_hashed() -> None:
    one = fact(paraphrases=["Where is it?"], neighbours=[Neighbour("The river is in", "Rome")])
    other = fact(paraphrases=("Where is it?",), neighbours=(Neighbour("The river is in", "Rome"),))
    assert one == other
    assert len({one, other}) == 1
    assert one != fact()


def test_the_label_is_the_id_or_prompt_and_answer() -> None:
    assert fact().label == "The tower is in Paris"
    assert fact(id="7").label == "7"


def test_a_record_leaves_absent_fields_away() -> None:
    assert fact().as_record() == {"subject": "The tower", "template": "{} is in", "target": "Paris"}


def test_aliases_are_in_a_record_only_where_there_are_some() -> None:
    whole = fact(
        new_target="Rome", paraphrases=("Where is it?",), neighbours=(Neighbour("The river is in", "Rome"),), id="7"
    )
    # as facts were written before there were aliases, to the byte
    assert json.dumps(whole.as_record()) == (
        '{"subject": "The tower", "template": "{} is in", "target": "Paris", "new_target": "Rome", '
        '"paraphrases": ["Where is it?"], "neighbours": [{"prompt": "The river is in", "target": "Rome"}], "id": "7"}'
    )
    named = whole.replace(aliases=["Paname"])
    assert named.aliases == ("Paname",)
    assert Fact.from_record(json.loads(json.dumps(named.as_record()))) == named != whole


@quick
@given(fields)
def test_a_record_comes_back_as_the_same_fact(values: dict[str, Any]) -> None:
    one = Fact(**{**values, "neighbours": [Neighbour(**each) for each in values["neighbours"]]})
    record = one.as_record()
    assert Fact.from_record(record) == one
    assert Fact.from_record(json.loads(json.dumps(record))) == one


PAIRS = [("A", "x"), ("B", "x"), ("C", "y"), ("D", "x"), ("E", "z"), ("A", "x"), ("F", "x"), ("G", "y"), ("H", "x")]


def test_neighbours_are_other_subjects_those_with_the_same_answer_first() -> None:
    found = derive_neighbours(PAIRS, 0, "{} is in")
    # at most half of six share the answer; the order goes round from the fact on
    assert [one.prompt[0] for one in found] == ["B", "D", "F", "C", "E", "G"]
    assert [one.target for one in found] == ["x", "x", "x", "y", "z", "y"]
    assert all(one.prompt.endswith(" is in") for one in found)
    assert [one.prompt[0] for one in derive_neighbours(PAIRS, 6, "{}", limit=2)] == ["H", "G"]


def test_a_subject_of_its_own_has_no_neighbours() -> None:
    assert derive_neighbours([("A", "x"), ("A", "y")], 0, "{}") == ()
