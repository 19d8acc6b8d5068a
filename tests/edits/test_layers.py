"""What a layer sweep tells: intervals and scores, a recommendation by scores alone, its record and its figure."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from scipy import stats
from sweeping import NAN, made, traced

from edits import Sweep
from edits.scores import SCORES, close, harmonic
from surgery import Site, SurgeryError
from surgery.numbers import means, wilson_ends


@pytest.mark.parametrize(("yes", "count"), [(0, 8), (3, 8), (8, 8), (1, 1)])
def test_intervals_are_wilsons(yes: int, count: int) -> None:
    values = np.array([[1.0] * yes + [0.0] * (count - yes) + [NAN]])
    (low,), (high,) = wilson_ends(values)
    wanted = stats.binomtest(yes, count).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((wanted.low, wanted.high))
    assert means(values) == pytest.approx([yes / count])
    assert np.isnan(wilson_ends(np.array([[NAN]]))).all()


def test_a_score_is_the_harmonic_mean_of_means() -> None:
    values = made().values
    found = harmonic(values)
    for i in range(4):
        assert found[i] == pytest.approx(stats.hmean([np.nanmean(values[name][i]) for name in SCORES]))
    assert found[0] == 0
    assert np.isnan(found[4])


def test_layers_are_compared_on_the_same_facts() -> None:
    random = np.random.RandomState(0)
    ease = random.uniform(0.3, 0.9, 12)  # what differs between facts is the same at each layer
    shares = {
        "efficacy": np.ones((3, 12)),
        "paraphrase": np.array([ease + 0.1, ease + 0.02 * random.randn(12), ease + 0.1 + 0.05 * random.randn(12)]),
        "neighbour": np.ones((3, 12)),
    }
    best = int(np.argmax(harmonic(shares)))
    found = close(shares, best)
    assert list(found) == [True, False, True]
    # unpaired intervals could not tell them apart
    low, high = wilson_ends(shares["paraphrase"])
    assert low[best] < high[1]
    assert close({name: one[:, :1] for name, one in shares.items()}, 0).all()


def test_the_highest_score_is_recommended_and_the_lower_of_equals() -> None:
    found = made()
    assert found.recommend() == Site("L3.mlp")
    twice = {name: np.array([one[2], one[1], one[2], one[3], one[4]]) for name, one in found.values.items()}
    assert made(values=twice).recommend() == Site("L1.mlp")
    assert 3 in made(values=twice).alike()
    assert 2 not in found.alike()
    assert 3 not in found.alike()


def test_the_trace_has_no_say() -> None:
    effect = [9.0, 0.1, 0.2, 0.3, 0.25, 0.0, 0.9, 9.0]
    found = made(trace=traced(effect))
    assert found.recommend() == made(trace=traced(effect[::-1])).recommend() == made().recommend()
    wanted = stats.spearmanr(found.score[:4], effect[1:5]).statistic
    assert found.correlation() == (pytest.approx(wanted), 4)  # the fifth layer has no score
    wanted = stats.spearmanr(found.mean("paraphrase"), [effect[i] for i in found.layers]).statistic
    assert found.correlation("paraphrase") == (pytest.approx(wanted), 5)
    turned = made(trace=traced([-one for one in effect])).correlation()
    assert turned == (-found.correlation()[0], 4) != (0.0, 4)
    assert np.isnan(made(trace=traced([1.0] * 8)).correlation()[0])
    with pytest.raises(SurgeryError, match="no trace to compare with"):
        made().correlation()


def test_a_sweep_tells_everything() -> None:
    told = "\n".join(made(trace=traced([0.0, 0, 0, 0, 0, 0, 0, 1])).told())
    for part in (
        "4 facts, each edited alone at 5 layers",
        "left out: layers 0, 5: no key statistics",
        "refused: a at 3: will not",
        "refused: e at every layer: cannot",
        "recommended: L3.mlp",
        "largest effect at layer 7 (4 facts)",
        "over 4 layers",
        "no say",
    ):
        assert part in told


def test_without_neighbours_or_paraphrases_nothing_is_recommended(swept: Sweep) -> None:
    found = made(values={**made().values, "neighbour": np.full((5, 4), NAN)}, trace=traced(range(8)))
    with pytest.raises(SurgeryError, match=r"no fact of this sweep has a neighbour; .* give facts with paraphrases"):
        found.recommend()
    assert any("no layer is recommended" in line for line in found.told())
    assert "no layer recommended" in found.plot().get_title()
    with pytest.raises(SurgeryError, match="no share with an interval"):
        found.interval("steps")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"layers": (2, 1, 3, 4, 6)}, "are no sweep"),
        ({"layers": (1, 2, 3, 4, 8)}, "are no sweep"),
        ({"facts": ("a", "b")}, "not \\[layers, facts\\]"),
        ({"trace": traced([0.0, 1.0])}, "a trace of 2 layers"),
        ({"values": {**made().values, "efficacy": np.full((5, 4), 1.5)}}, "efficacy is a share"),
    ],
)
def test_a_sweep_checks_itself(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(**changed)


def test_a_record_gives_the_sweep_back(swept: Sweep, tmp_path: Path) -> None:
    for one in (made(), made(trace=traced([0.0] * 8)), swept):
        record = one.as_record()
        back = Sweep.load(one.save(tmp_path / "sweep.json"))
        assert json.loads(json.dumps(record, allow_nan=False)) == json.loads(json.dumps(back.as_record()))
        np.testing.assert_array_equal(back.score, one.score)
        assert back.told() == one.told()
    (tmp_path / "other.json").write_text("[1]")
    with pytest.raises(SurgeryError, match="holds no layer sweep"):
        Sweep.load(tmp_path / "other.json")
    (tmp_path / "cut.json").write_text((tmp_path / "sweep.json").read_text()[:-9])
    for name in ("cut.json", "none.json"):
        with pytest.raises(SurgeryError, match="no readable layer sweep"):
            Sweep.load(tmp_path / name)


@pytest.mark.parametrize("with_trace", [True, False])
def test_the_figure_draws_what_was_measured(swept: Sweep, with_trace: bool) -> None:
    shown = swept if with_trace else dataclasses.replace(swept, trace=None)
    _, ax = plt.subplots()
    assert shown.plot(ax) is ax
    ax.figure.canvas.draw()
    lines = {str(line.get_label()): line for line in ax.lines}
    for name, band in zip(SCORES, ax.collections, strict=True):
        np.testing.assert_allclose(lines[name].get_ydata(), shown.mean(name))
        drawn = band.get_paths()[0].vertices[:, 1]
        low, high = shown.interval(name)
        assert (drawn.min(), drawn.max()) == pytest.approx((low.min(), high.max()))
    np.testing.assert_allclose(lines["harmonic mean"].get_ydata(), shown.score)
    assert shown.recommend().layer in [line.get_xdata()[0] for line in ax.lines if len(set(line.get_xdata())) == 1]
    assert f"{len(shown.facts)} facts" in ax.get_xlabel()
    behind = [other for other in ax.figure.axes if other is not ax]
    assert len(behind) == with_trace
    if with_trace and shown.trace is not None:
        np.testing.assert_allclose(behind[0].lines[0].get_ydata(), shown.trace.effect[list(shown.layers)])
