"""Products by oneDNN are the same products, of whichever module; what is trained is left as it is."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from surgery import products


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


MODULES = [nn.Linear(24, 40), nn.Linear(24, 40, bias=False), Conv1D(40, 24)]


@pytest.fixture(params=MODULES, ids=str)
def module(request: pytest.FixtureRequest) -> nn.Module:
    """A map from 24 to 40 that is not trained."""
    made: nn.Module = copy.deepcopy(request.param).requires_grad_(False)
    return made


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which of the two ways is gone."""
    products.has_onednn()  # it tries by itself, once
    ways: list[str] = []
    for name in ("by_convolution", "by_onednn"):
        real = getattr(products, name)
        monkeypatch.setattr(products, name, lambda *given, name=name, real=real: ways.append(name) or real(*given))
    return ways


@pytest.mark.parametrize(("shape", "large"), [((100,), True), ((5, 20), True), ((2, 64), True), ((9,), False)], ids=str)
def test_products_and_gradients_are_the_same(
    module: nn.Module, shape: tuple[int, ...], large: bool, called: list[str]
) -> None:
    rows = drawn(*shape, 24).requires_grad_()
    wanted = module(rows)
    (gradient,) = torch.autograd.grad(wanted.square().sum(), rows)
    with products._ByOneDNN():
        found = module(rows)
    assert called == ["by_convolution"] * large
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.autograd.grad(found.square().sum(), rows)[0], gradient, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("shape", [(1,), (9,), (5, 20)], ids=str)
def test_without_a_gradient_it_is_onednn_s_operator(
    module: nn.Module, shape: tuple[int, ...], called: list[str]
) -> None:
    assert products.has_onednn(), "this build of PyTorch has no such operator, so that nothing here is tested"
    rows = drawn(*shape, 24)
    with products._ByOneDNN():
        torch.testing.assert_close(module(rows), module.forward(rows), rtol=1e-5, atol=1e-5)
        with torch.no_grad():
            module(rows.clone().requires_grad_())
    assert set(called) == {"by_onednn"}


def test_what_is_trained_or_in_other_precision_or_empty_is_left_to_pytorch(called: list[str]) -> None:
    learning, double, rows = nn.Linear(24, 40), nn.Linear(24, 40).double().requires_grad_(False), drawn(100, 24)
    with products._ByOneDNN():
        learning(rows).sum().backward()
        assert double(rows.double()).dtype == torch.float64
        assert double.float()(rows[:0]).shape == (0, 40)
    assert learning.weight.grad is not None
    assert not called
    with products._ByOneDNN(), torch.no_grad():
        learning(rows)
    assert called == ["by_onednn"]


def test_without_the_operator_products_are_convolutions(called: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "has_onednn", lambda: False)
    made, rows = nn.Linear(24, 40).requires_grad_(False), drawn(100, 24)
    with products._ByOneDNN():
        torch.testing.assert_close(made(rows), rows @ made.weight.T + made.bias, rtol=1e-5, atol=1e-5)
        made(rows[:3])
    assert called == ["by_convolution"]
