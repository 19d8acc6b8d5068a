"""The layer sweep of models: its numbers are those of editing by hand, and it can be stopped, refused and kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sweeping import CONTEXTS, FAR, NAN, SHIFT, Counted, Toy, sentences

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
from edits.recommended import LAYERS
from edits.scores import SCORES
from locate import AverageTrace
from locate.profile import ROLES
from surgery import Fact, Model, Site, SurgeryError, WrongWeights, rate
from surgery.verification.drift import drift, log_probs

TOYS = ("llama",)


@pytest.fixture(autouse=True)
def forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No sweep of the user's own, and nothing counted yet."""
    monkeypatch.setenv("SURGERY_CACHE", str(tmp_path / "own"))
    Counted.asked.clear()
    Counted.stop_at = -1


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
        for row, layer in enumerate(swept.layers[:-1]):
            edit = method(model, fact, [Site.at(layer, "mlp")])
            with edit.applied(model):
                old, new = ([one.probability for one in rate(model, own(fact, answer))] for answer in answers(fact))
                after = [one.probability for one in rate(model, neighbours)]
                nats = drift(model, texts, text_before, log_probs(model, texts)).divergence
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
    assert (swept.values["seconds"][:-1] > 0).all()
    assert swept.facts == tuple(f"{fact.label} -> {fact.new_target}" for fact in facts[:2])
    # the toy's facts are put in early and are read out before the last layer
    assert swept.recommend().layer in (0, 1, 2)
    assert swept.score[swept.layers.index(swept.recommend().layer)] > 0.8
    assert [layer for layer, _, why in swept.failed if "does not depend on L3.mlp" in why] == [swept.layers[-1]] * 2
    assert swept.mean("efficacy")[-1] == 0.0
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
    search = ValueSearch(steps=2)
    method = RankOne(statistics=tiny_statistics, contexts=CONTEXTS[:2], search=search, limits=FAR, progress=False)
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
    search = ValueSearch(steps=3, method="plain")
    method = RankOne(statistics=statistics, contexts=CONTEXTS[:2], search=search, limits=FAR, progress=False)
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
