"""Likelihoods of texts and answers against one text at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import surgery.likelihood
from surgery import Model
from surgery.likelihood import answer_likelihoods, text_likelihoods
from surgery.tokens import ask, encode

TEXTS = ["The river is in the town of Rome.", "A river", "The river is in the town of Paris.", "The old tower", "A"]
ASKED = [("The river is in", "Rome"), ("The river is in", "the town of Paris"), ("The river is in", "Paris")]


def alone(model: Model, ids: tuple[int, ...], start: int) -> tuple[list[float], list[bool]]:
    """Log-probabilities of a text's tokens from one on, by a run of its own, and whether each is the likeliest."""
    with torch.no_grad():
        said = model.hf(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    places = range(start, len(ids))
    return [float(said[i - 1, ids[i]]) for i in places], [int(said[i - 1].argmax()) == ids[i] for i in places]


@pytest.mark.parametrize("positions", [512, 3])
def test_likelihoods_are_those_of_one_text_at_a_time(
    tiny: Model, positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surgery.likelihood, "POSITIONS", positions)
    questions = [ask(tiny.tokenizer, *pair) for pair in ASKED]
    rows = [(encode(tiny.tokenizer, text).ids, 1) for text in TEXTS]
    rows += [(question.ids, question.answer_start) for question in questions]
    found = [*text_likelihoods(tiny, TEXTS), *answer_likelihoods(tiny, ASKED)]
    for one, (ids, start) in zip(found, rows, strict=True):
        log_probs, greedy = alone(tiny, ids, start)
        assert one.log_probs == pytest.approx(log_probs, abs=1e-4)
        assert one.greedy.tolist() == greedy


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
