"""Products by oneDNN are the same products, with the same gradients, of whichever module."""

from __future__ import annotations

import copy
from contextlib import ExitStack

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from surgery import products
from surgery.packing import packed_products
from surgery.products import fast_products


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


MODULES = [nn.Linear(24, 40), nn.Linear(24, 40, bias=False), Conv1D(40, 24)]


@pytest.fixture(params=MODULES, ids=str)
def module(request: pytest.FixtureRequest) -> nn.Module:
    """A map from 24 to 40."""
    made: nn.Module = copy.deepcopy(request.param)
    return made


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What oneDNN multiplied, on a processor where it is the faster one."""
    monkeypatch.setattr(products, "slow_products", lambda: True)
    assert products.has_onednn(), "this build of PyTorch has no such operator, so that nothing here is tested"
    real, found = products.by_onednn, list[Tensor]()
    monkeypatch.setattr(products, "by_onednn", lambda *given: found.append(given[0]) or real(*given))
    return found


@pytest.mark.parametrize("shape", [(1,), (9,), (5, 20), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("learning", ["rows", "weights", "both"])
def test_products_and_gradients_are_the_same(
    module: nn.Module, shape: tuple[int, ...], learning: str, called: list[Tensor]
) -> None:
    rows = drawn(*shape, 24).requires_grad_(learning != "weights")
    module.requires_grad_(learning != "rows")
    leaves = [one for one in (rows, *module.parameters()) if one.requires_grad]
    wanted = module(rows)
    gradients = torch.autograd.grad(wanted.square().sum(), leaves)
    with fast_products(module):
        found = module(rows)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
        for one, other in zip(torch.autograd.grad(found.square().sum(), leaves), gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)
    assert len(called) == 1 + (learning != "weights")  # of a weight's gradient, PyTorch's own product is as quick


def test_a_gradient_s_own_gradient_is_refused(called: list[Tensor]) -> None:
    made, rows = nn.Linear(24, 40), drawn(2, 24).requires_grad_()
    with fast_products(made):
        (gradient,) = torch.autograd.grad(made(rows).square().sum(), rows, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("shape", [(1,), (9,), (5, 20)], ids=str)
def test_without_a_gradient_none_is_prepared(module: nn.Module, shape: tuple[int, ...], called: list[Tensor]) -> None:
    rows = drawn(*shape, 24).requires_grad_()
    with torch.no_grad(), fast_products(module):
        torch.testing.assert_close(module(rows), type(module).forward(module, rows), rtol=1e-5, atol=1e-5)
    assert len(called) == 1


def test_other_precision_and_nothing_at_all_are_left_to_pytorch(called: list[Tensor]) -> None:
    both = nn.ModuleList([nn.Linear(24, 40), nn.Linear(24, 40).double()])
    rows = drawn(100, 24)
    with fast_products(both):
        assert both[1](rows.double()).dtype == torch.float64
        assert both[0](rows[:0]).shape == (0, 40)
        assert not called
        both[0](rows)
    assert len(called) == 1


def test_a_weight_that_is_exchanged_within_the_block_is_the_one_that_counts(called: list[Tensor]) -> None:
    made, rows = nn.Linear(24, 40, bias=False).requires_grad_(False), drawn(3, 24)
    with fast_products(made):
        made(rows)
        made.weight.data = drawn(40, 24, seed=1)
        torch.testing.assert_close(made(rows), rows @ drawn(40, 24, seed=1).T, rtol=1e-5, atol=1e-5)


def test_blocks_may_stand_in_one_another_and_leave_nothing(called: list[Tensor]) -> None:
    made, rows = nn.Sequential(nn.Linear(24, 40), nn.Linear(40, 8)).requires_grad_(False), drawn(3, 24)
    own = nn.Linear(24, 40)
    own.forward = lambda rows: rows  # type: ignore[method-assign]  # somebody else's
    whole, wanted = nn.ModuleList([made, own]), made(rows)
    with ExitStack() as inside:
        blocks: list[AbstractContextManager[None]] = [
            fast_products(whole),
            packed_products([made]),
            fast_products(made),
        ]
        for block in blocks:
            inside.enter_context(block)
            torch.testing.assert_close(made(rows), wanted, rtol=1e-5, atol=1e-5)
            assert own(rows) is rows
        assert called
    assert not any("forward" in vars(one) for one in made.modules())
    assert own(rows) is rows


def test_an_error_leaves_nothing_either(called: list[Tensor]) -> None:
    made = nn.Linear(24, 40)
    with pytest.raises(RuntimeError), fast_products(made):
        made(drawn(3, 7))
    assert "forward" not in vars(made)


@pytest.mark.parametrize("missing", ["slow_products", "has_onednn"])
def test_where_it_is_not_faster_or_not_there_nothing_is_replaced(
    missing: str, called: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, missing, lambda: False)
    made = nn.Linear(24, 40)
    with fast_products(made):
        assert "forward" not in vars(made)
