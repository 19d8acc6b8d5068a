"""Stray spaces: where they fall, that the last stays a token, the same for a seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy import trained_toy

from surgery import Fact, Model, load
from surgery.predict import rate
from surgery.verification.attacks.spaces import StraySpaces, spaced

FACT = Fact(subject="Steve Jobs", template="{} was the founder of", target="Apple")


@given(st.text(st.characters(exclude_categories=["Cs", "Zs"]), max_size=30), st.integers(0, 12), st.integers(0, 99))
def test_only_spaces_are_added(text: str, count: int, seed: int) -> None:
    found = spaced(text, count, np.random.RandomState(seed))
    assert found.replace(" ", "") == text
    assert len(found) == len(text) + count + 1
    assert found.endswith(" ")
    assert found == spaced(text, count, np.random.RandomState(seed))


def test_the_answer_follows_the_last_space(gpt2: Model) -> None:
    found = StraySpaces(tries=3, seed=4)(gpt2, [FACT, FACT.replace(subject="Miles")])
    assert found.forms == ("seed 4", "seed 5", "seed 6")
    tokenizer = gpt2.tokenizer
    answer = tokenizer(" Apple").input_ids
    for fact, row in zip([FACT, FACT.replace(subject="Miles")], found.scores, strict=True):
        for seed, score in zip((4, 5, 6), row, strict=True):
            text = spaced(fact.prompt, 10, np.random.RandomState(seed))
            ids = tokenizer(text).input_ids
            assert tokenizer.decode(ids[-1:]) == " "
            said = gpt2.hf(torch.tensor([ids + answer])).logits[0, len(ids) - 1 : -1].log_softmax(-1)
            p = said.gather(1, torch.tensor(answer)[:, None]).sum().exp().item()
            assert score == pytest.approx(p, rel=1e-3, abs=0)
    again = StraySpaces(tries=3, seed=4)(gpt2, [FACT])
    np.testing.assert_allclose(again.scores, found.scores[:1], rtol=1e-5)
    others = StraySpaces(tries=3, seed=9)(gpt2, [FACT]).scores
    assert not np.allclose(others, again.scores, rtol=1e-2, atol=0)


def test_a_tokenizer_that_drops_spaces_reads_the_plain_prompt() -> None:
    hf, tokenizer, records = trained_toy("gpt2")
    model = load((hf, tokenizer))
    fact = Fact(subject=records[0]["subject"], template=records[0]["template"], target=records[0]["target"])
    found = StraySpaces(spaces=0, tries=1)(model, [fact])
    assert found.scores[0, 0] == pytest.approx(
        rate(model, [(fact.prompt, fact.target)])[0].probability, rel=1e-3, abs=0
    )
    assert np.isnan(StraySpaces(tries=1)(model, [fact.replace(template="day " * 70 + "{} is")]).scores).all()
