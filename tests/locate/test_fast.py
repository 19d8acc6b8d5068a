"""Fast tracing and the replay under it: the plain method's numbers, for less."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from locate import Gaussian, SwapSubject, causal_trace
from locate.corrupt import embed
from surgery import Fact, Model
from surgery.hooks import Trace, hidden, with_hidden
from surgery.replay import CannotReplay, Replay
from surgery.site import KINDS, Kind
from surgery.tokens import ask_fact


@pytest.fixture(scope="module")
def tiny_fact() -> Fact:
    """Few tokens: the plain method runs the model once for each of them and each layer."""
    return Fact(subject="tower", template="The {} in", target="Paris")


@pytest.mark.parametrize("kind", KINDS)
def test_fast_is_plain_to_rounding(
    tiny: Model, tiny_fact: Fact, kind: Kind, unchanged: Callable[[Model], None]
) -> None:
    unchanged(tiny)
    settings: dict[str, Any] = {"kind": kind, "window": 3, "samples": 2, "corruption": Gaussian(std=0.5)}
    plain = causal_trace(tiny, tiny_fact, method="plain", **settings)
    fast = causal_trace(tiny, tiny_fact, method="fast", **settings)
    largest = plain.scores.max()
    np.testing.assert_allclose(fast.scores, plain.scores, rtol=2e-4, atol=1e-5 * largest)
    np.testing.assert_allclose(fast.errors, plain.errors, rtol=5e-3, atol=1e-5 * largest)
    assert fast.clean == pytest.approx(plain.clean, rel=2e-4)
    assert fast.corrupted == pytest.approx(plain.corrupted, rel=2e-4)
    # a positive control: the scores differ among themselves by far more than the methods do
    assert np.ptp(plain.scores) > 100 * np.abs(fast.scores - plain.scores).max()
    assert fast.cost.token_layers < plain.cost.token_layers


def test_rows_that_are_split_give_the_same(toy: tuple[Model, list[Fact]]) -> None:
    model, facts = toy
    whole = causal_trace(model, facts[0], kind="mlp", window=2, samples=3, corruption=Gaussian(std=0.5))
    split = causal_trace(model, facts[0], kind="mlp", window=2, samples=3, corruption=Gaussian(std=0.5), tokens=7)
    np.testing.assert_allclose(split.scores, whole.scores, rtol=1e-4, atol=1e-7)
    assert split.cost.passes > whole.cost.passes


def test_a_swapped_subject_is_one_sample(toy: tuple[Model, list[Fact]]) -> None:
    model, facts = toy
    other = next(fact.subject for fact in facts if fact.subject != facts[0].subject and fact.target != facts[0].target)
    plain = causal_trace(model, facts[0], corruption=SwapSubject(other), method="plain")
    fast = causal_trace(model, facts[0], corruption=SwapSubject(other))
    np.testing.assert_allclose(fast.scores, plain.scores, rtol=1e-4, atol=1e-7)
    assert fast.samples == 1
    assert not fast.errors.any()


def test_replay_from_any_position_gives_the_models_own_states(tiny: Model, tiny_fact: Fact) -> None:
    question, _ = ask_fact(tiny.tokenizer, tiny_fact, tiny_fact.target)
    replay = Replay(tiny, question.prompt_ids)
    for start in (0, 1, replay.width - 1):
        states = replay.states[0][None, start:].repeat(3, 1, 1)
        with torch.no_grad():
            for layer in range(len(replay.states) - 1):
                states, _ = replay.block(
                    layer, states, replay.keys_values[layer].before(start, torch.zeros(3, dtype=torch.long))
                )
        wanted = replay.states[-1][start:]
        for row in states:
            torch.testing.assert_close(row, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))


def test_replay_notices_a_block_that_does_not_repeat_itself(
    toy: tuple[Model, list[Fact]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, facts = toy
    block = model.hf.get_submodule(model.anatomy.layers[1].state)
    calls = iter(range(1000))
    forward = type(block).forward

    def restless(self: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return forward(self, hidden_states * (1 + 0.01 * next(calls)), *args, **kwargs)

    restless.__signature__ = __import__("inspect").signature(forward)  # type: ignore[attr-defined]
    monkeypatch.setattr(type(block), "forward", restless)
    question, _ = ask_fact(model.tokenizer, facts[0], facts[0].target)
    with pytest.raises(CannotReplay, match="replays layer 0 off by"):
        Replay(model, question.prompt_ids)


def test_a_model_that_cannot_be_replayed_is_traced_plainly_and_says_so(
    toy: tuple[Model, list[Fact]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, facts = toy

    def refuse(*args: Any) -> None:
        raise CannotReplay("blocks of glass cannot be called again")

    monkeypatch.setattr("locate.causal.Replay", refuse)
    with caplog.at_level(logging.WARNING):
        found = causal_trace(model, facts[0], samples=2, corruption=Gaussian(std=0.5))
    assert "blocks of glass cannot be called again; tracing plainly" in caplog.text
    assert found.scores.shape == (len(found.tokens), 4)


@pytest.mark.parametrize("method", ["plain", "fast"])
def test_clean_mlp_outputs_are_those_of_the_mlp_alone(tiny: Model, tiny_fact: Fact, method: Any) -> None:
    # Falcon adds attention to its mlp's output in place, after the mlp has returned it
    corruption = Gaussian(std=0.5)
    settings: dict[str, Any] = {"kind": "mlp", "window": 1, "samples": 1, "corruption": corruption}
    found = causal_trace(tiny, tiny_fact, method=method, **settings)
    question, span = ask_fact(tiny.tokenizer, tiny_fact, tiny_fact.target)
    ids = torch.tensor([question.prompt_ids])
    name = tiny.anatomy.names("mlp")[0]
    with torch.no_grad(), Trace(tiny.hf, name, clone=True) as clean:
        tiny.hf.base_model(input_ids=ids, use_cache=False)
    kept = hidden(clean.output, 1)[0, span.start]
    noised = corruption(tiny, tiny_fact, embed(tiny, question, span), 1, 1)

    def corrupt(output: Any, _: str) -> Any:
        states = hidden(output, 1).clone()
        states[:, span.start : span.stop] = noised
        return with_hidden(output, states)

    def restore(output: Any, _: str) -> Any:
        states = hidden(output, 1).clone()
        states[0, span.start] = kept
        return with_hidden(output, states)

    with (
        torch.no_grad(),
        Trace(tiny.hf, tiny.anatomy.embedding, edit_output=corrupt),
        Trace(tiny.hf, name, edit_output=restore),
    ):
        p = tiny.hf(input_ids=ids, use_cache=False).logits[0, -1].softmax(-1)[question.answer_ids[0]]
    assert found.scores[span.start, 0] == pytest.approx(float(p), rel=1e-3)
