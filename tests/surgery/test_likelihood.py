"""Likelihoods of texts and answers against one text at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import surgery.likelihood
from surgery import Model
from surgery.likelihood import Likelihood, answer_likelihoods, text_likelihoods
from surgery.tokens import ask, encode

TEXTS = ["The river is in the town of Rome.", "A river", "The river is in the town of Paris.", "The old tower", "A"]
ASKED = [("The river is in", "Rome"), ("The river is in", "the town of Paris"), ("The river is in", "Paris")]


def check(model: Model, found: Likelihood, ids: tuple[int, ...], start: int) -> None:
    with torch.no_grad():
        said = model.hf(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    places = range(start, len(ids))
    assert found.log_probs == pytest.approx([float(said[i - 1, ids[i]]) for i in places], abs=1e-4)
    assert found.greedy.tolist() == [int(said[i - 1].argmax()) == ids[i] for i in places]


@pytest.mark.parametrize("positions", [512, 3])
def test_likelihoods_are_those_of_one_text_at_a_time(
    tiny: Model, positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surgery.likelihood, "POSITIONS", positions)
    for one, text in zip(text_likelihoods(tiny, TEXTS), TEXTS, strict=True):
        check(tiny, one, encode(tiny.tokenizer, text).ids, 1)
    for one, pair in zip(answer_likelihoods(tiny, ASKED), ASKED, strict=True):
        question = ask(tiny.tokenizer, *pair)
        check(tiny, one, question.ids, question.answer_start)


def test_what_the_model_says_is_greedy(tiny: Model) -> None:
    ids = encode(tiny.tokenizer, "The river is in").ids
    with torch.no_grad():
        best = int(tiny.hf(torch.tensor([ids])).logits[0, -1].argmax())
    rows = [((*ids, last), len(ids)) for last in (best, (best + 1) % tiny.anatomy.vocab)]
    found = surgery.likelihood._likelihoods(tiny, rows)
    assert [one.greedy.tolist() for one in found] == [[True], [False]]


def test_a_long_text_is_cut(tiny: Model) -> None:
    whole, cut = (text_likelihoods(tiny, TEXTS[:1], most=most)[0] for most in (None, 4))
    np.testing.assert_allclose(cut.log_probs, whole.log_probs[:3], atol=1e-5)
    assert len(whole.log_probs) > 3
