"""LoRA: the first step by hand with its scale, what was trained is what is read out, and nothing of it is left."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import peft.tuners.lora.layer
import pytest
import torch
from answers_by_hand import teacher_forced, weight_gradient
from sweeping import FAR
from tiny import tiny_model, tiny_tokenizer

from edits import LoRA
from edits.training import root_mean_square
from surgery import Fact, Model, Site, SurgeryError, load

SITE = Site("L1.mlp")


@pytest.fixture
def intact() -> Iterator[Callable[[Model], None]]:
    """Call it with a model: at the end its modules are the same objects, with the same attributes and flags."""
    watched: list[tuple[Model, Any]] = []
    yield lambda model: watched.append((model, _state(model)))
    for model, state in watched:
        assert _state(model) == state


def _state(model: Model) -> Any:
    modules = [(name, id(module), module.training, sorted(vars(module))) for name, module in model.hf.named_modules()]
    flags = [(name, id(weight), weight.requires_grad, weight.grad) for name, weight in model.hf.named_parameters()]
    return modules, flags, model.fingerprint


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_first_step_by_hand_with_alpha_over_rank(
    by_name: Callable[[str], Model], name: str, tiny_fact: Fact
) -> None:
    model, answer = by_name(name), str(tiny_fact.new_target)
    method = LoRA(steps=1, stop=0.0, rank=4, alpha=12.0, step=0.02, progress=False)
    (delta,) = method(model, tiny_fact, [SITE]).deltas
    size = root_mean_square(model.anatomy.matrix(SITE))
    gradient = weight_gradient(model, model.anatomy.name(SITE), tiny_fact.prompt, answer)
    # B is 0, so A has no gradient yet and is what was drawn; B moves by a step against its gradient's sign
    of_b = gradient @ delta.right
    clear = of_b.abs() > 1e-4 * of_b.abs().max()
    assert clear.float().mean() > 0.5
    torch.testing.assert_close(delta.left[clear], -(12 / 4) * 0.02 * size * of_b[clear].sign(), rtol=1e-3, atol=1e-7)
    assert delta.right.std() > 0.01


def test_the_edit_is_what_was_trained(
    tiny: Model, tiny_fact: Fact, intact: Callable[[Model], None], unchanged: Callable[[Model], None]
) -> None:
    intact(tiny)
    unchanged(tiny)
    answer, sites = str(tiny_fact.new_target), [Site("L1.attention"), SITE, Site("L2.mlp")]
    edit = LoRA(steps=6, rank=3, step=0.05, limits=FAR, progress=False)(tiny, tiny_fact, sites)
    assert [delta.module for delta in edit.deltas] == [tiny.anatomy.name(site) for site in sites]
    assert {delta.rank for delta in edit.deltas} == {3}
    before = teacher_forced(tiny, tiny_fact.prompt, answer)
    trained = edit.log[0]["loss"]
    assert trained < before - 0.1
    with edit.applied(tiny):
        assert teacher_forced(tiny, tiny_fact.prompt, answer) == pytest.approx(trained, abs=1e-3)
    # the mistake: factors without alpha / r
    deltas = tuple(dataclasses.replace(one, left=one.left * 3 / 32) for one in edit.deltas)
    with dataclasses.replace(edit, deltas=deltas).applied(tiny):
        assert abs(teacher_forced(tiny, tiny_fact.prompt, answer) - trained) > 0.05


def test_a_seed_is_its_edit(gpt2: Model, tiny_fact: Fact) -> None:
    def made(seed: int, **settings: Any) -> torch.Tensor:
        return LoRA(seed=seed, steps=3, progress=False, **settings)(gpt2, tiny_fact, [SITE]).deltas[0].dense()

    assert torch.equal(made(1), made(1))
    assert not torch.equal(made(1), made(2))
    assert torch.equal(made(1, dropout=0.5), made(1, dropout=0.5))
    assert not torch.equal(made(1), made(1, dropout=0.5))


@contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, call: int) -> Iterator[None]:
    """Adapters whose making is broken off at some call."""
    calls, own = iter(range(1, 100)), peft.tuners.lora.layer.LoraLayer.reset_lora_parameters

    def broken(self: Any, *args: Any, **given: Any) -> None:
        if next(calls) == call:
            raise KeyboardInterrupt
        own(self, *args, **given)

    with monkeypatch.context() as patch:
        patch.setattr(peft.tuners.lora.layer.LoraLayer, "reset_lora_parameters", broken)
        yield


def test_adapters_that_are_broken_off_while_they_are_put_in_leave_no_trace(
    gpt2: Model, tiny_fact: Fact, intact: Callable[[Model], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    intact(gpt2)
    sites = [SITE, Site("L2.mlp"), Site("L3.mlp")]
    for call in (1, 2, 3):
        with failing(monkeypatch, call), pytest.raises(KeyboardInterrupt):
            LoRA(progress=False)(gpt2, tiny_fact, sites)
    with failing(monkeypatch, 4):
        assert LoRA(steps=1, progress=False)(gpt2, tiny_fact, sites).deltas[0].norm > 0


def test_a_model_that_is_being_trained_is_so_afterwards(tiny_fact: Fact, intact: Callable[[Model], None]) -> None:
    model = load((tiny_model("llama").requires_grad_(True), tiny_tokenizer()))
    model.hf.train()
    intact(model)
    assert LoRA(steps=2, progress=False)(model, tiny_fact).deltas[0].norm > 0


def test_what_cannot_be_adapted_is_refused(gpt2: Model, tiny_fact: Fact) -> None:
    with pytest.raises(SurgeryError, match=r"lora edits mlp and attentions, such as 'L4\.mlp', not \['L1\.state'\]"):
        LoRA()(gpt2, tiny_fact, [Site("L1.state")])
    for settings in ({"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}, {"steps": 0}):
        with pytest.raises(SurgeryError, match="rank, alpha, steps and step of an adapter must be above 0"):
            LoRA(**settings)
