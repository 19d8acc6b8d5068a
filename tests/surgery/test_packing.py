"""Packed weights give the same products and gradients, and are never used after a change."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from surgery import packing, products
from surgery.packing import PackedProducts, SteadyProducts, packed_products, steady_products
from surgery.products import fast_products


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def frozen(outputs: int, inputs: int, *, seed: int = 0) -> nn.Linear:
    """A map without bias whose weight is no longer learned."""
    made = nn.Linear(inputs, outputs, bias=False)
    made.weight = nn.Parameter(drawn(outputs, inputs, seed=seed), requires_grad=False)
    return made


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Ids of the weights that get packed."""
    found: list[int] = []
    real = packing._Packed
    monkeypatch.setattr(
        packing, "_Packed", lambda weight, *given, **how: found.append(id(weight)) or real(weight, *given, **how)
    )
    return found


@pytest.fixture
def module(request: pytest.FixtureRequest) -> nn.Module:
    """A frozen map from 24 to 40, stored in either way."""
    made = {"linear": nn.Linear(24, 40), "bare": nn.Linear(24, 40, bias=False), "conv1d": Conv1D(40, 24)}[request.param]
    with torch.no_grad():
        for i, weight in enumerate(made.parameters()):
            weight.copy_(drawn(*weight.shape, seed=i))
    return made.requires_grad_(False)


@pytest.mark.parametrize("sure", [1, packing.OFTEN_AGAINST], ids=["as stored", "packed"])
@pytest.mark.parametrize("slow", [True, False])
@pytest.mark.parametrize("module", ["linear", "bare", "conv1d"], indirect=True)
@pytest.mark.parametrize("shape", [(1,), (5,), (3, 7), (2, 64)], ids=str)
def test_products_and_gradients_are_the_same(
    module: nn.Module, shape: tuple[int, ...], slow: bool, sure: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where plain products are slow both ways are oneDNN's, else the one that reads the weight against its order."""
    monkeypatch.setattr(packing, "slow_products", lambda: slow)
    rows = drawn(*shape, 24, seed=3).requires_grad_()
    wanted = module(rows)
    (gradient,) = torch.autograd.grad(wanted.square().sum(), rows)
    products = packed_products([module], sure=sure)
    for _ in range(2):
        with products:
            found = module(rows)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(torch.autograd.grad(found.square().sum(), rows)[0], gradient, rtol=1e-4, atol=1e-3)


def test_rows_need_not_lie_together_in_memory() -> None:
    made, rows = frozen(40, 24), drawn(3, 24, 7).transpose(1, 2)
    with packed_products([made]):
        torch.testing.assert_close(made(rows), rows @ made.weight.T, rtol=1e-5, atol=1e-5)


def test_this_build_of_torch_has_the_operators() -> None:
    """Else everything above compares plain products with plain ones."""
    assert isinstance(packed_products([frozen(8, 4)]), PackedProducts)


def test_only_modules_that_are_handed_in_are_packed_and_all_get_their_forward_back(packed: list[int]) -> None:
    inside, outside, rows = nn.Sequential(frozen(8, 4), nn.GELU()), frozen(8, 4), drawn(3, 4)
    own = frozen(8, 4)
    own.forward = lambda rows: rows  # type: ignore[method-assign]  # somebody else's
    with packed_products([inside, own]):
        outside(inside(rows)[:, :4])
        assert own(rows) is rows
        with pytest.raises(RuntimeError):
            inside(drawn(3, 5))
    assert packed == [id(inside[0].weight)]
    assert "forward" not in vars(inside[0])
    assert own(rows) is rows


def test_copies_go_with_the_last_who_uses_them() -> None:
    made = frozen(8, 4)
    products = packed_products([made])
    with products:
        made(drawn(3, 4).requires_grad_()).sum().backward()
    kept = weakref.ref(products)
    del products
    assert kept() is None  # at once: garbage is collected by how many objects there are, not by their size


def test_a_weight_that_was_changed_is_refused() -> None:
    made, rows = frozen(8, 4), drawn(3, 4)
    with packed_products([made]):
        made(rows)
        made.weight += 1
        with pytest.raises(RuntimeError, match="was changed while its packed copy was in use"):
            made(rows)


def test_only_frozen_parameters_in_single_precision_are_packed(packed: list[int]) -> None:
    learning, double, passing, kept = (frozen(8, 4, seed=i) for i in range(4))
    learning.requires_grad_()
    double.double()
    passed = drawn(8, 4)
    del passing.weight
    passing.weight = passed  # type: ignore[assignment]  # worked out from something else
    rows = drawn(3, 4)
    with packed_products([kept, learning, double, passing]):
        learning(rows).sum().backward()
        assert double(rows.double()).dtype == torch.float64
        torch.testing.assert_close(passing(rows), rows @ passed.T)
        kept(rows)
        assert packed == [id(kept.weight)]
        with torch.no_grad():
            torch.testing.assert_close(learning(rows), rows @ learning.weight.T)
    assert learning.weight.grad is not None
    assert packed == [id(kept.weight), id(learning.weight)]


def test_a_weight_is_packed_once_it_has_been_used_often_if_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "slow_products", lambda: True)
    monkeypatch.setattr(packing, "MOST_BYTES", 3 * 4 * 8 * 4)  # of four ways, three
    maps, rows = [frozen(8, 4), frozen(8, 4, seed=1)], drawn(3, 4).requires_grad_()
    plain = [rows @ one.weight.T for one in maps]
    real, used = packing.by_onednn, list[bool]()
    monkeypatch.setattr(packing, "by_onednn", lambda *given: used.append(given[1].is_mkldnn) or real(*given))
    with packed_products(maps):
        for _ in range(packing.OFTEN_AGAINST):
            for one, wanted in zip(maps, plain, strict=True):
                found = one(rows)
                torch.testing.assert_close(found, wanted)
                (gradient,) = torch.autograd.grad(found.sum(), rows)
                torch.testing.assert_close(gradient, one.weight.sum(0).expand(3, 4))
    first, first_back, second, second_back = (used[i::4] for i in range(4))
    ends = [packing.OFTEN, packing.OFTEN_AGAINST]
    assert [one.index(True) + 1 for one in (first, second, first_back)] == [ends[0], ends[0], ends[1]]
    assert not any(second_back)


