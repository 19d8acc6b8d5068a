"""Gradient screens against finite differences, brute-force restoration and exact traces."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
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
    Screen,
    SwapSubject,
    Unit,
    agreement,
    causal_trace,
    screen,
    verified,
)
from locate.contrast import SITES, UNIT_KINDS, UnitKind
from locate.corrupt import embed
from locate.exact import Agreement
from locate.metrics import Metric
from surgery import Fact, Model, Span, SurgeryError, load
from surgery.tokens import ask_fact

SAMPLES, SEED = 2, 3
NOISE = Gaussian(std=0.5)
METHODS = [AttributionPatching(), RelevancePatching()]
FACT = Fact(subject="old tower", template="The {} in", target="Paris")


def screened(model: Model, fact: Fact = FACT, **options: Any) -> Screen:
    return screen(model, fact, **{"corruption": NOISE, "samples": SAMPLES, "seed": SEED, **options})


@pytest.fixture(scope="module")
def llama() -> Model:
    return load((tiny_model("llama"), tiny_tokenizer()))


class ByHand:
    """The corrupted runs with part of a unit's way back to its clean activation gone, by hooks of its own."""

    def __init__(self, model: Model, fact: Fact, unit: UnitKind) -> None:
        self.hf, self.inputs = model.hf, unit in ("head", "neuron")
        names = model.anatomy.names(SITES[unit])
        self.maps = [model.hf.get_submodule(name) for name in names]
        self.table = model.hf.get_submodule(model.anatomy.embedding)
        question, self.span = ask_fact(model.tokenizer, fact, fact.target)
        self.noised = NOISE(model, fact, embed(model, question, self.span), SAMPLES, SEED)
        self.ids, self.answer = torch.tensor([question.ids[:-1]]), torch.tensor(question.answer_ids)
        width = self.maps[0].weight.numel() // model.anatomy.d_model
        self.size = {"mlp": model.anatomy.d_model, "attention": model.anatomy.d_model, "neuron": 1}.get(
            unit, width // model.anatomy.heads
        )
        self.clean: list[Tensor] = []
        self.clean = self._activations(noise=False)
        self.corrupted = self._activations(noise=True)

    def _activations(self, noise: bool) -> list[Tensor]:
        found: list[Tensor] = []

        def keep(_: object, given: tuple[Tensor, ...], out: Tensor) -> None:
            seen = given[0] if self.inputs else out
            found.append(seen.reshape(-1, self.ids.shape[1], seen.shape[-1]).clone())

        hooks = [one.register_forward_hook(keep) for one in self.maps]
        try:
            self._log_probability(noise)
        finally:
            for hook in hooks:
                hook.remove()
        return found

    def moved(self, unit: Unit, share: float) -> Tensor:
        """The answer's log-probability in each corrupted run with that share of the unit restored."""
        part = slice((unit.index or 0) * self.size, ((unit.index or 0) + 1) * self.size)
        change = share * (self.clean[unit.layer] - self.corrupted[unit.layer])[:, unit.position, part]

        def changed(states: Tensor) -> Tensor:
            new = states.clone()
            new.view(SAMPLES, self.ids.shape[1], -1)[:, unit.position, part] += change
            return new

        one = self.maps[unit.layer]
        if self.inputs:
            hook = one.register_forward_pre_hook(lambda _, given: (changed(given[0]), *given[1:]))
        else:
            hook = one.register_forward_hook(lambda _, given, out: changed(out))
        try:
            return self._log_probability(noise=True)
        finally:
            hook.remove()

    @torch.no_grad()
    def _log_probability(self, noise: bool) -> Tensor:
        def corrupt(_: object, given: object, out: Tensor) -> Tensor:
            new = out.clone()
            new[:, self.span.start : self.span.stop] = self.noised
            return new

        hook = self.table.register_forward_hook(corrupt) if noise else None
        try:
            logits = self.hf(self.ids.expand(SAMPLES if noise else 1, -1), use_cache=False).logits
        finally:
            if hook is not None:
                hook.remove()
        steps = logits[:, -len(self.answer) :].log_softmax(-1)
        return torch.stack([steps[:, i, token] for i, token in enumerate(self.answer)]).sum(0)


