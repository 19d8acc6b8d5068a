"""Prompts as people write them, traced on the real default model: long, short, in chats, in other scripts."""

from __future__ import annotations

import numpy as np
import pytest
from tiny import tiny_tokenizer

from locate import Trace, causal_traces
from surgery import Fact, Model, SurgeryError, as_chat
from surgery.tokens import ask_fact

LONG = "Travellers write many letters home, and most of them are never read by anybody at all. " * 11
PROMPTS = {
    "at the start": Fact(subject="Japan", template="{}'s capital city is", target="Tokyo"),
    "at the end": Fact(subject="Japan", template="The capital city of {}", target=" is Tokyo"),
    "one token": Fact(subject="France", template="The capital of {} is", target="Paris"),
    "the whole prompt": Fact(subject="The capital of France is", template="{}", target="Paris"),
    "twice": Fact(subject="Rome", template="Rome, Rome and {} are in", target="Italy"),
    "right to left": Fact(subject="مصر", template="عاصمة {} هي مدينة", target="القاهرة"),
    "Chinese": Fact(subject="法国", template="{}的首都是", target="巴黎"),
    "Japanese": Fact(subject="エッフェル塔", template="{}がある都市は", target="パリ"),
    "emoji": Fact(subject="🗼 tower", template="The {} stands in", target="Paris"),
    "combining marks": Fact(subject="Zoe\u0308 Kravitz", template="{} is an", target="actress"),
}


def traced(model: Model, fact: Fact, *, tokens: int | None = None) -> tuple[Trace, ...]:
    return causal_traces(model, fact, kinds=("state",), samples=1, positions="last-subject", tokens=tokens)


@pytest.mark.parametrize("fact", PROMPTS.values(), ids=PROMPTS)
def test_spans_are_right_and_nothing_breaks(smol: Model, fact: Fact) -> None:
    question, span = ask_fact(smol.tokenizer, fact, fact.target)
    first, last = question.offsets[span.start][0], question.offsets[span.last][1]
    covered = question.text[first:last]
    assert fact.subject in covered
    assert len(covered.strip()) <= len(fact.subject) + 1  # a token may hold a space of its own before the subject
    for found in traced(smol, fact):
        assert found.subject == span
        assert all(found.sanity().values())
        assert np.isfinite(found.scores[span.last]).all()
        found.plot().figure.canvas.draw()


def test_two_hundred_tokens(smol: Model) -> None:
    fact = Fact(subject="The Eiffel Tower", template=LONG + "{} is located in the city of", target="Paris")
    found = traced(smol, fact, tokens=4000)[0]
    assert len(found.tokens) > 190
    assert found.subject.start > 180
    # a positive control: something of the answer comes back
    assert found.effects[found.subject.last].max() > 0.005


def test_a_chat(smol: Model) -> None:
    fact = Fact(subject="The Eiffel Tower", template="{} is located in the city of", target="Paris")
    chat = as_chat(smol.tokenizer, fact, question="Where is {}?", opening="It is located in the city of")
    question, span = ask_fact(smol.tokenizer, chat, chat.target)
    assert question.text[question.offsets[span.start][0] : question.offsets[span.last][1]].strip() == fact.subject
    assert question.token_texts[0] == "<|im_start|>"
    assert question.token_texts[1] != "<|im_start|>"
    states = causal_traces(smol, chat, kinds=("state",), samples=1, positions="subject")[0]
    assert states.known
    assert np.nanmax(states.effects) > 0.05
    with pytest.raises(SurgeryError, match="times"):
        as_chat(smol.tokenizer, fact, question="{} or {}?")


def test_a_tokenizer_without_a_chat_template_is_refused() -> None:
    fact = Fact(subject="Paris", template="{} is", target="a")
    with pytest.raises(SurgeryError, match="has no chat template"):
        as_chat(tiny_tokenizer(), fact, question="Where is {}?")


def test_a_fact_the_model_does_not_know_is_said(smol: Model) -> None:
    fact = Fact(subject="The Eiffel Tower", template="{} is located in the city of", target="Oslo")
    found = traced(smol, fact)[0]
    assert not found.known
    assert found.rank > 10
    assert f"not known: the answer has rank {found.rank}" in found.plot().get_xlabel()
