"""Packed weights give the same products and gradients, and are never used after a change."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from surgery import packing
from surgery.packing import PackedProducts, packed_products

CPU, SINGLE = torch.device("cpu"), torch.float32


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def frozen(*shape: int, seed: int = 0) -> nn.Parameter:
    return nn.Parameter(drawn(*shape, seed=seed), requires_grad=False)


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Ids of the weights that get packed."""
    found: list[int] = []
    real = packing._Packed
    monkeypatch.setattr(packing, "_Packed", lambda weight, **how: found.append(id(weight)) or real(weight, **how))
    return found


@pytest.fixture
def module(request: pytest.FixtureRequest) -> nn.Module:
    """A frozen map from 24 to 40, stored in either way."""
    made = {"linear": nn.Linear(24, 40), "bare": nn.Linear(24, 40, bias=False), "conv1d": Conv1D(40, 24)}[request.param]
    with torch.no_grad():
        for i, weight in enumerate(made.parameters()):
            weight.copy_(drawn(*weight.shape, seed=i))
    return made.requires_grad_(False)


@pytest.mark.parametrize("module", ["linear", "bare", "conv1d"], indirect=True)
@pytest.mark.parametrize("shape", [(1,), (5,), (3, 7), (2, 64)], ids=str)
def test_products_and_gradients_are_the_same(module: nn.Module, shape: tuple[int, ...]) -> None:
    rows = drawn(*shape, 24, seed=3).requires_grad_()
    wanted = module(rows)
    (gradient,) = torch.autograd.grad(wanted.square().sum(), rows)
    products = packed_products(CPU, SINGLE)
    for _ in range(2):  # packed, and used again
        with products:
            found = module(rows)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(torch.autograd.grad(found.square().sum(), rows)[0], gradient, rtol=1e-4, atol=1e-3)


def test_rows_need_not_lie_together_in_memory() -> None:
    weight, rows = frozen(40, 24), drawn(3, 24, 7).transpose(1, 2)
    with packed_products(CPU, SINGLE):
        torch.testing.assert_close(linear(rows, weight), rows @ weight.T, rtol=1e-5, atol=1e-5)


def test_this_build_of_torch_has_the_operators() -> None:
    """Else everything above compares plain products with plain ones."""
    assert isinstance(packed_products(CPU, SINGLE), PackedProducts)


def test_a_weight_that_was_changed_is_refused() -> None:
    weight, rows = frozen(8, 4), drawn(3, 4)
    products = packed_products(CPU, SINGLE)
    with products:
        linear(rows, weight)
        weight += 1
        with pytest.raises(RuntimeError, match="was changed while its packed copy was in use"):
            linear(rows, weight)


def test_only_frozen_parameters_in_single_precision_are_packed(packed: list[int]) -> None:
    learning, double, passing = drawn(8, 4).requires_grad_(), frozen(8, 4).double(), drawn(8, 4)
    rows, kept = drawn(3, 4), frozen(8, 4)
    with packed_products(CPU, SINGLE):
        linear(rows, learning).sum().backward()
        assert linear(rows.double(), nn.Parameter(double, requires_grad=False)).dtype == torch.float64
        torch.testing.assert_close(linear(rows, passing), rows @ passing.T)
        linear(rows, kept)
    assert learning.grad is not None
    assert packed == [id(kept)]


def test_no_more_is_packed_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch, packed: list[int]) -> None:
    monkeypatch.setattr(packing, "MOST_BYTES", 2 * 4 * 8 * 4)
    first, second, rows = frozen(8, 4), frozen(8, 4, seed=1), drawn(3, 4)
    with packed_products(CPU, SINGLE):
        torch.testing.assert_close(linear(rows, first), rows @ first.T)
        torch.testing.assert_close(linear(rows, second), rows @ second.T)
    assert packed == [id(first)]


def test_without_the_operators_products_are_plain_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_can_pack", lambda: False)
    products, weight, rows = packed_products(CPU, SINGLE), drawn(8, 4), drawn(3, 4)
    assert not isinstance(products, PackedProducts)
    for _ in range(2):
        with products:
            torch.testing.assert_close(linear(rows, weight), rows @ weight.T)
