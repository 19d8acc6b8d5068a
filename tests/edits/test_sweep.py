"""The layer sweep: its numbers are those of editing by hand, it can be stopped, and it recommends by scores alone."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import matplotlib.pyplot as plt
import numpy as np
import pytest
from scipy import stats

import edits.sample
import edits.trials
from edits import (
    Neutral,
    RankOne,
    Statistics,
    Sweep,
    ValueSearch,
    find_statistics,
    find_sweep,
    fit_statistics,
    keep_sweep,
    recommended_site,
    sample_facts,
    sweep,
)
from edits.layers import TraceProfile
from edits.rank_one import LAYERS
from edits.sample import with_new_answers
from edits.scores import SCORES, close, harmonic, intervals, means
from locate import AverageTrace, Gaussian, average_trace
from locate.profile import ROLES
from surgery import Edit, Fact, Model, Neighbour, Site, SurgeryError, WrongWeights, rate
from surgery.verification.drift import drift, log_probs

Toy = tuple[Model, list[Fact]]
CHOSEN = (27, 45, 72)
CONTEXTS = ("{}", "The day . {}", "They went home . {}")
SEARCH = ValueSearch(steps=25, step=0.2, clamp=8.0, stop=0.05, method="plain")
SHIFT = 0.3
NAN = float("nan")


@dataclass(frozen=True, kw_only=True)
class Counted:
    """Rank-one editing that notes what it is asked, and can be told to refuse or to stop."""

    name: ClassVar[str] = "counted"
    asked: ClassVar[list[tuple[str, int]]] = []
    statistics: Statistics | None = None
    objective: None = None
    refuse: tuple[tuple[str, int], ...] = ()
    stop_at: ClassVar[int] = -1

    def __call__(self, model: Model, facts: Sequence[Fact] | Fact, sites: Sequence[Site] | None = None) -> Edit:
        assert isinstance(facts, Fact)
        assert sites is not None
        if len(self.asked) == Counted.stop_at:
            raise KeyboardInterrupt
        self.asked.append((facts.subject, sites[0].layer))
        if (facts.subject, sites[0].layer) in self.refuse:
            raise SurgeryError("will not")
        method = RankOne(
            statistics=self.statistics, contexts=CONTEXTS[:2], search=ValueSearch(steps=2, step=0.5, method="plain")
        )
        return method(model, facts, sites)


@pytest.fixture(autouse=True)
def forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No sweep of the user's own, and nothing counted yet."""
    monkeypatch.setenv("SURGERY_CACHE", str(tmp_path / "own"))
    Counted.asked.clear()
    Counted.stop_at = -1


@pytest.fixture(scope="module")
def facts(toy: Toy) -> list[Fact]:
    return with_new_answers([toy[1][i] for i in CHOSEN], seed=3)


@pytest.fixture(scope="module")
def statistics(toy: Toy) -> Statistics:
    return fit_statistics(toy[0], sentences(toy[1]), range(4), progress=False)


@pytest.fixture(scope="module")
def method(statistics: Statistics) -> RankOne:
    return RankOne(statistics=statistics, contexts=CONTEXTS, search=SEARCH, progress=False)


@pytest.fixture(scope="module")
def trace(toy: Toy, facts: list[Fact]) -> AverageTrace:
    return average_trace(toy[0], facts, kinds=("mlp",), corruption=Gaussian(std=0.5), samples=2, window=1)


@pytest.fixture(scope="module")
def swept(toy: Toy, facts: list[Fact], method: RankOne, trace: AverageTrace) -> Sweep:
    return sweep(toy[0], facts[:2], method=method, trace=trace, drift=True, neighbour_shift=SHIFT)


def sentences(facts: Sequence[Fact]) -> list[str]:
    return [f"{prompt} {fact.target} ." for fact in facts for prompt in (fact.prompt, *fact.paraphrases)]


