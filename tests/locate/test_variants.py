"""Directions, metrics, severed paths and chosen positions of a trace: fast is plain, and each means what it says."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from tiny import ARCHITECTURES
from tiny import VARIANTS as TINY_VARIANTS

import locate.fast
from locate import (
    Gaussian,
    LogitDifference,
    LogProbability,
    MultivariateGaussian,
    SwapSubject,
    Trace,
    causal_trace,
    causal_traces,
)
from surgery import Fact, Model, SurgeryError
from surgery.hooks import TraceDict, hidden
from surgery.replay import Replay
from surgery.tokens import ask_fact, pad

NOISE = Gaussian(std=0.5)
VARIANTS: dict[str, dict[str, Any]] = {
    "noise": {"direction": "noise"},
    "severed mlp": {"kinds": ("state",), "severed": "mlp"},
    "severed attention": {"kinds": ("state",), "severed": "attention"},
    "noise, severed": {"kinds": ("state",), "severed": "mlp", "direction": "noise"},
    "whole answer": {"metric": LogProbability()},
    "logits": {"metric": LogitDifference(foil="or not")},
    "last of the subject": {"positions": "last-subject"},
}
LAYERED = ("noise", "severed mlp", "severed attention")
"""What takes another way through a layer; the others see logits and positions only, so two architectures are enough."""
PAIRS = [
    (architecture, name)
    for architecture in (*ARCHITECTURES, *TINY_VARIANTS)
    for name in VARIANTS
    if name in LAYERED or architecture in ("gpt2", "llama")
]


@pytest.fixture(scope="module")
def tiny_fact() -> Fact:
    """Few tokens before the answer, several in it."""
    return Fact(subject="tower", template="The {} in", target="Paris is the city")


@pytest.mark.parametrize(("tiny", "options"), PAIRS, indirect=["tiny"])
def test_fast_is_plain(tiny: Model, tiny_fact: Fact, options: str) -> None:
    settings: dict[str, Any] = {"window": 3, "samples": 2, "corruption": NOISE, **VARIANTS[options]}
    for plain, fast in zip(
        causal_traces(tiny, tiny_fact, method="plain", **settings),
        causal_traces(tiny, tiny_fact, method="fast", **settings),
        strict=True,
    ):
        largest = np.nanmax(np.abs(plain.effects))
        np.testing.assert_allclose(fast.scores, plain.scores, rtol=2e-4, atol=2e-4 * largest)
        assert np.nanmax(plain.scores) - np.nanmin(plain.scores) > 1e-6
        assert all(plain.sanity().values())
        assert all(fast.sanity().values())


def test_kinds_together_are_kinds_apart(toy: tuple[Model, list[Fact]]) -> None:
    model, facts = toy
    together = causal_traces(model, facts[0], window=3, corruption=NOISE, samples=3)
    apart = [causal_trace(model, facts[0], kind=one.kind, window=3, corruption=NOISE, samples=3) for one in together]
    for one, other in zip(together, apart, strict=True):
        np.testing.assert_allclose(one.scores, other.scores, rtol=1e-4, atol=1e-7)
        assert one.cost.kinds == 3
    assert together[0].cost.passes < sum(one.cost.passes for one in apart)


def test_severing_holds_the_path_at_what_it_was(toy: tuple[Model, list[Fact]]) -> None:
    """With both what a state adds through its mlps held, the state of layer l + 1 moves by attention alone."""
    model, facts = toy
    whole, severed = (
        causal_trace(model, facts[0], corruption=NOISE, samples=2, severed=path, positions="last-subject")
        for path in (None, "mlp")
    )
    row = whole.subject.last
    # above the last layer there is nothing to hold
    assert severed.scores[row, -1] == pytest.approx(whole.scores[row, -1], abs=1e-6)
    assert np.abs(severed.scores[row] - whole.scores[row]).max() > 1e-3


def test_noising_everything_at_a_state_of_the_last_position_is_the_corrupted_run(toy: tuple[Model, list[Fact]]) -> None:
    model, facts = toy
    found = causal_trace(model, facts[0], corruption=NOISE, samples=2, direction="noise")
    assert found.scores[-1, -1] == pytest.approx(found.corrupted, abs=1e-6)
    assert found.unpatched == found.clean
    assert found.effects[-1, -1] == pytest.approx(found.clean - found.corrupted, abs=1e-6)


def test_positions_not_asked_for_are_not_a_number(toy: tuple[Model, list[Fact]]) -> None:
    model, facts = toy
    whole = causal_trace(model, facts[0], corruption=NOISE, samples=2)
    part = causal_trace(model, facts[0], corruption=NOISE, samples=2, positions="subject")
    inside = slice(part.subject.start, part.subject.stop)
    np.testing.assert_allclose(part.scores[inside], whole.scores[inside], rtol=1e-4, atol=1e-7)
    assert np.isnan(part.scores[part.subject.stop :]).all()
    assert part.peak().position in part.subject
    again = Trace.from_record(json.loads(json.dumps(part.as_record())))
    np.testing.assert_array_equal(again.scores, part.scores)
    assert (again.fact, again.subject, again.cost) == (part.fact, part.subject, part.cost)


def test_a_whole_answer_is_all_its_tokens(toy: tuple[Model, list[Fact]]) -> None:
    model, facts = toy
    fact = facts[0].replace(target=facts[0].target + " and the")
    question, _ = ask_fact(model.tokenizer, fact, fact.target)
    assert len(question.answer_ids) > 1
    with torch.no_grad():
        logits = model.hf(**model.inputs(pad([question.ids]))).logits[0].double().log_softmax(-1)
    at = torch.arange(question.answer_start - 1, len(question.ids) - 1)
    wanted = logits[at, torch.tensor(question.answer_ids)].sum()
    found = causal_trace(model, fact, corruption=NOISE, samples=2, metric=LogProbability())
    assert found.clean == pytest.approx(float(wanted), rel=1e-4)
    assert found.scores.max() <= 0


def test_a_logit_difference_runs_from_0_to_1(toy: tuple[Model, list[Fact]]) -> None:
    model, facts = toy
    fact = facts[0]
    other = next(one for one in facts if one.target != fact.target and one.template == fact.template)
    found = causal_trace(model, fact, corruption=NOISE, samples=2, metric=LogitDifference(foil=other.target))
    assert (found.clean, found.corrupted) == (pytest.approx(1), 0)
    assert found.scores[-1, -1] == pytest.approx(1, abs=1e-3)
    with pytest.raises(SurgeryError, match=r"needs another answer to .*foil"):
        causal_trace(model, fact.replace(new_target=None), corruption=NOISE, metric=LogitDifference())
    with pytest.raises(SurgeryError, match="same token"):
        causal_trace(model, fact, corruption=NOISE, metric=LogitDifference(foil=fact.target))
    with pytest.raises(SurgeryError, match="stronger corruption"):
        causal_trace(model, fact, corruption=Gaussian(std=0.0), metric=LogitDifference(foil=other.target))


def test_a_swap_finds_its_own_subject(toy: tuple[Model, list[Fact]]) -> None:
    model, facts = toy
    fact = facts[0]
    chosen = SwapSubject(among=tuple(facts)).chosen(model, fact)
    donor = next(one for one in facts if one.subject == chosen.subject and one.template == fact.template)
    assert donor.target == chosen.answer != fact.target
    found = causal_trace(model, fact, corruption=SwapSubject(among=tuple(facts)), metric=LogitDifference())
    assert found.corruption == f"swapped for {chosen.subject}"
    assert found.samples == 1
    alone = fact.replace(template="Nobody ever wrote this of {} before", neighbours=())
    with pytest.raises(SurgeryError, match=r"no other subject of .*SwapSubject\('...'\)"):
        causal_trace(model, alone, corruption=SwapSubject())


def test_multivariate_noise_looks_like_embeddings(smol: Model) -> None:
    fact = Fact(subject="The Eiffel Tower", template="{} is located in the city of", target="Paris")
    clean = torch.zeros(4, smol.anatomy.d_model)
    drawn = MultivariateGaussian(replace=True)(smol, fact, clean, 400, 1).flatten(0, 1)
    from locate.corrupt import _prompt_embeddings

    rows = torch.from_numpy(_prompt_embeddings(smol)).float()
    torch.testing.assert_close(drawn.mean(0), rows.mean(0), rtol=0, atol=0.02)
    # spread along the leading axis of the covariance, and along a random one
    axis = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)[2][0]
    for direction in (axis, torch.nn.functional.normalize(torch.ones_like(axis), dim=0)):
        assert float((drawn @ direction).std()) == pytest.approx(float((rows @ direction).std()), rel=0.1)
    added = MultivariateGaussian()(smol, fact, clean + 1, 2, 1)
    torch.testing.assert_close(added - 1, MultivariateGaussian(replace=True)(smol, fact, clean, 2, 1))


def test_replaced_embeddings_do_not_hold_the_old_ones(toy: tuple[Model, list[Fact]]) -> None:
    model, facts = toy
    clean = torch.ones(2, model.anatomy.d_model)
    for noise in (Gaussian(std=0.5, replace=True), Gaussian(std=0.5)):
        drawn = noise(model, facts[0], clean, 300, 1)
        assert float(drawn.mean()) == pytest.approx(0.0 if noise.replace else 1.0, abs=0.02)


def test_where_memory_runs_out_the_batch_is_halved(
    toy: tuple[Model, list[Fact]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, facts = toy
    whole = causal_trace(model, facts[0], corruption=NOISE, samples=2)
    block = Replay.block
    refused = []

    def small(self: Any, layer: int, states: torch.Tensor, *rest: Any) -> Any:
        if len(states) > 4:
            refused.append(len(states))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return block(self, layer, states, *rest)

    monkeypatch.setattr(Replay, "block", small)
    found = causal_trace(model, facts[0], corruption=NOISE, samples=2)
    np.testing.assert_allclose(found.scores, whole.scores, rtol=1e-4, atol=1e-7)
    assert refused
    monkeypatch.setattr(locate.fast._Stairs, "climbed", small_memory)
    with pytest.raises(SurgeryError, match="take fewer samples"):
        causal_trace(model, facts[0], corruption=NOISE, samples=2)


def small_memory(*args: Any) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_copy_in_another_type_is_traced_and_the_model_stays(toy: tuple[Model, list[Fact]]) -> None:
    model, facts = toy
    before = model.fingerprint
    exact = causal_trace(model, facts[0], corruption=NOISE, samples=2)
    rough = causal_trace(model, facts[0], corruption=NOISE, samples=2, dtype="bfloat16")
    assert (exact.dtype, rough.dtype) == ("float32", "bfloat16")
    assert 0 < np.abs(exact.scores - rough.scores).max() < 0.1
    assert model.fingerprint == before


def test_an_unknown_fact_says_its_rank(toy: tuple[Model, list[Fact]]) -> None:
    model, facts = toy
    other = next(one.target for one in facts if one.target != facts[0].target)
    assert causal_trace(model, facts[0], corruption=NOISE, samples=1).known
    unknown = causal_trace(model, facts[0].replace(target=other), corruption=NOISE, samples=1)
    assert unknown.rank > 1
    assert not unknown.known


def test_last_queries_alone_are_the_models_own(tiny: Model, tiny_fact: Fact) -> None:
    question, _ = ask_fact(tiny.tokenizer, tiny_fact, tiny_fact.target)
    replay = Replay(tiny, question.prompt_ids)
    with torch.no_grad(), TraceDict(tiny.hf, tiny.anatomy.names("state")) as trace:
        tiny.hf(**tiny.inputs(pad([question.prompt_ids])))
        for layer, name in enumerate(tiny.anatomy.names("state")):
            wanted = hidden(trace[name].output, 1)[:, -2:]
            found, _ = replay.block(layer, replay.states[layer][None], None, 2)
            torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))
