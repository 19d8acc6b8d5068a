"""Corruptions give the draws they name, and a swap is the other subject's own run."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from locate import Gaussian, SwapSubject, Uniform, causal_trace
from locate.corrupt import Corruption, embed, subject_embedding_std
from surgery import Fact, Model, SurgeryError, example_facts
from surgery.tokens import ask_fact

SAMPLES, SEED = 5, 7


@pytest.fixture(scope="module")
def clean(gpt2: Model, tiny_fact: Fact) -> torch.Tensor:
    return embed(gpt2, *ask_fact(gpt2.tokenizer, tiny_fact, tiny_fact.target))


def entries_std(model: Model, facts: list[Fact]) -> float:
    """Standard deviation of all entries of the subjects' rows of the embedding table, by offsets and numpy."""
    table = model.hf.get_input_embeddings().weight.double().numpy()
    rows = []
    for fact in facts:
        encoded = model.tokenizer(fact.prompt, return_offsets_mapping=True)
        start = fact.prompt.index(fact.subject)
        for token, (a, b) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
            if a < start + len(fact.subject) and b > start:
                rows.append(table[token])
    return float(np.stack(rows).std(ddof=1))


def test_clean_embeddings_are_the_subjects_rows_of_the_table(gpt2: Model, tiny_fact: Fact, clean: torch.Tensor) -> None:
    text = gpt2.tokenizer.decode(
        [int((gpt2.hf.get_input_embeddings().weight == row).all(1).nonzero()[0, 0]) for row in clean]
    )
    assert text.strip() == tiny_fact.subject


def test_gaussian_draws_are_the_published_ones_number_for_number(
    gpt2: Model, tiny_fact: Fact, clean: torch.Tensor
) -> None:
    zeros = torch.zeros_like(clean)
    draws = torch.from_numpy(np.random.RandomState(SEED).randn(SAMPLES, *clean.shape) * 0.7).float()
    assert torch.equal(Gaussian(std=0.7)(gpt2, tiny_fact, zeros, SAMPLES, SEED), draws)
    assert torch.equal(Gaussian(std=0.7)(gpt2, tiny_fact, clean, SAMPLES, SEED), clean + draws)
    assert not torch.equal(Gaussian(std=0.7)(gpt2, tiny_fact, zeros, SAMPLES, SEED + 1), draws)


def test_the_std_is_that_of_the_given_facts_subject_tokens(gpt2: Model, tiny_fact: Fact) -> None:
    other = tiny_fact.replace(subject="The river", template="{} is in")
    for facts in ([tiny_fact], [other], [tiny_fact, other]):
        assert subject_embedding_std(gpt2, facts) == pytest.approx(entries_std(gpt2, facts), rel=1e-5)
    assert subject_embedding_std(gpt2, [tiny_fact]) != pytest.approx(subject_embedding_std(gpt2, [other]), rel=1e-3)


def test_a_multiple_is_in_units_of_the_shipped_subjects_std(gpt2: Model, tiny_fact: Fact, clean: torch.Tensor) -> None:
    std = entries_std(gpt2, example_facts())
    draws = np.random.RandomState(SEED).randn(SAMPLES, *clean.shape)
    found = Gaussian(2.5)(gpt2, tiny_fact, torch.zeros_like(clean), SAMPLES, SEED)
    np.testing.assert_allclose(found.numpy(), draws * 2.5 * std, rtol=1e-4, atol=1e-6)


def test_three_standard_deviations_are_the_default() -> None:
    assert Gaussian() == Gaussian(multiple=3.0)
    assert "3 x std" in str(Gaussian())
    assert "0.1" in str(Gaussian(std=0.1))


def test_noise_of_zero_is_no_noise(gpt2: Model, tiny_fact: Fact, clean: torch.Tensor) -> None:
    for none in (Gaussian(0.0), Gaussian(std=0.0), Uniform(0.0)):
        assert torch.equal(none(gpt2, tiny_fact, clean, 2, SEED), torch.stack([clean, clean]))


def test_noise_given_twice_or_negative_is_refused() -> None:
    with pytest.raises(SurgeryError, match="not both"):
        Gaussian(multiple=3.0, std=0.1)
    for negative in ({"multiple": -1.0}, {"std": -0.1}):
        with pytest.raises(SurgeryError, match="negative"):
            Gaussian(**negative)


def test_uniform_noise_fills_its_bounds(gpt2: Model, tiny_fact: Fact, clean: torch.Tensor) -> None:
    bound = 1.5 * entries_std(gpt2, example_facts())
    noise = Uniform(1.5)(gpt2, tiny_fact, torch.zeros_like(clean), 50, SEED)
    assert noise.shape == (50, *clean.shape)
    assert 0.99 * bound < noise.abs().max() <= bound * (1 + 1e-5)
    assert abs(noise.mean()) < 0.03 * bound
    assert float(noise.std()) == pytest.approx(bound / 3**0.5, rel=0.03)


@pytest.mark.parametrize("corruption", [Gaussian(), Uniform(), SwapSubject("Alda")], ids=str)
def test_each_is_a_corruption(corruption: Corruption) -> None:
    assert isinstance(corruption, Corruption)


def test_a_swap_is_the_other_subjects_own_run(toy: tuple[Model, list[Fact]]) -> None:
    model, facts = toy
    fact = facts[0]
    other = next(one for one in facts[1:30] if one.target != fact.target)
    traced = causal_trace(model, fact, corruption=SwapSubject(other.subject), method="plain", progress=False)
    with torch.no_grad():
        ids = torch.tensor([model.tokenizer(other.prompt)["input_ids"]])
        p = model.hf(ids).logits[0, -1].double().softmax(-1)[model.tokenizer.convert_tokens_to_ids(fact.target)]
    assert traced.corrupted == pytest.approx(float(p), abs=1e-6)
    assert traced.samples == 1
    assert not traced.errors.any()
    assert traced.clean > 0.5 > traced.corrupted


def test_a_swap_for_a_subject_of_other_length_is_refused(toy: tuple[Model, list[Fact]]) -> None:
    model, facts = toy
    first_name = facts[0].subject.split()[0]
    with pytest.raises(SurgeryError, match=f"'{first_name}' has 1 tokens and '{facts[0].subject}' has 2"):
        causal_trace(model, facts[0], corruption=SwapSubject(first_name), method="plain", progress=False)