def made(**changed: Any) -> Sweep:
    """A sweep of made-up numbers: five layers of a model of eight, four facts."""
    shares = {
        "efficacy": np.array([[0.0] * 4, [1.0] * 4, [1.0] * 4, [1, 1, 1, 0.0], [NAN] * 4]),
        "paraphrase": np.array([[0.0] * 4, [0.5, 0.5, 0.6, 0.6], [0.9, 1, 0.9, 1], [0.9, 1, 1, 1], [1.0] * 4]),
        "neighbour": np.array([[1.0] * 4, [1.0] * 4, [1, 0.9, 1, NAN], [1.0] * 4, [1.0] * 4]),
    }
    names = ("probability", "paraphrase probability", "drift", "steps", "seconds")
    rest = {name: np.full((5, 4), float(i)) for i, name in enumerate(names)}
    given: dict[str, Any] = {
        "layers": (1, 2, 3, 4, 6),
        "facts": ("a", "b", "c", "d"),
        "values": shares | rest,
        "unedited": {name: np.zeros(4) for name in (*SCORES, "probability", "paraphrase probability")},
        "trace": None,
        "left_out": ((0, "no key statistics"), (5, "no key statistics")),
        "failed": ((3, "a", "will not"), (None, "e", "cannot")),
        "method": "rank-one",
        "settings": {"seed": "1", "neighbour_shift": 0.05},
        "model": "made up",
        "depth": 8,
        "fingerprints": ("f",),
    }
    return Sweep(**given | changed)


def traced(effect: Sequence[float]) -> TraceProfile:
    return TraceProfile(
        effect=np.array(effect, dtype=float), margin=np.zeros(len(effect)), facts=4, about="probability"
    )


@pytest.mark.parametrize(("yes", "count"), [(0, 8), (3, 8), (8, 8), (1, 1)])
def test_intervals_are_wilsons(yes: int, count: int) -> None:
    values = np.array([[1.0] * yes + [0.0] * (count - yes) + [NAN]])
    (low,), (high,) = intervals(values)
    wanted = stats.binomtest(yes, count).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((wanted.low, wanted.high))
    assert means(values) == pytest.approx([yes / count])
    assert np.isnan(intervals(np.array([[NAN]]))).all()


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
    low, high = intervals(shares["paraphrase"])
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


def test_the_numbers_are_those_of_editing_by_hand(
    toy: Toy, facts: list[Fact], method: RankOne, swept: Sweep, unchanged: Callable[[Model], None]
) -> None:
    model, _ = toy
    unchanged(model)
    texts = edits.trials.neutral_texts()
    text_before = log_probs(model, texts)
    for column, fact in enumerate(facts[:1]):
        neighbours = [(one.prompt, one.target) for one in fact.neighbours]
        before = [one.probability for one in rate(model, neighbours)]
        for row, layer in enumerate(swept.layers):
            edit = method(model, fact, [Site.at(layer, "mlp")])
            with edit.applied(model):
                old, new = ([one.probability for one in rate(model, own(fact, answer))] for answer in answers(fact))
                after = [one.probability for one in rate(model, neighbours)]
                nats = drift(text_before, log_probs(model, texts)).divergence
            wanted = {
                "efficacy": new[0] > old[0],
                "paraphrase": np.mean([n > o for n, o in zip(new[1:], old[1:], strict=True)]),
                "neighbour": np.mean([abs(a - b) <= SHIFT for a, b in zip(after, before, strict=True)]),
                "probability": new[0],
                "paraphrase probability": np.mean(new[1:]),
                "drift": nats,
                "steps": edit.log[0]["steps"],
            }
            for name, value in wanted.items():
                assert swept.values[name][row, column] == pytest.approx(float(value), rel=1e-4, abs=1e-6), name
    assert (swept.values["seconds"] > 0).all()
    assert swept.facts == tuple(f"{fact.label} -> {fact.new_target}" for fact in facts[:2])
    # the toy's facts are put in early and are read out before the last layer
    assert swept.recommend().layer in (0, 1, 2)
    assert swept.score[swept.layers.index(swept.recommend().layer)] > 0.8
    assert swept.mean("efficacy")[-1] < 0.5
    assert (swept.unedited["efficacy"] == 0).all()
    assert (swept.unedited["neighbour"] == 1).all()


def own(fact: Fact, answer: str) -> list[tuple[str, str]]:
    return [(prompt, answer) for prompt in (fact.prompt, *fact.paraphrases)]


