"""Averaged traces: roles, intervals, and that a stopped average goes on where it was."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import locate.average
from locate import AverageTrace, Gaussian, Trace, average_trace, causal_traces
from locate.figures import effect_lines, panels, role_map, severed_bars
from locate.profile import ROLES, averaged, roles
from surgery import Fact, Model, Span, SurgeryError

SETTINGS: dict[str, Any] = {"corruption": Gaussian(std=0.5), "samples": 2, "window": 2}


@pytest.fixture(scope="module")
def traces(toy: tuple[Model, list[Fact]]) -> list[tuple[Trace, ...]]:
    model, facts = toy
    return [causal_traces(model, fact, **SETTINGS) for fact in facts[:3]]


@given(before=st.integers(0, 3), subject=st.integers(1, 5), after=st.integers(0, 4))
def test_every_position_from_the_subject_on_has_one_role(before: int, subject: int, after: int) -> None:
    found = roles(Span(before, before + subject), before + subject + after)
    positions = sorted(position for at in found.values() for position in at)
    assert positions == list(range(before, before + subject + after))
    assert found["last subject"] == [before + subject - 1]
    # a subject of one token is not its own first token too
    assert bool(found["first subject"]) == (subject > 1)
    assert bool(found["last"]) == (after > 0)


def test_means_and_intervals_are_those_over_facts(traces: list[tuple[Trace, ...]]) -> None:
    found = averaged(traces)
    for i, kind in enumerate(("state", "mlp", "attention")):
        profile = found.profiles[kind]
        for row, role in enumerate(ROLES):
            values = [
                one[i].effects[at].mean(0) for one in traces if (at := roles(one[i].subject, len(one[i].tokens))[role])
            ]
            assert profile.count[row] == len(values)
            if len(values) > 1:
                np.testing.assert_allclose(profile.mean[row], np.mean(values, 0))
                # not scipy's interval, which has no answer where all values are the same
                scale = np.std(values, 0, ddof=1) / len(values) ** 0.5
                np.testing.assert_allclose(profile.margin[row], stats.t.ppf(0.975, len(values) - 1) * scale)
        assert profile.peaks == tuple(one[i].peak(one[i].subject).layer for one in traces)
    assert found.clean[0] == pytest.approx(np.mean([one[0].clean for one in traces]))
    assert found.sane == len(traces)
    broken = dataclasses.replace(traces[0][0], clean=traces[0][0].clean / 2)
    assert averaged([[broken], *([one[0]] for one in traces[1:])]).sane == len(traces) - 1


def test_one_fact_has_no_interval(traces: list[tuple[Trace, ...]]) -> None:
    found = averaged(traces[:1])
    assert np.isnan(found.profiles["state"].margin).all()
    np.testing.assert_allclose(found.profiles["state"].mean[ROLES.index("last")], traces[0][0].effects[-1], rtol=1e-12)
    json.dumps(found.as_record(), allow_nan=False)
    assert not any("nan" in line or "±" in line for line in found.told())


def test_unknown_facts_are_left_out_and_said(toy: tuple[Model, list[Fact]]) -> None:
    model, facts = toy
    other = next(one.target for one in facts if one.target != facts[0].target)
    wrong = facts[0].replace(target=other, id="wrong")
    found = average_trace(model, [wrong, *facts[:2]], kinds=("state",), **SETTINGS)
    assert found.facts == tuple(fact.label for fact in facts[:2])
    assert [label for label, rank in found.unknown if rank > 1] == ["wrong"]
    assert "1 the model does not know" in found.told()[0]
    with pytest.raises(SurgeryError, match="of 1 it knows none"):
        average_trace(model, [wrong], **SETTINGS)
    with pytest.raises(SurgeryError, match="limit of 0"):
        average_trace(model, facts, limit=0)


def test_a_limit_counts_known_facts(toy: tuple[Model, list[Fact]]) -> None:
    model, facts = toy
    other = next(one.target for one in facts if one.target != facts[0].target)
    found = average_trace(model, [facts[0].replace(target=other), *facts], kinds=("mlp",), limit=1, **SETTINGS)
    assert found.facts == (facts[0].label,)


def test_a_stopped_average_goes_on_where_it_was(
    toy: tuple[Model, list[Fact]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, facts = toy
    whole = average_trace(model, facts[:3], **SETTINGS)
    traced: list[str] = []

    def counted(model: Model, fact: Fact, **options: Any) -> tuple[Trace, ...]:
        if len(traced) == 2:
            raise KeyboardInterrupt
        traced.append(fact.label)
        return causal_traces(model, fact, **options)

    monkeypatch.setattr(locate.average, "causal_traces", counted)
    with pytest.raises(KeyboardInterrupt):
        average_trace(model, facts[:3], cache=tmp_path, **SETTINGS)
    assert len(list(tmp_path.glob("*.json"))) == 2
    del traced[1:]
    again = average_trace(model, facts[:3], cache=tmp_path, **SETTINGS)
    assert traced == [facts[0].label, facts[2].label]
    for kind, profile in whole.profiles.items():
        np.testing.assert_allclose(again.profiles[kind].mean, profile.mean, rtol=1e-6, atol=1e-9)
    # other settings or other weights are other files
    traced.clear()
    average_trace(model, facts[:1], cache=tmp_path, **{**SETTINGS, "window": 3})
    assert traced == [facts[0].label]


def test_a_fact_that_cannot_be_traced_is_said(toy: tuple[Model, list[Fact]], monkeypatch: pytest.MonkeyPatch) -> None:
    model, facts = toy

    def refuse(model: Model, fact: Fact, **options: Any) -> tuple[Trace, ...]:
        if fact is facts[0]:
            raise SurgeryError("no donor")
        return causal_traces(model, fact, **options)

    monkeypatch.setattr(locate.average, "causal_traces", refuse)
    found = average_trace(model, facts[:2], kinds=("state",), **SETTINGS)
    assert found.failed == ((facts[0].label, "no donor"),)
    assert found.facts == (facts[1].label,)
    with pytest.raises(SurgeryError, match="no fact could be averaged: no donor"):
        average_trace(model, facts[:1], **SETTINGS)


@pytest.mark.parametrize("draw", [effect_lines, role_map])
def test_figures_draw_what_was_measured(traces: list[tuple[Trace, ...]], draw: Any) -> None:
    found = averaged(traces)
    _, ax = plt.subplots()
    assert draw(found, "mlp", ax) is ax
    ax.figure.canvas.draw()
    if draw is role_map:
        shown = np.asarray(ax.collections[0].get_array()).reshape(found.profiles["mlp"].mean.shape)
        np.testing.assert_allclose(shown, found.profiles["mlp"].mean)
    else:
        line = next(one for one in ax.lines if str(one.get_label()).startswith("last subject"))
        np.testing.assert_allclose(line.get_ydata(), found.profiles["mlp"].mean[ROLES.index("last subject")])
    assert str(len(traces)) in ax.get_xlabel()
    plt.close("all")
    assert len(panels(found, draw).figure.axes) >= 3
    plt.close("all")


def test_severed_bars_are_the_last_subject_token(traces: list[tuple[Trace, ...]]) -> None:
    found = averaged(traces)
    lowered = averaged([[dataclasses.replace(one[0], scores=one[0].scores / 2)] for one in traces])
    ax = severed_bars(found, lowered, found)
    heights = [bar.get_height() for bar in ax.patches]
    row, layers = ROLES.index("last subject"), found.profiles["state"].mean.shape[1]
    np.testing.assert_allclose(heights[:layers], found.profiles["state"].mean[row])
    np.testing.assert_allclose(heights[2 * layers :], lowered.profiles["state"].mean[row])
    plt.close("all")


def test_a_profile_checks_its_shape(traces: list[tuple[Trace, ...]]) -> None:
    profile = averaged(traces).profiles["state"]
    with pytest.raises(ValueError, match="roles do not label"):
        dataclasses.replace(profile, mean=profile.mean[1:], margin=profile.margin[1:])
    assert isinstance(averaged(traces), AverageTrace)