@pytest.mark.parametrize("sure", [1, packing.OFTEN - 1, packing.OFTEN])
def test_what_is_surely_used_often_is_packed_at_once(sure: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "slow_products", lambda: True)
    real, used = packing.by_onednn, list[bool]()
    monkeypatch.setattr(packing, "by_onednn", lambda *given: used.append(given[1].is_mkldnn) or real(*given))
    made, rows = frozen(8, 4), drawn(3, 4)
    with packed_products([made], sure=sure):
        for _ in range(packing.OFTEN):
            made(rows)
    assert used.index(True) == packing.OFTEN - sure


def test_without_the_operators_products_are_plain_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "has_onednn", lambda: False)
    made, rows = frozen(8, 4), drawn(3, 4)
    products = packed_products([made])
    assert not isinstance(products, PackedProducts)
    for _ in range(2):
        with products:
            torch.testing.assert_close(made(rows), rows @ made.weight.T)


@pytest.fixture
def reordered(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each product of a steady block, whether its weight was packed."""
    monkeypatch.setattr(products, "slow_products", lambda: True)
    real, found = products.by_onednn, list[bool]()
    monkeypatch.setattr(products, "by_onednn", lambda *given: found.append(given[1].is_mkldnn) or real(*given))
    return found


@pytest.mark.parametrize("module", ["linear", "bare", "conv1d"], indirect=True)
@pytest.mark.parametrize("shape", [(1,), (3, 7)], ids=str)
def test_steady_products_are_the_same(module: nn.Module, shape: tuple[int, ...], reordered: list[bool]) -> None:
    rows = drawn(*shape, 24, seed=3)
    wanted = module(rows)
    block = steady_products(module)
    assert isinstance(block, SteadyProducts)
    for _ in range(2):
        with block:
            for _ in range(2):
                torch.testing.assert_close(module(rows), wanted, rtol=1e-5, atol=1e-5)
    assert reordered == [True] * 4
    assert "forward" not in vars(module)


def test_a_weight_that_is_another_one_is_multiplied_as_it_is(reordered: list[bool]) -> None:
    made, rows = frozen(8, 4), drawn(3, 4)
    own, other = made.weight.data, drawn(8, 4, seed=9)
    with steady_products(made):
        made(rows)
        made.weight.data = other
        torch.testing.assert_close(made(rows), rows @ other.T)
        other += 1  # nobody is told
        torch.testing.assert_close(made(rows), rows @ other.T)
        made.weight.data = own
        torch.testing.assert_close(made(rows), rows @ own.T)
        with torch.no_grad():
            made.weight.add_(1.0)
        torch.testing.assert_close(made(rows), rows @ own.T)
        made.weight = nn.Parameter(drawn(8, 4, seed=5), requires_grad=False)
        torch.testing.assert_close(made(rows), rows @ made.weight.T)
    assert reordered == [True, False, False, True, False, False]


def test_memory_of_a_weight_that_is_put_aside_is_not_taken_by_another(reordered: list[bool]) -> None:
    """Else its packed copy would be used for that other one's numbers."""
    made, rows = frozen(512, 512), drawn(3, 512)
    with steady_products(made):
        made(rows)
        place = made.weight.data_ptr()
        made.weight.data = drawn(512, 512, seed=1)
        others = [torch.zeros(512, 512) for _ in range(8)]
        assert place not in {one.data_ptr() for one in others}


def test_within_a_steady_block_the_others_leave_it_be(packed: list[int], reordered: list[bool]) -> None:
    made, rows = frozen(8, 4), drawn(3, 4)
    with steady_products(made), packed_products([made]), fast_products(made), steady_products(made):
        made(rows)
    assert (packed, reordered) == ([], [True])
    with packed_products([made]), steady_products(made):
        made(rows)
    assert reordered == [True, True]


def test_what_there_is_no_room_for_is_multiplied_as_it_is(
    reordered: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "MOST_BYTES", 4 * 8 * 4)
    both, rows = nn.ModuleList([frozen(8, 4), frozen(8, 4, seed=1)]), drawn(3, 4)
    with steady_products(both):
        for one in both:
            torch.testing.assert_close(one(rows), rows @ one.weight.T)
    assert reordered == [True, False]


def test_what_is_trained_meanwhile_gets_its_gradient(reordered: list[bool]) -> None:
    made, rows = frozen(8, 4).requires_grad_(), drawn(3, 4)
    with steady_products(made):
        made(rows).sum().backward()
    assert reordered == [False]
    torch.testing.assert_close(made.weight.grad, rows.sum(0).expand(8, 4))