def answers(fact: Fact) -> tuple[str, str]:
    assert fact.new_target is not None
    return fact.target, fact.new_target


def test_the_trace_beside_is_that_of_the_last_subject_token(swept: Sweep, trace: AverageTrace) -> None:
    assert swept.trace is not None
    row = ROLES.index("last subject")
    np.testing.assert_array_equal(swept.trace.effect, trace.profiles["mlp"].mean[row])
    assert swept.trace.facts == trace.profiles["mlp"].count[row] == len(trace.facts)
    state = dataclasses.replace(trace, profiles={"state": trace.profiles["mlp"]})
    with pytest.raises(SurgeryError, match="the trace is of state"):
        TraceProfile.of(state)


def test_a_sweep_on_every_architecture_leaves_it_as_it_was(
    tiny: Model, tiny_statistics: Statistics, tiny_fact: Fact, unchanged: Callable[[Model], None]
) -> None:
    unchanged(tiny)
    method = RankOne(statistics=tiny_statistics, contexts=CONTEXTS[:2], search=ValueSearch(steps=2), progress=False)
    found = sweep(tiny, [tiny_fact], method=method)
    assert found.layers == (1,)
    assert [layer for layer, _ in found.left_out] == [0, 2, 3]
    before = rate(tiny, [(tiny_fact.prompt, str(tiny_fact.new_target))])[0].probability
    assert found.values["probability"][0, 0] != pytest.approx(before, rel=1e-3)
    assert found.unedited["probability"][0] == pytest.approx(before, rel=1e-4)


