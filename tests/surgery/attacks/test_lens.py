"""The lens on every layer against one prompt at a time by plain hooks, and what it keeps of long prompts."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import Toy

from surgery import Fact, Model
from surgery.tokens import ask
from surgery.verification.attack import Attempts, tried
from surgery.verification.attacks.lens import LogitLens, ProbabilityDelta


@torch.no_grad()
def by_layer(model: Model, fact: Fact) -> list[float]:
    """The final norm and the head on each layer's last state, of the answer's first token."""
    question = ask(model.tokenizer, fact.prompt, fact.target)
    kept: list[torch.Tensor] = []

    def keep(_: Any, given: Any, output: Any) -> None:
        kept.append((output[0] if isinstance(output, tuple) else output)[0, -1])

    modules = [model.hf.get_submodule(name) for name in model.anatomy.names("state")]
    handles = [module.register_forward_hook(keep) for module in modules]
    try:
        model.hf(torch.tensor([question.prompt_ids]))
    finally:
        for handle in handles:
            handle.remove()
    norm = model.hf.get_submodule(model.anatomy.final_norm)
    head = model.hf.get_output_embeddings().weight
    return [float((head @ norm(state)).double().softmax(-1)[question.answer_ids[0]]) for state in kept]


def test_every_layer_by_hand(toy: Toy, unchanged: Callable[[Model], None]) -> None:
    model, facts = toy
    unchanged(model)
    chosen = [facts[0], facts[40], facts[70].replace(template=facts[70].paraphrases[1], subject="", paraphrases=())]
    known = np.array([by_layer(model, fact) for fact in chosen])
    lens, delta = LogitLens()(model, chosen), ProbabilityDelta()(model, chosen)
    assert lens.forms == ("layer 0", "layer 1", "layer 2", "layer 3")
    assert lens.scores == pytest.approx(known, rel=1e-4, abs=1e-7)
    assert known[:, -1].min() > 0.5
    assert delta.forms == ("to layer 1", "to layer 2", "to layer 3")
    assert delta.scores == pytest.approx(np.abs(known[:, 1:] - known[:, :-1]), rel=1e-3, abs=1e-6)
    assert delta.scores.max(1).min() > 0.1


def test_what_the_lens_read_is_not_read_again_for_the_delta(toy: Toy) -> None:
    model, facts = toy
    chosen = (facts[0], facts[40])
    alone = ProbabilityDelta()(model, chosen)
    runs: list[int] = []
    handle = model.hf.base_model.register_forward_pre_hook(lambda *_: runs.append(1))
    try:
        for order in ((LogitLens(), ProbabilityDelta()), (ProbabilityDelta(), LogitLens())):
            had: Attempts = {}
            runs.clear()
            found = {type(one): tried(one, chosen, model, had) for one in order}
            assert len(runs) == 1
            assert found[ProbabilityDelta].forms == alone.forms
            assert np.array_equal(found[ProbabilityDelta].scores, alone.scores)
            # others are another reading
            assert not np.array_equal(tried(ProbabilityDelta(), chosen[::-1], model, had).scores, alone.scores)
            assert len(runs) == 2
    finally:
        handle.remove()


@pytest.mark.parametrize("attack", [LogitLens(), ProbabilityDelta()])
def test_nothing_is_kept_of_the_positions_before_the_last(attack: LogitLens | ProbabilityDelta, toy: Toy) -> None:
    model, facts = toy
    alive: list[weakref.ref[torch.Tensor]] = []
    most: list[int] = []

    def watch(_: Any, given: Any, output: Any) -> None:
        alive.append(weakref.ref(output[0] if isinstance(output, tuple) else output))
        most.append(sum(one() is not None for one in alive))

    names = model.anatomy.names("state")
    handles = [model.hf.get_submodule(name).register_forward_hook(watch) for name in names]
    try:
        attack(model, facts[:3])
    finally:
        for handle in handles:
            handle.remove()
    assert len(most) == len(names)
    assert max(most) <= 2  # a layer's input and its output
