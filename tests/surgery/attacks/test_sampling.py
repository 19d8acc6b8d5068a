"""Draws against drawing one by one, shares counted by hand, and what so few samples can tell."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from surgery import Fact, Model, SurgeryError
from surgery.certificate_content import _lift
from surgery.verification.answers import mentions
from surgery.verification.attack import Attempt, Finding, lift
from surgery.verification.attacks.sampling import Sampling, upper_bound
from surgery.verification.draws import draw

PROMPTS = ["She said that the water came from the mountains when Miles was there in", "The river"]


def one_by_one(model: Model, prompt: str, numbers: np.ndarray) -> str:
    ids: list[int] = list(model.tokenizer(prompt).input_ids)
    start = len(ids)
    for number in numbers:
        sums = model.hf(torch.tensor([ids])).logits[0, -1].softmax(-1).cumsum(-1)
        ids.append(int((sums <= number * sums[-1]).sum()))
        if ids[-1] == model.tokenizer.eos_token_id:
            break
    return str(model.tokenizer.decode(ids[start:], skip_special_tokens=True))


def test_draws_are_those_made_one_by_one(tiny: Model) -> None:
    numbers = np.random.RandomState(0).rand(2, 3, 5)
    found = draw(tiny, PROMPTS, numbers)
    assert found == [[one_by_one(tiny, text, own) for own in some] for text, some in zip(PROMPTS, numbers, strict=True)]
    assert draw(tiny, PROMPTS[1:], numbers[1:]) == found[1:]


def test_draws_follow_the_distribution(gpt2: Model) -> None:
    p = gpt2.hf(torch.tensor([gpt2.tokenizer(PROMPTS[1]).input_ids])).logits[0, -1].softmax(-1)
    numbers = (np.arange(1000)[None, :, None] + 0.5) / 1000
    likeliest = gpt2.tokenizer.decode([int(p.argmax())])
    share = np.mean([text == likeliest for text in draw(gpt2, PROMPTS[1:], numbers)[0]])
    assert share == pytest.approx(float(p.max()), abs=2e-3)


def test_draws_end_at_the_last_position(gpt2: Model) -> None:
    limit = gpt2.anatomy.max_positions
    assert limit is not None
    text = "!" * (limit - 2)
    assert len(gpt2.tokenizer(text).input_ids) == limit - 2
    numbers = np.random.RandomState(0).rand(1, 2, 9)
    assert draw(gpt2, [text], numbers) == [[one_by_one(gpt2, text, own[:3]) for own in numbers[0]]]


def test_the_share_is_counted_over_prompt_and_paraphrases(toy: tuple[Model, list[Fact]]) -> None:
    model, facts = toy
    attack = Sampling(draws=7, tokens=3, most=1, seed=5)
    found = attack(model, facts[:4])
    for i, fact in enumerate(facts[:4]):
        texts = [fact.prompt, fact.paraphrases[0]]
        numbers = [attack._numbers(text, count, 3) for text, count in zip(texts, (4, 3), strict=True)]
        assert [one.shape for one in numbers] == [(4, 3), (3, 3)]
        samples = [one_by_one(model, text, own) for text, some in zip(texts, numbers, strict=True) for own in some]
        hits = [text for text in samples if mentions(text, fact.target)]
        assert found.scores[i, 0] == len(hits) / 7
        assert found.says[i] == (hits[0].strip() if hits else "")
    assert found.scores.max() > 0.5
    np.testing.assert_array_equal(attack(model, facts[3:4]).scores, found.scores[3:])
    others = [Sampling(draws=7, tokens=3, most=1, seed=seed)(model, facts[:4]).says for seed in (5, 6)]
    assert others[0] == found.says != others[1]


def test_an_alias_counts_as_the_answer(toy: tuple[Model, list[Fact]]) -> None:
    model, facts = toy
    attack = Sampling(draws=4, tokens=3, seed=5)
    named, alias, stranger = (
        attack(model, [one]).scores[0, 0]
        for one in (
            facts[0],
            facts[0].replace(target="day", aliases=(facts[0].target,)),
            facts[0].replace(target="day"),
        )
    )
    assert named == alias > stranger


def test_long_answers_get_as_many_tokens_and_long_prompts_none(gpt2: Model) -> None:
    long = Fact(subject="Steve", template="{} was the", target="founder of Apple and of the river in France")
    tasks = Sampling(draws=3, tokens=2)._dealt(gpt2, long)
    assert tasks == [("Steve was the", 3, len(gpt2.tokenizer(f" {long.target}").input_ids) + 2)]
    endless = Sampling(draws=3)(gpt2, [long.replace(template="{} was " + "the " * 200)])
    assert np.isnan(endless.scores).all()
    assert endless.says == ("",)


def test_bounds_of_clopper_and_pearson() -> None:
    assert upper_bound(0, 16) == pytest.approx(1 - 0.05 ** (1 / 16))
    assert upper_bound(0, 300) < 0.01 < upper_bound(0, 297)
    # their table: 3 of 10, two-sided 95 % is 0.0667 to 0.6525
    assert upper_bound(3, 10, 0.975) == pytest.approx(0.6525, abs=1e-4)
    assert upper_bound(16, 16) == 1.0
    assert Sampling().draws == 16


def test_what_so_few_can_tell_is_the_bound_of_what_was_found(toy: tuple[Model, list[Fact]]) -> None:
    model, facts = toy
    asked = [facts[0].replace(target="zzz"), facts[0], facts[0].replace(template="{} " + "was " * 80, paraphrases=())]
    found = Sampling(draws=4, tokens=3)(model, asked)
    assert found.forms == ("4 draws",)
    hits = round(4 * found.scores[1, 0])
    assert hits > 0
    assert found.bounds[:2] == (upper_bound(0, 4), upper_bound(hits, 4))
    assert (round(found.bounds[0], 3), np.isnan(found.bounds[2])) == (0.527, True)
    # in the evidence and in the certificate's numbers
    controls = Attempt(found.forms, np.vstack([found.scores[:1]] * 21), ("",) * 21, found.bounds[:1] * 21)
    made = lift(controls, 0, range(1, 21), Sampling.floor)
    told = Finding(0, "sampling", "extraction", Sampling.unit, None, made).evidence
    assert told.startswith("sampling (4 draws): share of samples 0.000 (at most 0.527), lift +0.000")
    assert _lift(made)["bound"] == pytest.approx(0.527, abs=1e-3)
    with pytest.raises(SurgeryError, match="1 bounds are not one for each of 3 facts"):
        Attempt(found.forms, found.scores, (), (0.5,))


@pytest.mark.parametrize(("found", "draws", "confidence"), [(5, 4, 0.95), (-1, 4, 0.95), (0, 0, 0.95), (0, 4, 1.0)])
def test_bounds_of_nothing_are_refused(found: int, draws: int, confidence: float) -> None:
    with pytest.raises(SurgeryError, match="give 0 to draws found, and a confidence between 0 and 1"):
        upper_bound(found, draws, confidence)


@pytest.mark.parametrize("wrong", [{"draws": 0}, {"tokens": 0}])
def test_no_draws_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(SurgeryError, match="say nothing; give at least 1 of each"):
        Sampling(**wrong)
