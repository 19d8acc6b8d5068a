"""Another device gives the numbers of the processor, to rounding, and loses no bit.

There is always a pretended one (`pretend.py`), which finds what was left on the wrong device; where there is a GPU, it
is tried as well, with every architecture.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from every_method import able, sites_of
from pretend import AWAY, moved, pretended
from tiny import ARCHITECTURES, VARIANTS, tiny_tokenizer

import locate
from edits import METHODS, Limits, RankOne, Replace, Statistics, ValueSearch, fit_statistics
from edits.reading import Replayed
from edits.values import Value, find_values
from surgery import Edit, Fact, Model, load, verify
from surgery.site import KINDS, Site
from surgery.verification.attacks import attacks_named

CONTEXTS = ("{}", "So it is: {}")
SETTINGS: dict[str, Any] = {
    "contexts": CONTEXTS,
    "search": ValueSearch(steps=3),
    "progress": False,
    "limits": Limits(relative_change=100.0, value_norm=100.0, perplexity=100.0),
    "steps": 3,
    "names": 1.0,
}
TEXTS = [f"One wide{'r' * (i % 5)} street {i} leads from old tower {i % 7} to the river of Paris." for i in range(80)]


GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
EVERY = {**ARCHITECTURES, **VARIANTS}
TOYS = ("llama",)
TRIED = (
    "paraphrases",
    "logit lens",
    "probability delta",
    "sampling",
    "int4",
    "nf4",
    "related relearning",
    "direction ablation",
)


@pytest.fixture(autouse=True)
def device(request: pytest.FixtureRequest) -> Iterator[None]:
    with nullcontext() if "cuda" in request.node.name else pretended():
        yield


def away(model: Model, where: str) -> Model:
    """A copy of a model on another device."""
    with pretended() if where == "pretended" else nullcontext():
        hf = moved(model.hf) if where == "pretended" else copy.deepcopy(model.hf).to(where)
        there = load((hf, model.tokenizer))
    assert there.device.type == (AWAY.type if where == "pretended" else where)
    return there


@pytest.fixture(
    scope="module",
    params=[("pretended", "llama"), *(pytest.param(("cuda", one), marks=GPU) for one in EVERY)],
    ids="-".join,
)
def both(request: pytest.FixtureRequest) -> tuple[Model, Model]:
    where, name = request.param
    here = load((EVERY[name](), tiny_tokenizer()))
    return here, away(here, where)


@pytest.fixture(scope="module")
def fitted(both: tuple[Model, Model]) -> Statistics:
    return fit_statistics(both[0], TEXTS, [0, 1], rank=8, progress=False)


def test_weights_are_known_by_the_same_hash(both: tuple[Model, Model]) -> None:
    here, there = both
    assert there.fingerprint == here.fingerprint


def test_statistics_are_the_same(both: tuple[Model, Model], fitted: Statistics) -> None:
    found = fit_statistics(both[1], TEXTS, [0, 1], rank=8, progress=False)
    for layer in (0, 1):
        wanted = fitted.layers[layer].dense()
        torch.testing.assert_close(found.layers[layer].dense(), wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("name", METHODS)
def test_edits_are_the_same_and_undone_to_the_bit(
    name: str, both: tuple[Model, Model], fitted: Statistics, tiny_fact: Fact, tmp_path: Path
) -> None:
    known = {field.name for field in dataclasses.fields(METHODS[name])}  # type: ignore[arg-type]
    given = {**SETTINGS, "statistics": fitted}
    method = METHODS[name](**{key: value for key, value in given.items() if key in known})
    made = [method(model, able(method, tiny_fact), sites_of(method, model)) for model in both]
    for ours, theirs in zip(made[0].deltas, made[1].deltas, strict=True):
        wanted, found = ours.dense(), theirs.dense().cpu()
        if name != "lora":  # its first factor is drawn where the model is
            assert (found - wanted).norm() < 0.02 * wanted.norm()
    there, base = both[1], both[0].fingerprint
    assert there.fingerprint == base
    edit = Edit.load(made[0].save(tmp_path / "edit.safetensors"))
    with edit.applied(there):
        assert there.fingerprint != base
    assert there.fingerprint == base


def test_a_search_that_is_told_once_finds_what_one_told_anew_does(
    both: tuple[Model, Model],
    tiny_fact: Fact,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    facts = [tiny_fact, tiny_fact.replace(subject="The red house"), tiny_fact.replace(subject="Paris")]
    site = Site.at(1, "mlp")

    def found(model: Model, stop: float) -> list[Value]:
        search = ValueSearch(steps=7, step=0.05, stop=stop)
        return list(find_values(model, facts, site, Replace(), CONTEXTS, search))

    every = [one.losses for one in found(both[0], 0.0)]
    # a line that one of them passes once the steps have been recorded, and not all by the end
    stop = sorted(losses[4] for losses in every)[0] + 1e-4
    told_once, here = found(both[1], stop), found(both[0], stop)
    name = request.node.callspec.id
    waits = name in ("cuda-falcon", "cuda-falcon_new", "cuda-gpt_neo")  # send a number of their own to the GPU
    assert ("ordered anew" in caplog.text) == waits
    monkeypatch.setattr(Replayed, "lasting", 0)
    told_anew = found(both[1], stop)
    assert len({len(one.losses) for one in here}) > 1
    for once, anew, wanted in zip(told_once, told_anew, here, strict=True):
        assert len(once.losses) == len(anew.losses) == len(wanted.losses)
        torch.testing.assert_close(once.shift, anew.shift, rtol=0, atol=1e-4 * float(anew.shift.norm()))
        assert (once.shift.cpu() - wanted.shift).norm() < 0.02 * wanted.shift.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_traces_are_the_same_both_ways(kind: Any, both: tuple[Model, Model], tiny_fact: Fact) -> None:
    options: dict[str, Any] = {"kind": kind, "samples": 1, "window": 2, "corruption": locate.Gaussian(std=0.5)}
    wanted = locate.causal_trace(both[0], tiny_fact, **options).scores
    for way in ("fast", "plain"):
        found = locate.causal_trace(both[1], tiny_fact, method=way, **options).scores
        np.testing.assert_allclose(found, wanted, atol=2e-5)


@pytest.mark.parametrize(
    "locator",
    [locate.GradientActivation(), locate.IntegratedGradients(steps=3), locate.LogProbIncrease(), locate.ZeroOut()],
    ids=lambda one: type(one).__name__,
)
def test_neurons_are_the_same(locator: Any, both: tuple[Model, Model], tiny_fact: Fact) -> None:
    wanted, found = (locate.attribute_neurons(model, tiny_fact, method=locator).scores for model in both)
    np.testing.assert_allclose(found, wanted, atol=1e-3 * np.abs(wanted).max())


@pytest.mark.parametrize(
    "look",
    [
        lambda model, fact: locate.logit_lens(model, fact).probability,
        lambda model, fact: locate.attention_knockout(model, fact, progress=False).changes,
        lambda model, fact: locate.screen(model, fact, samples=2, corruption=locate.Gaussian(std=0.5)).scores,
    ],
    ids=["lens", "knockout", "screen"],
)
def test_what_is_seen_is_the_same(
    look: Callable[[Model, Fact], Any], both: tuple[Model, Model], tiny_fact: Fact
) -> None:
    wanted, found = (np.asarray(look(model, tiny_fact)) for model in both)
    np.testing.assert_allclose(found, wanted, atol=1e-3 * np.abs(wanted).max())


@pytest.mark.parametrize("where", ["pretended", pytest.param("cuda", marks=GPU)])
def test_verdicts_are_the_same(where: str, toy: tuple[Model, list[Fact]]) -> None:
    here, facts = toy
    statistics = fit_statistics(here, [f"{one.prompt} {one.target} ." for one in facts], range(4), progress=False)
    edit = RankOne(statistics=statistics, contexts=CONTEXTS, progress=False)(here, facts[0])
    reports = [verify(model, edit, attacks=attacks_named(TRIED), leak=True) for model in (here, away(here, where))]
    wanted, found = ({one.name: one.outcome for one in report.verdicts[0].claims} for report in reports)
    assert found == wanted
    assert reports[0].exit_code == reports[1].exit_code


def test_the_pretended_device_refuses_what_a_gpu_would() -> None:
    there = torch.arange(3.0, device=AWAY)
    with pytest.raises(RuntimeError, match="on the same device"):
        there + torch.ones(3)
    with pytest.raises(RuntimeError, match="on the same device"):
        torch.nn.functional.embedding(torch.tensor([0]), there[:, None])
    assert (2 * there + torch.tensor(1.0)).tolist() == [1.0, 3.0, 5.0]
    assert there[[0, 2]].device == there[torch.tensor([0, 2])].device == AWAY
    there[1:] += 1
    assert there.cpu().tolist() == [0.0, 2.0, 3.0]
    weight = there.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(weight.square().sum(), weight)
    assert gradient.device == AWAY
    assert gradient.tolist() == [0.0, 4.0, 6.0]
    assert torch.ones(1).to("meta").device.type == "meta"
