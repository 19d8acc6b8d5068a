"""Edits that act through hooks: the applied edit's answers, no weight touched, no hook left, on quantised bases too."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import pytest
import torch
from by_hand import delta_of, edit_of, in_dtype
from tiny import tiny_model, tiny_tokenizer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from surgery import Delta, Model, SurgeryError, WrongWeights, load, preview

IDS = torch.tensor([[5, 60, 7, 300, 9], [9, 8, 7, 6, 5]])
MLP = "transformer.h.1.mlp.c_proj"


class Int8Linear(nn.Module):
    """A linear map with one scale a row, as quantised ones are: there is no floating-point weight to change."""

    def __init__(self, plain: nn.Module) -> None:
        super().__init__()
        weight = plain.weight.T if isinstance(plain, Conv1D) else plain.weight
        self.out_features, self.in_features = weight.shape
        self.scale = weight.abs().amax(1, keepdim=True) / 127
        self.weight = nn.Parameter((weight / self.scale).round().to(torch.int8), requires_grad=False)
        self.bias = plain.bias

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight * self.scale, self.bias)


def hooks(hf: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in hf.modules())


def quantised(hf: nn.Module, modules: tuple[str, ...]) -> nn.Module:
    hf = copy.deepcopy(hf)
    for name in modules:
        parent, _, own = name.rpartition(".")
        setattr(hf.get_submodule(parent), own, Int8Linear(hf.get_submodule(name)))
    return hf


def test_a_preview_answers_as_the_applied_edit(tiny: Model, unchanged: Callable[[Model], None]) -> None:
    unchanged(tiny)
    names = tiny.anatomy.names("mlp")[1], tiny.anatomy.names("attention")[2]
    model = in_dtype(tiny, torch.float32)
    made = edit_of(model, *(delta_of(model, name, seed=i) for i, name in enumerate(names)))
    with torch.no_grad():
        before = tiny.hf(IDS).logits
        with made.applied(model):
            expected = model.hf(IDS).logits
        fingerprint = tiny.fingerprint
        with preview(tiny, made) as same:
            assert same is tiny
            found = tiny.hf(IDS).logits
            assert tiny.fingerprint == fingerprint
            assert hooks(tiny.hf) == 2
        assert torch.equal(tiny.hf(IDS).logits, before)
    assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()))
    assert (found - before).abs().max() > 1e-2


def test_a_preview_in_bfloat16_gives_bfloat16(small: Model) -> None:
    half = in_dtype(small, torch.bfloat16)
    made = edit_of(half, delta_of(half, MLP, size=0.2))
    with preview(half, made), torch.no_grad():
        found = half.hf(IDS).logits
    with made.applied(half), torch.no_grad():
        expected = half.hf(IDS).logits
    assert found.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(found.float(), expected.float(), dim=-1).min() > 0.99


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_preview_works_on_a_quantised_base(architecture: str) -> None:
    model = load((tiny_model(architecture), tiny_tokenizer()))
    names = model.anatomy.names("mlp")
    made = edit_of(model, delta_of(model, names[1]))
    rough = quantised(model.hf, names)
    stored = {name: weight.clone() for name, weight in rough.named_parameters()}
    with torch.no_grad():
        plain, before = model.hf(IDS).logits, rough(IDS).logits
        with made.applied(model):
            exact = model.hf(IDS).logits
        with preview(rough, made, check_base=False) as same:
            assert same is rough
            found = rough(IDS).logits
        with preview(dataclasses.replace(model, hf=rough), made, check_base=False):
            assert torch.equal(rough(IDS).logits, found)
        assert torch.equal(rough(IDS).logits, before)
    assert all(torch.equal(weight, stored[name]) for name, weight in rough.named_parameters())
    noise, change = (before - plain).norm(), (exact - plain).norm()
    assert 0 < noise < 0.2 * change
    assert (found - exact).norm() < 3 * noise
    with pytest.raises(WrongWeights, match="if this is a quantised copy of that, preview with check_base=False"):
        with preview(rough, made):
            raise AssertionError


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_no_hook_is_left_after_an_exception(small: Model, error: type[BaseException]) -> None:
    made = edit_of(small, delta_of(small, MLP))

    def fail() -> None:
        with preview(small, made):
            small.hf(IDS)
            raise error

    with pytest.raises(error):
        fail()
    assert hooks(small.hf) == 0


def test_what_cannot_be_previewed_is_refused(small: Model, tiny_tied: Model) -> None:
    with pytest.raises(WrongWeights, match="load the model it was made for, or, if this is a quantised copy"):
        with preview(small, dataclasses.replace(edit_of(small, delta_of(small, MLP)), base="0" * 64)):
            raise AssertionError
    for delta, says in (
        (Delta(MLP, torch.ones(80, 1), torch.ones(32, 1)), r"\(32, 80\) here, but the edit was made for another"),
        (Delta("transformer.wte", torch.ones(1, 1), torch.ones(1, 1)), "is no linear map but Embedding"),
        (Delta("transformer.h.1.mlp.c_prog", torch.ones(1, 1), torch.ones(1, 1)), "did you mean"),
    ):
        with pytest.raises(SurgeryError, match=says):
            with preview(small, edit_of(small, delta)):
                raise AssertionError
    with pytest.raises(SurgeryError, match=r"lm_head shares its weight with .*embed_tokens.weight, where a hook would"):
        with preview(tiny_tied, edit_of(tiny_tied, delta_of(tiny_tied, "lm_head"))):
            raise AssertionError
    assert hooks(small.hf) == 0
    assert hooks(tiny_tied.hf) == 0