def some_units(found: Screen, k: int) -> list[Unit]:
    """The largest and others drawn at random."""
    draw = np.random.RandomState(0)
    places = zip(*(draw.randint(0, size, k) for size in found.scores.shape), strict=True)
    drawn = [Unit(found.unit, int(layer), int(position), *map(int, index)) for position, layer, *index in places]
    return [*found.top(k), *drawn]


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


def test_the_top_is_by_magnitude(llama: Model) -> None:
    found = screened(llama, unit="neuron")
    top = found.top(5)
    values = [abs(found.score(one)) for one in top]
    assert values == sorted(values, reverse=True)
    assert values[0] == np.abs(found.scores).max()
    assert values[-1] == np.sort(np.abs(found.scores), axis=None)[-5]
    assert str(Unit("neuron", 4, 3, 17)) == "L4.neuron17@3"
    assert str(Unit("mlp", 4, 3)) == "L4.mlp@3"
    for k in (0, found.scores.size + 1):
        with pytest.raises(SurgeryError, match=f"no top {k} of"):
            found.top(k)


def test_a_record_is_json(llama: Model) -> None:
    found = screened(llama, unit="head")
    record = json.loads(json.dumps(found.as_record()))
    assert np.array_equal(record["scores"], found.scores)
    assert record["top"][0] == {"unit": str(found.top(1)[0]), "score": found.score(found.top(1)[0])}
    assert record["method"] == "attribution patching"
    checked = json.loads(json.dumps(found.verify(llama, 3).as_record()))
    assert len(checked["exact"]) == len(checked["units"]) == 3


def test_a_screen_checks_itself(llama: Model) -> None:
    found = screened(llama)
    with pytest.raises(ValueError, match="do not label"):
        dataclasses.replace(found, tokens=found.tokens[:-1])
    with pytest.raises(ValueError, match="not those of head units"):
        dataclasses.replace(found, unit="head")
    with pytest.raises(ValueError, match="not finite"):
        dataclasses.replace(found, scores=found.scores * np.nan)
    checked = found.verify(llama, 3)
    with pytest.raises(ValueError, match="do not label"):
        dataclasses.replace(checked, units=checked.units[:2])
    with pytest.raises(ValueError, match="no correlations"):
        dataclasses.replace(checked.agreement, spearman=1.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unit": "layer"}, "no unit 'layer' to screen; choose one of mlp"),
        ({"samples": 0}, "samples is at least 1, not 0"),
    ],
)
def test_options_out_of_range_are_refused(llama: Model, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SurgeryError, match=message):
        inspect.unwrap(screen)(llama, FACT, **options)


def test_units_of_another_screen_are_refused(llama: Model) -> None:
    found = screened(llama, unit="head")
    for wrong in (Unit("mlp", 0, 0), Unit("head", 0, 0), Unit("head", 0, 0, 4), Unit("head", -1, 0, 0)):
        with pytest.raises(SurgeryError, match="is no unit of this screen of head units"):
            verified(found, llama, [wrong])
    with pytest.raises(SurgeryError, match="no unit to verify"):
        verified(found, llama, [])


def test_another_model_is_refused(llama: Model) -> None:
    found = screened(llama)
    others = {"shape": tiny_model("llama", num_hidden_layers=3), "weights": tiny_model("llama", seed=1)}
    for what, message in (("shape", "is not the model screened"), ("weights", "is off by .* as it was screened")):
        with pytest.raises(SurgeryError, match=message):
            found.verify(load((others[what], tiny_tokenizer())), 3)


