"""Products as convolutions are the same products, of whichever module, and small ones are left as they are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from surgery import products


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("module", [nn.Linear(24, 40), nn.Linear(24, 40, bias=False), Conv1D(40, 24)], ids=str)
@pytest.mark.parametrize(("shape", "large"), [((100,), True), ((5, 20), True), ((2, 64), True), ((9,), False)], ids=str)
def test_products_and_gradients_are_the_same(
    module: nn.Module, shape: tuple[int, ...], large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, called = products.by_convolution, []
    monkeypatch.setattr(products, "by_convolution", lambda *given: called.append(1) or real(*given))
    rows = drawn(*shape, 24).requires_grad_()
    wanted = module(rows)
    (gradient,) = torch.autograd.grad(wanted.square().sum(), rows)
    with products._ByConvolution():
        found = module(rows)
    assert bool(called) == large
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.autograd.grad(found.square().sum(), rows)[0], gradient, rtol=1e-4, atol=1e-3)
