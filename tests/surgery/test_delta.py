"""Deltas: norms and sums against dense matrices, and what is no delta."""

from __future__ import annotations

import pytest
import torch
from by_hand import delta_of, edit_of

from surgery import Delta, Model, SurgeryError


@pytest.mark.parametrize("rank", [1, 3, 40])
def test_the_norm_is_that_of_the_dense_matrix(gpt2: Model, rank: int) -> None:
    delta = delta_of(gpt2, "transformer.h.1.mlp.c_proj", rank=rank, seed=rank)
    dense = delta.left.numpy().astype("float64") @ delta.right.numpy().astype("float64").T
    assert torch.allclose(delta.dense().double(), torch.from_numpy(dense), atol=1e-5)
    assert delta.norm == pytest.approx(float((dense**2).sum() ** 0.5), rel=1e-9)
    assert (delta.rank, f"rank={rank}" in repr(delta)) == (rank, True)


def test_deltas_of_one_weight_add_up(gpt2: Model) -> None:
    one, other = (delta_of(gpt2, "transformer.h.1.mlp.c_proj", seed=seed, rank=seed) for seed in (1, 2))
    assert torch.allclose((one + other).dense(), one.dense() + other.dense(), atol=1e-5)
    assert (one + other).rank == 3
    with pytest.raises(SurgeryError, match="do not add up"):
        _ = one + delta_of(gpt2, "transformer.h.2.mlp.c_proj")


def test_opposite_deltas_have_norm_zero() -> None:
    one = Delta("m", torch.ones(3, 1), torch.ones(4, 1))
    assert (one + Delta("m", -torch.ones(3, 1), torch.ones(4, 1))).norm == 0
    assert one.norm == pytest.approx(12**0.5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("side", [0, 1])
def test_a_delta_that_is_not_finite_is_refused(bad: float, side: int) -> None:
    factors = [torch.ones(3, 1), torch.ones(4, 1)]
    factors[side][2] = bad
    with pytest.raises(
        SurgeryError, match=r"the delta of some\.mlp is not finite; the solve failed, so nothing is changed"
    ):
        Delta("some.mlp", *factors)


def test_an_edit_has_one_delta_a_weight(gpt2: Model) -> None:
    delta = delta_of(gpt2, "transformer.h.1.mlp.c_proj")
    for deltas in ((), (delta, delta)):
        with pytest.raises(SurgeryError, match="one delta for each weight it changes, and at least one"):
            edit_of(gpt2, *deltas)


@pytest.mark.parametrize(("rank", "needed"), [(1, 1), (5, 5), (32, 32), (40, 32), (100, 32)])
def test_compressing_keeps_the_change(gpt2: Model, rank: int, needed: int) -> None:
    delta = delta_of(gpt2, "transformer.h.1.mlp.c_proj", rank=rank, seed=rank)
    small = delta.compressed()
    assert small.rank == needed
    assert (small is delta) == (rank == needed)
    assert torch.allclose(small.dense(), delta.dense(), rtol=0, atol=4e-7 * float(delta.dense().abs().max()))
    assert small.compressed() is small


def test_columns_that_repeat_or_cancel_are_not_needed(gpt2: Model) -> None:
    one, other = (delta_of(gpt2, "transformer.h.1.mlp.c_proj", seed=seed, rank=2) for seed in (1, 2))
    assert (one + one).compressed().rank == 2
    assert (one + other + one).compressed().rank == 4
    away = one + Delta(one.module, -one.left, one.right)
    assert away.compressed().rank == 1
    assert away.compressed().norm < 1e-6 * one.norm


def test_the_layout_of_the_factors_leaves_no_trace() -> None:
    left, right = torch.randn(2, 1, 57, generator=torch.Generator().manual_seed(0))
    one, other = Delta("m", left.T, right.T), Delta("m", left.T.clone(), right.T.clone())
    assert left.T.stride() != (1, 1) == one.left.stride() == other.left.stride()
    assert one.norm == other.norm
    left.zero_()
    assert one.norm > 0
