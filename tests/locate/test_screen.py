"""Gradient screens against finite differences, brute-force restoration and exact traces."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from screening import FACT, METHODS, NOISE, SAMPLES, SEED, ByHand, screened, some_units
from tiny import tiny_model, tiny_tokenizer
from torch import Tensor

import locate.contrast
from locate import (
    AttributionPatching,
    Gaussian,
    Logit,
    LogitDifference,
    LogProbability,
    Probability,
    RelevancePatching,
    SwapSubject,
    agreement,
    causal_trace,
    screen,
    verified,
)
from locate.contrast import UNIT_KINDS, UnitKind
from locate.exact import Agreement
from locate.metrics import Metric
from surgery import Fact, Model, Span, load
from surgery.tokens import ask_fact


def test_attribution_is_the_derivative_of_restoring(tiny: Model, unchanged: Callable[[Model], None]) -> None:
    unchanged(tiny)
    exact, step = load((copy.deepcopy(tiny.hf).double(), tiny.tokenizer)), 1e-3
    for unit in UNIT_KINDS:
        found = screened(exact, unit=unit, method=AttributionPatching())
        by_hand, units = ByHand(exact, FACT, unit), some_units(found, 2)
        slopes = [(by_hand.moved(one, step) - by_hand.moved(one, -step)).mean() / (2 * step) for one in units]
        expected, got = np.array([float(one) for one in slopes]), np.array([found.score(one) for one in units])
        np.testing.assert_allclose(got, expected, rtol=5e-3, atol=2e-3 * np.abs(expected).max(), err_msg=unit)
        assert np.abs(expected).max() > 1e-4
        assert found.corrupted == pytest.approx(float(by_hand.moved(units[0], 0.0).mean()), rel=1e-4)
        assert (found.forwards, found.backwards) == (2, 1)


def test_verified_is_restoring_by_hand(tiny: Model, unchanged: Callable[[Model], None]) -> None:
    unchanged(tiny)
    for unit in UNIT_KINDS:
        found = screened(tiny, unit=unit, method=RelevancePatching())
        units = some_units(found, 2)
        checked, by_hand = verified(found, tiny, units), ByHand(tiny, FACT, unit)
        expected = np.array([float((by_hand.moved(one, 1.0) - by_hand.moved(one, 0.0)).mean()) for one in units])
        tolerance = 2e-4 * np.abs(expected).max() + 2e-6
        np.testing.assert_allclose(checked.exact, expected, rtol=2e-3, atol=tolerance, err_msg=unit)
        assert np.abs(expected).max() > 50 * tolerance
        assert checked.estimated == pytest.approx([found.score(one) for one in units])
        assert checked.errors.shape == (4,)


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize(("whole", "part"), [("mlp", "neuron"), ("attention", "head")])
def test_parts_sum_to_the_whole(
    toy: tuple[Model, list[Fact]], method: AttributionPatching | RelevancePatching, whole: UnitKind, part: UnitKind
) -> None:
    model, facts = toy
    wholes, parts = (screened(model, facts[0], unit=unit, method=method) for unit in (whole, part))
    np.testing.assert_allclose(parts.by_layer, wholes.scores, rtol=1e-3, atol=1e-4 * np.abs(wholes.scores).max())
    assert parts.scores.shape[2] == {"neuron": model.anatomy.d_ff, "head": model.anatomy.heads}[part]
    assert np.abs(parts.scores).max() > 0.01


def test_verified_is_the_exact_trace(toy: tuple[Model, list[Fact]]) -> None:
    model, facts = toy
    found = screened(model, facts[0], metric=Probability())
    trace = causal_trace(model, facts[0], kind="mlp", window=1, corruption=NOISE, samples=SAMPLES, seed=SEED)
    units = found.top(found.scores.size)
    checked = verified(found, model, units)
    effects = np.array([trace.effects[one.position, one.layer] for one in units])
    np.testing.assert_allclose(checked.exact, effects, atol=1e-5)
    assert found.clean == pytest.approx(trace.clean, abs=1e-5)
    assert found.corrupted == pytest.approx(trace.corrupted, abs=1e-5)
    live = [one.position >= found.subject.start for one in units]
    expected = Agreement.of(checked.estimated[live], effects[live])
    assert agreement(found, trace).spearman == pytest.approx(expected.spearman, abs=1e-3)
    assert agreement(found, trace).cells == expected.cells == sum(live)


def test_attribution_becomes_exact_as_the_noise_goes(toy: tuple[Model, list[Fact]]) -> None:
    model, facts = toy
    model = load((copy.deepcopy(model.hf).double(), model.tokenizer))
    found = {}
    for std in (1e-3, 1.0):
        for method in METHODS:
            s = screened(model, facts[0], method=method, corruption=Gaussian(std=std))
            found[std, str(method)] = s.verify(model, s.scores.size).agreement.pearson
    assert found[1e-3, "attribution patching"] > 0.999 > found[1.0, "attribution patching"]
    # relevance is no derivative, however small the noise
    assert found[1e-3, "relevance patching"] < 0.99


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_screen_finds_the_large_effects_of_a_model_that_knows(
    toy: tuple[Model, list[Fact]], method: AttributionPatching | RelevancePatching
) -> None:
    model, facts = toy
    other = next(one for one in facts if one.subject != facts[0].subject and one.target != facts[0].target)
    found = screened(model, facts[0], method=method, corruption=SwapSubject(other.subject))
    checked = found.verify(model, found.scores.size)
    assert checked.agreement.pearson > 0.8
    assert np.abs(checked.exact).max() > 1
    assert found.samples == 1
    assert not found.errors.any()
    assert not checked.errors.any()


def test_nothing_left_of_the_subject_and_nothing_without_noise(tiny_fact: Fact, llama: Model) -> None:
    found = screened(llama, tiny_fact)
    assert found.subject.start > 0
    assert np.abs(found.scores[: found.subject.start]).max() < 1e-4 * np.abs(found.scores).max()
    none = screened(llama, tiny_fact, corruption=Gaussian(std=0.0))
    assert np.abs(none.scores).max() < 1e-4 * np.abs(found.scores).max()
    assert none.corrupted == pytest.approx(none.clean, abs=1e-5)


@pytest.mark.parametrize("metric", [LogProbability(), Logit(), Probability(), LogitDifference(foil="Rome")], ids=str)
def test_metrics_are_those_of_traces(llama: Model, metric: Metric) -> None:
    found = screened(llama, metric=metric)
    options: dict[str, Any] = {"corruption": NOISE, "samples": SAMPLES, "seed": SEED, "window": 1, "progress": False}
    trace = causal_trace(llama, FACT, kind="mlp", method="plain", metric=metric, **options)
    if not metric.normalised:
        assert found.clean == pytest.approx(trace.clean, rel=1e-4)
        assert found.corrupted == pytest.approx(trace.corrupted, rel=1e-4)
    units = [one for one in found.top(found.scores.size) if one.position >= found.subject.start]
    checked = verified(found, llama, units)
    same, own = agreement(found, trace), checked.agreement
    assert (same.spearman, same.pearson) == pytest.approx((own.spearman, own.pearson), abs=2e-3)
    assert found.as_record()["metric"] == metric.name


def test_a_whole_answer_of_several_tokens_is_rated(llama: Model) -> None:
    fact = FACT.replace(target="Danielle Darrieux")
    question, span = ask_fact(llama.tokenizer, fact, fact.target)
    assert len(question.answer_ids) > 2
    found = screened(llama, fact)
    assert found.scores.shape == (question.answer_start, 4)
    logits = llama.hf(torch.tensor([question.ids])).logits[0].log_softmax(-1)
    steps = [logits[question.answer_start + i - 1, token] for i, token in enumerate(question.answer_ids)]
    assert found.clean == pytest.approx(float(sum(steps)), rel=1e-4)
    trace = causal_trace(
        llama, fact, kind="mlp", window=1, corruption=NOISE, samples=SAMPLES, seed=SEED, metric=LogProbability()
    )
    checked = verified(found, llama, found.top(8))
    expected = [trace.effects[one.position, one.layer] for one in checked.units]
    np.testing.assert_allclose(checked.exact, expected, atol=1e-4)
    assert span == found.subject


def test_a_swapped_subject_is_chosen_once(toy: tuple[Model, list[Fact]]) -> None:
    model, facts = toy
    found = screened(model, facts[0], corruption=SwapSubject(), metric=LogitDifference())
    assert isinstance(found.corruption, SwapSubject)
    assert found.corruption.subject not in (None, facts[0].subject)
    assert found.clean > 0 > found.corrupted  # the foil is the other subject's answer
    assert found.verify(model, 5).agreement.cells == 5


def test_the_chain_rule_joins_metrics() -> None:
    model = load((tiny_model("gpt2"), tiny_tokenizer()))
    fact = FACT.replace(target="the")
    assert len(ask_fact(model.tokenizer, fact, fact.target)[0].answer_ids) == 1
    logs, straight = (screened(model, fact, metric=one, samples=1) for one in (LogProbability(), Probability()))
    scaled = logs.scores * straight.corrupted
    np.testing.assert_allclose(straight.scores, scaled, rtol=1e-3, atol=1e-5 * np.abs(scaled).max())


def test_rows_that_are_split_give_the_same(llama: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    found = screened(llama, unit="head")
    whole = found.verify(llama, 7)
    monkeypatch.setattr(locate.contrast, "MOST_TOKENS", 2 * SAMPLES * (len(found.tokens) + 3))
    split = found.verify(llama, 7)
    np.testing.assert_allclose(split.exact, whole.exact, atol=1e-5)
    assert (whole.forwards, split.forwards) == (3, 2 + 4)


def test_same_seed_same_numbers(llama: Model) -> None:
    assert np.array_equal(screened(llama).scores, screened(llama).scores)
    assert not np.allclose(screened(llama).scores, screened(llama, seed=SEED + 1).scores, rtol=1e-2)


def test_errors_are_standard_errors(llama: Model) -> None:
    pair = screened(llama, metric=Logit())
    draws = np.random.RandomState(SEED).randn(2, len(pair.subject), llama.anatomy.d_model)
    singles = [screened(llama, metric=Logit(), samples=1, corruption=_Fixed(NOISE.std or 0, one)) for one in draws]
    both = np.stack([one.scores for one in singles])
    np.testing.assert_allclose(pair.scores, both.mean(0), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(pair.errors, both.std(0, ddof=1) / np.sqrt(2), rtol=1e-3, atol=1e-5)


@dataclasses.dataclass(frozen=True, eq=False)
class _Fixed:
    std: float
    draw: np.ndarray[Any, Any]

    def __call__(self, model: Model, fact: Fact, clean: Tensor, samples: int, seed: int) -> Tensor:
        return clean + torch.from_numpy(self.draw[None] * self.std).to(clean)


def test_an_interruption_leaves_no_hook(llama: Model, unchanged: Callable[[Model], None]) -> None:
    unchanged(llama)

    @contextmanager
    def stopped() -> Iterator[None]:
        yield
        raise KeyboardInterrupt

    class Stopping(AttributionPatching):
        def __call__(self, model: Model) -> Any:
            return stopped()

    with pytest.raises(KeyboardInterrupt):
        screened(llama, method=Stopping())


def test_heads_of_the_default_model(smol: Model, unchanged: Callable[[Model], None]) -> None:
    unchanged(smol)
    fact = Fact(subject="The Eiffel Tower", template="{} is located in the city of", target="Paris")
    found = screen(smol, fact, unit="head", samples=3)
    assert found.scores.shape == (10, 30, smol.anatomy.heads)
    assert found.subject == Span(0, 4)
    assert found.verify(smol, 8).agreement.pearson > 0.8
    assert (
        screen(smol, fact, unit="head", samples=3, method=RelevancePatching()).verify(smol, 8).agreement.pearson > 0.8
    )
