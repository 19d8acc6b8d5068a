"""What a screen tells: its top, its record, its agreement with exact effects, its figures, and what it refuses."""

from __future__ import annotations

import dataclasses
import inspect
import json
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from screening import FACT, NOISE, SAMPLES, screened
from tiny import tiny_model, tiny_tokenizer

from locate import LogProbability, Unit, agreement, causal_trace, screen, verified
from locate.exact import Agreement
from surgery import Model, SurgeryError, load
from surgery.figures import drawable


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
    whole, at_one, checked = hostile.plot(), hostile.plot(position=0), found.verify(llama, 3)
    against = dataclasses.replace(checked, screen=hostile).plot()
    for ax in (whole, at_one, against):
        ax.figure.canvas.draw()
    assert all(label.get_text().startswith(drawable(text)) for label in whole.get_yticklabels())
    assert drawable(repr(text)) in at_one.get_title()
    assert drawable(text) in against.get_title()