def test_a_sweep_that_is_broken_off_leaves_the_weights_as_they_were(
    toy: Toy, facts: list[Fact], statistics: Statistics, unchanged: Callable[[Model], None], tmp_path: Path
) -> None:
    model, _ = toy
    unchanged(model)
    base = model.fingerprint
    method = RankOne(
        statistics=statistics, contexts=CONTEXTS[:2], search=ValueSearch(steps=3, method="plain"), progress=False
    )
    site = Site("L1.mlp")
    old = model.anatomy.matrix(site).clone()
    seen = []

    def interrupt(module: Any, args: Any, output: Any) -> None:
        if not np.array_equal(model.anatomy.matrix(site), old):  # while the edit is applied
            seen.append(True)
            raise KeyboardInterrupt

    handle = model.hf.get_input_embeddings().register_forward_hook(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            sweep(model, facts, method=method, layers=[0, 1], cache=tmp_path)
    finally:
        handle.remove()
    assert seen
    assert model.fingerprint == base
    assert len(list(tmp_path.glob("*.json"))) == 2  # the first fact's ratings, and its edit at layer 0


def test_a_stopped_sweep_goes_on_where_it_was(
    toy: Toy, facts: list[Fact], statistics: Statistics, tmp_path: Path, unchanged: Callable[[Model], None]
) -> None:
    model, _ = toy
    unchanged(model)
    method = Counted(statistics=statistics)
    whole = sweep(model, facts, method=method, layers=[0, 1])
    cells = [(fact.subject, layer) for fact in facts for layer in (0, 1)]
    assert Counted.asked == cells
    Counted.asked.clear()
    Counted.stop_at = 3
    with pytest.raises(KeyboardInterrupt):
        sweep(model, facts, method=method, layers=[0, 1], cache=tmp_path)
    Counted.stop_at = -1
    Counted.asked.clear()
    again = sweep(model, facts, method=method, layers=[1, 0, 1], cache=tmp_path)
    assert Counted.asked == cells[3:]
    for name in (*SCORES, "probability", "steps"):
        np.testing.assert_allclose(again.values[name], whole.values[name], rtol=1e-6)

    def asked_anew(**changed: Any) -> int:
        Counted.asked.clear()
        sweep(model, facts, **{"method": method, "layers": [0, 1], "cache": tmp_path} | changed)
        return len(Counted.asked)

    assert asked_anew() == asked_anew(neighbour_shift=0.5) == asked_anew(progress=False) == 0
    assert asked_anew(layers=[0, 1, 2]) == 3
    assert asked_anew(method=Counted(statistics=statistics, refuse=(("nobody", 0),))) == 6
    assert asked_anew(drift=True) == 6
    others = fit_statistics(model, sentences(toy[1])[:30], [0, 1], progress=False)
    assert asked_anew(method=Counted(statistics=others)) == 6
    assert asked_anew() == 0


def test_refused_edits_score_as_the_model_unedited_and_are_said(
    toy: Toy, facts: list[Fact], statistics: Statistics
) -> None:
    model, _ = toy
    never = tuple((facts[2].subject, layer) for layer in (0, 1))
    method = Counted(statistics=statistics, refuse=((facts[0].subject, 1), *never))
    found = sweep(model, facts, method=method, layers=[0, 1], drift=True)
    labels = [f"{fact.label} -> {fact.new_target}" for fact in facts]
    assert found.failed == ((1, labels[0], "will not"), (None, labels[2], "will not"))
    assert found.facts == tuple(labels[:2])
    for name in (*SCORES, "probability", "paraphrase probability"):
        assert found.values[name][1, 0] == found.unedited[name][0]
    assert found.values["drift"][1, 0] == 0
    assert np.isnan(found.values["seconds"][1, 0])
    assert (found.values["drift"][:, 1] > 0).all()
    everybody = tuple((fact.subject, layer) for fact in facts for layer in (0, 1))
    with pytest.raises(SurgeryError, match="no fact could be edited at any layer: will not"):
        sweep(model, facts, method=Counted(statistics=statistics, refuse=everybody), layers=[0, 1])


def test_layers_without_key_statistics_are_fitted_or_left_out_and_said(
    toy: Toy, facts: list[Fact], statistics: Statistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, everybody = toy
    some = fit_statistics(model, sentences(everybody), [1], progress=False)
    found = sweep(model, facts[:1], method=Counted(statistics=some), layers=[0, 1])
    assert (found.layers, found.left_out) == ((1,), ((0, "no key statistics"),))
    with pytest.raises(SurgeryError, match=r"none of the layers \[0, 2\] can be edited, .* give texts= with some"):
        sweep(model, facts[:1], method=Counted(statistics=some), layers=[0, 2])
    with pytest.raises(SurgeryError, match="none of the layers"):
        sweep(model, facts[:1], method=Counted())
    wanted = sweep(model, facts[:1], method=Counted(statistics=statistics))
    for group in (1, 2**31):  # one layer at a time, all at once
        monkeypatch.setattr("edits.layer_statistics.FITTED_BYTES", group)
        fitted = sweep(model, facts[:1], method=Counted(), texts=sentences(everybody))
        assert fitted.layers == (0, 1, 2, 3)
        assert not fitted.left_out
        np.testing.assert_allclose(fitted.values["probability"], wanted.values["probability"], rtol=1e-3)
    other = dataclasses.replace(statistics, fingerprints=("other weights",))
    with pytest.raises(WrongWeights, match="fitted on other weights"):
        sweep(model, facts[:1], method=Counted(statistics=other))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"facts": []}, "no fact to sweep with"),
        ({"layers": [9]}, "there is no layer 9"),
        ({"neighbour_shift": 0.0}, "moves by 0 to 1; neighbour_shift=0.0"),
        ({"method": RankOne(objective=Neutral())}, "a sweep rewrites, but the objective 'neutral' removes"),
    ],
    ids=str,
)
def test_wrong_options_are_refused(
    toy: Toy, facts: list[Fact], statistics: Statistics, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(SurgeryError, match=message):
        sweep(toy[0], **{"facts": facts, "method": Counted(statistics=statistics)} | changed)
    assert not Counted.asked


def test_a_trace_of_another_model_is_refused(
    toy: Toy, facts: list[Fact], trace: AverageTrace, statistics: Statistics
) -> None:
    short = dataclasses.replace(trace.profiles["mlp"], mean=np.zeros((6, 3)), margin=np.zeros((6, 3)))
    with pytest.raises(SurgeryError, match="the trace has 3 layers, the model 4"):
        sweep(toy[0], facts, trace=dataclasses.replace(trace, profiles={"mlp": short}))


def test_new_answers_are_those_of_neighbours() -> None:
    fact = Fact(
        subject="a", template="{} is", target="x", neighbours=[Neighbour(f"{n} is", n) for n in ("x", "y", "z", "w")]
    )
    drawn = {with_new_answers([fact], seed=seed)[0].new_target for seed in range(30)}
    assert drawn == {"y", "z", "w"}
    assert with_new_answers([fact], seed=5) == with_new_answers([fact], seed=5)
    assert with_new_answers([fact.replace(new_target="v")])[0].new_target == "v"
    with pytest.raises(SurgeryError, match="has no new_target to try"):
        with_new_answers([fact.replace(neighbours=fact.neighbours[:1])])


def test_facts_are_sampled_from_what_the_model_knows(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    model, everybody = toy
    templates = list(dict.fromkeys(fact.template for fact in everybody))
    unknown = [fact.replace(target=with_new_answers([fact])[0].new_target) for fact in everybody]

    def shipped(name: str) -> list[Fact]:
        known = name != templates[0]
        return [fact for fact in (everybody if known else unknown) if fact.template == name]

    monkeypatch.setattr(edits.sample, "relations", lambda: tuple(templates))
    monkeypatch.setattr(edits.sample, "example_facts", shipped)
    found = sample_facts(model, 6, seed=1)
    assert len({fact.subject + fact.template for fact in found}) == 6
    assert [sum(fact.template == one for fact in found) for one in templates] == [0, 3, 3]
    for fact in found:
        assert rate(model, [(fact.prompt, fact.target)])[0].rank == 1
        assert fact.new_target in {one.target for one in shipped(fact.template)} - {fact.target}
    assert found == sample_facts(model, 6, seed=1) != sample_facts(model, 6, seed=2)
    with pytest.raises(SurgeryError, match="knows 60 of the shipped facts, not 61"):
        sample_facts(model, 61)
    with pytest.raises(SurgeryError, match="a sample of 0 facts"):
        sample_facts(model, 0)


def test_a_kept_sweep_is_recommended_for_its_weights(toy: Toy, facts: list[Fact], swept: Sweep) -> None:
    model, _ = toy
    assert find_sweep(model, "rank-one") is None
    assert recommended_site(model) == Site("L0.mlp")  # a sixth of four layers
    worst = {name: one[::-1] for name, one in swept.values.items()}
    upside_down = dataclasses.replace(swept, values=worst)
    path = keep_sweep(upside_down)
    assert recommended_site(model) == upside_down.recommend() != Site("L0.mlp")
    assert find_sweep(model, "another method") is None
    path.rename(path.with_name("x" + path.name))  # of other weights
    assert find_sweep(model, "rank-one") is None
    with pytest.raises(SurgeryError, match="no fact of this sweep has a paraphrase"):
        keep_sweep(dataclasses.replace(swept, values={**swept.values, "paraphrase": swept.values["drift"] * NAN}))


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


def test_the_shipped_sweep_is_the_default_models(smol: Model, unchanged: Callable[[Model], None]) -> None:
    unchanged(smol)
    found = find_sweep(smol, "rank-one")
    assert found is not None
    assert smol.fingerprint in found.fingerprints
    assert set(find_statistics(smol, 4).fingerprints) == set(found.fingerprints)
    assert found.layers == tuple(range(1, 13))
    site = found.recommend()
    assert recommended_site(smol) == site
    assert find_statistics(smol, site.layer)
    assert LAYERS["llama", len(smol.anatomy.layers)] == site.layer
    # the facts are those it samples by itself, and the model says of them what the table holds
    sampled = sample_facts(smol, len(found.facts))
    assert found.facts == tuple(f"{fact.label} -> {fact.new_target}" for fact in sampled)
    said = [one.probability for one in rate(smol, [(fact.prompt, str(fact.new_target)) for fact in sampled])]
    np.testing.assert_allclose(found.unedited["probability"], said, rtol=1e-2, atol=1e-7)
    assert found.trace is not None
    assert found.trace.facts == len(sampled)
    assert find_sweep(smol, "another method") is None
