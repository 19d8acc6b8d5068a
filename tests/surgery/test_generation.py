"""What users meet: forms by hand, which answer was said before and after, shares with their intervals."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
from by_hand import Toy, toy_edit
from scipy import stats

from surgery import Fact, Model, SurgeryError
from surgery.verification import Baseline
from surgery.verification.answers import said_which
from surgery.verification.generation import CHAT, QUESTION, Generation, Spoken, generation
from surgery.verification.speech import speak

TOYS = ("llama",)
SHORT = "{prompt}"


def chatting(model: Model) -> Model:
    """The same model with a chat template that adds nothing but a full stop behind the user's words."""
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.chat_template = "{{ messages[0]['content'] }}{% if add_generation_prompt %} .{% endif %}"
    return dataclasses.replace(model, tokenizer=tokenizer)


def spoken(**changes: Any) -> Spoken:
    values = {
        "fact": 0,
        "role": "prompt",
        "form": "plain",
        "prompt": "Ann is in",
        "old": "Rome",
        "new": None,
        "held_out": True,
    }
    return Spoken(**{**values, "before": "Rome", "after": "", "said_before": "old", "said_after": "neither", **changes})


def test_every_form_is_asked_before_and_after(toy: Toy, unchanged: Callable[[Model], None]) -> None:
    model, facts = toy
    unchanged(model)
    fact = facts[0]
    talking, edit = chatting(model), toy_edit(toy, size=60.0)
    found = generation(talking, edit, [fact], question="I say {prompt}", chat="so {prompt}", most_neighbours=2, most=6)
    prompts = [fact.prompt, *(one.prompt for one in fact.neighbours[:2])]
    targets = [fact.target, *(one.target for one in fact.neighbours[:2])]
    assert [(one.form, one.role, one.prompt, one.old) for one in found.spoken] == [
        (form, "neighbour" if i else "prompt", prompts[i], targets[i])
        for form in ("plain", "question", "chat")
        for i in range(3)
    ]
    asked = [text.format(one) for text in ("{}", "I say {}", "so {} .") for one in prompts]
    before = [speak(talking, [text], 6)[0] for text in asked]
    with edit.applied(model):
        after = [speak(talking, [text], 6)[0] for text in asked]
    assert [one.before for one in found.spoken] == before
    assert [one.after for one in found.spoken] == after
    assert before != after
    for one in found.spoken:
        assert one.said_before == said_which(str(one.before), [one.old])
        assert one.said_after == said_which(one.after, [one.old])
        assert one.new is None  # the claim is a removal
    assert found.spoken[0].said_before == "old"
    assert found.left_out == {}


def test_without_a_chat_template_there_is_no_chat(toy: Toy) -> None:
    model, facts = toy
    found = generation(model, None, facts[:1], claim="removed", most_neighbours=0)
    assert found.left_out == {"chat": "the tokenizer has no chat template"}
    assert found.wordings == {"plain": "{prompt}", "question": QUESTION}
    assert "{prompt}" in CHAT
    assert {(one.before, one.said_before) for one in found.spoken} == {(None, None)}


def test_aliases_count_as_the_old_answer(toy: Toy) -> None:
    model, facts = toy
    wrong = facts[0].replace(target="day", neighbours=())
    for aliases, said in (((), "neither"), ((facts[0].target.upper(),), "old")):
        (one,) = generation(model, None, [wrong.replace(aliases=aliases)], forms=["plain"], most=4).spoken
        assert one.said_after == said


def test_of_a_rewrite_the_new_answer_is_looked_for_too(toy: Toy) -> None:
    model, facts = toy
    fact = facts[0].replace(target="day", new_target=facts[0].target, neighbours=())
    said = [
        generation(model, None, [fact], forms=["plain"], claim=claim, most=4).spoken[0]
        for claim in (None, "rewritten", "removed")
    ]
    assert [one.said_after for one in said] == ["new", "new", "neither"]
    assert [one.new for one in said] == [facts[0].target, facts[0].target, None]


def test_neighbours_about_an_edited_subject_are_not_asked(toy: Toy) -> None:
    model, facts = toy
    near = facts[0].neighbours[0]
    other = next(fact for fact in facts if fact.prompt == near.prompt)
    found = generation(model, None, [facts[0], other], forms=["plain"], claim="removed", most=4)
    assert near.prompt not in [one.prompt for one in found.spoken if one.role == "neighbour"]


def test_shares_and_words() -> None:
    rows = tuple(
        spoken(said_after=said, role=role, form=form)
        for form, role, said in [
            ("plain", "prompt", "old"),
            ("plain", "prompt", "neither"),
            ("plain", "neighbour", "old"),
            ("question", "prompt", "neither"),
        ]
    )
    found = Generation(rows, {"plain": SHORT, "question": QUESTION}, {}, 40)
    share = found.share("neither")
    known = stats.binomtest(2, 3).proportion_ci(method="wilson")
    assert (share.mean, share.low, share.high, share.cases) == pytest.approx((2 / 3, known.low, known.high, 3))
    assert found.share("old", when="before").mean == 1
    assert found.share("old", form="question").mean == 0
    assert found.share("old", role="neighbour").cases == 1
    assert found.told == ("plain: 1 old, 0 new, 1 neither, 1 of 1 neighbours right; question: 0 old, 0 new, 1 neither")
    record = json.loads(json.dumps(found.as_record()))
    assert record["told"] == found.told
    assert record["spoken"][0]["after"] == ""


def test_the_base_model_is_asked_once_for_many_edits(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    model, facts = toy
    base = Baseline(model)
    asked = {"forms": ["plain"], "most": 4, "baseline": base}
    first = generation(model, toy_edit(toy, size=1.0), facts[:1], **asked)
    monkeypatch.setattr(Baseline, "_check", lambda _: pytest.fail("the base model was asked again"))
    again = generation(model, toy_edit(toy, size=2.0), facts[:1], **asked)
    assert [one.before for one in again.spoken] == [one.before for one in first.spoken]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"facts": []}, "there is no fact to ask about"),
        ({"forms": []}, "there is no form to ask in; give some of plain, question, chat"),
        ({"forms": ["song"]}, "there is no form of asking 'song'; choose one of plain, question, chat"),
        ({"question": "What?"}, "the question 'What\\?' has no {prompt}; write it where the fact's prompt goes"),
    ],
)
def test_what_cannot_be_asked_is_refused(toy: Toy, given: dict[str, Any], message: str) -> None:
    with pytest.raises(SurgeryError, match=message):
        generation(toy[0], None, **{"facts": toy[1][:1], **given})


def test_results_check_themselves() -> None:
    with pytest.raises(SurgeryError, match="what was said before the edit comes with which answer it was"):
        spoken(said_before=None)


def test_the_real_model_answers_in_every_form(smol: Model) -> None:
    fact = Fact(subject="The Eiffel Tower", template="{} is located in the city of", target="Paris")
    found = generation(smol, None, [fact], claim="removed", most=16)
    assert list(found.wordings) == ["plain", "question", "chat"]
    assert [one.said_after for one in found.spoken] == ["old"] * 3