def test_agreement_refuses_what_it_cannot_compare(llama: Model) -> None:
    found = screened(llama)
    options: dict[str, Any] = {"corruption": NOISE, "samples": SAMPLES, "method": "plain", "progress": False}
    options["metric"] = LogProbability()
    trace = causal_trace(llama, FACT, kind="mlp", window=1, **options)
    assert agreement(found, trace).cells == (len(found.tokens) - found.subject.start) * 4
    flat = dataclasses.replace(trace, scores=trace.scores * 0 + trace.corrupted)
    for screened_as, exact, message in (
        (screened(llama, unit="head"), trace, "screen of head units does not estimate a trace of kind 'mlp'"),
        (found, dataclasses.replace(trace, window=2), "restored 2 layers at once, a screen one"),
        (found, dataclasses.replace(trace, fact=FACT.replace(target="Rome")), "not of the same fact"),
        (found, dataclasses.replace(trace, corruption="none"), "not of the same corruption"),
        (found, dataclasses.replace(trace, metric="logit"), "not of the same metric"),
        (found, dataclasses.replace(trace, direction="noise"), "the trace noised; trace with direction='restore'"),
        (found, dataclasses.replace(trace, samples=9), "not of the same number of samples"),
        (found, flat, "cannot be ranked; compare at least 3"),
    ):
        with pytest.raises(SurgeryError, match=message):
            agreement(screened_as, exact)


def test_agreement_is_what_it_says() -> None:
    exact = np.arange(-10.0, 10.0)
    cubed = Agreement.of(exact**3, exact)
    assert cubed.spearman == pytest.approx(1)
    assert cubed.pearson == pytest.approx(np.corrcoef(exact**3, exact)[0, 1])
    assert (cubed.found, cubed.cells) == (1.0, 20)
    assert Agreement.of(-exact, exact).spearman == pytest.approx(-1)
    small = np.where(np.abs(exact) > 8.5, 0.1, exact)
    assert Agreement.of(small, exact).found == 0


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


def test_the_map_shows_the_scores(llama: Model) -> None:
    found = screened(llama)
    ax = found.plot()
    image = ax.collections[0]
    assert np.array_equal(np.asarray(image.get_array()).reshape(found.scores.shape), found.scores)
    low, high = image.get_clim()
    assert high == -low == np.abs(found.scores).max()  # 0 is the middle of the map
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert [label.endswith("*") for label in labels] == [i in found.subject for i in range(len(labels))]


def test_single_units_are_drawn_at_a_position(llama: Model) -> None:
    heads, neurons = (screened(llama, unit=unit) for unit in ("head", "neuron"))
    shown = np.asarray(heads.plot(position=2).collections[0].get_array())
    assert np.array_equal(shown.reshape(heads.scores[2].T.shape), heads.scores[2].T)
    summed = np.asarray(heads.plot().collections[0].get_array())
    assert np.array_equal(summed.reshape(heads.by_layer.shape), heads.by_layer)
    ax = neurons.plot(position=2)
    offsets = np.asarray(ax.collections[0].get_offsets())
    assert np.array_equal(offsets[:, 1], neurons.scores[2].ravel())
    best = np.unravel_index(np.abs(neurons.scores[2]).argmax(), neurons.scores[2].shape)
    assert ax.texts[0].get_text() == f"L{best[0]}.neuron{best[1]}"
    for found, position in ((heads, 99), (heads, -1), (screened(llama), 1)):
        with pytest.raises(SurgeryError, match=f"position {position} would show the heads or neurons"):
            found.plot(position=position)


def test_estimates_are_drawn_against_exact_effects(llama: Model) -> None:
    checked = screened(llama, unit="head").verify(llama, 6)
    figure, ax = plt.subplots()
    assert checked.plot(ax) is ax
    assert plt.get_fignums() == [figure.number]
    drawn = np.asarray(ax.lines[0].get_xydata())
    assert np.array_equal(drawn, np.stack([checked.estimated, checked.exact], 1))


@pytest.mark.parametrize("text", ["$", "$x_{1}$", "\\frac{", "%d"])
def test_any_text_can_be_drawn(llama: Model, text: str) -> None:
    found = screened(llama, unit="head", samples=1)
    hostile = dataclasses.replace(found, tokens=(text,) * len(found.tokens), fact=FACT.replace(target=text), model=text)
    hostile.plot().figure.canvas.draw()
    hostile.plot(position=0).figure.canvas.draw()
    dataclasses.replace(found.verify(llama, 3), screen=hostile).plot().figure.canvas.draw()
