"""The closed form of a rank-one edit, against dense float64."""

from __future__ import annotations

import pytest
import torch

from edits import SecondMoment
from edits.solve import SMALLEST_COSINE, rank_one
from surgery import SurgeryError

D_MODEL, D_FF = 12, 30


@pytest.fixture
def drawn() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, SecondMoment]:
    """W, k, the shift and C."""
    generator = torch.Generator().manual_seed(0)
    moment = SecondMoment(torch.rand(D_FF, generator=generator) + 0.2, torch.randn(D_FF, 4, generator=generator))
    weight = torch.randn(D_MODEL, D_FF, generator=generator)
    return weight, torch.randn(D_FF, generator=generator), torch.randn(D_MODEL, generator=generator), moment


def test_it_is_the_published_formula(
    drawn: tuple[torch.Tensor, torch.Tensor, torch.Tensor, SecondMoment],
) -> None:
    _, key, shift, moment = drawn
    k = key.double()
    c = torch.diag(moment.diagonal.double()) + moment.factors.double() @ moment.factors.double().T
    whitened = torch.linalg.inv(c) @ k
    wanted = torch.outer(shift.double(), whitened) / (whitened @ k)
    found = rank_one(key, shift, moment)
    torch.testing.assert_close(torch.outer(found.left.double(), found.right.double()), wanted, rtol=1e-5, atol=1e-7)
    assert found.denominator == pytest.approx(float(k @ whitened), rel=1e-9)
    assert found.cosine == pytest.approx(float(k @ whitened / k.norm() / whitened.norm()), rel=1e-9)


def test_the_key_gets_its_new_value(drawn: tuple[torch.Tensor, torch.Tensor, torch.Tensor, SecondMoment]) -> None:
    weight, key, shift, moment = drawn
    found = rank_one(key, shift, moment)
    changed = weight.double() + torch.outer(found.left.double(), found.right.double())
    torch.testing.assert_close(
        changed @ key.double(), weight.double() @ key.double() + shift.double(), rtol=0, atol=1e-5
    )


def test_no_other_change_that_does_so_is_smaller_weighed_by_c(
    drawn: tuple[torch.Tensor, torch.Tensor, torch.Tensor, SecondMoment],
) -> None:
    _, key, shift, moment = drawn
    found = rank_one(key, shift, moment)
    change = torch.outer(found.left.double(), found.right.double())
    least = float((change @ moment.dense() @ change.T).trace())
    generator = torch.Generator().manual_seed(1)
    k = key.double()
    for _ in range(20):
        aside = 0.01 * torch.randn(D_MODEL, D_FF, generator=generator, dtype=torch.float64)
        other = change + aside - torch.outer(aside @ k, k) / (k @ k)
        assert float((other @ moment.dense() @ other.T).trace()) > least


def test_a_key_almost_orthogonal_to_its_direction_is_refused() -> None:
    # C^-1 turns k away: nearly all of k is where C is huge, nearly all of C^-1 k where it is tiny
    diagonal, key = torch.tensor([1e8, 1e-8]), torch.tensor([1.0, 1e-9])
    with pytest.raises(SurgeryError, match=r"almost orthogonal.*another layer"):
        rank_one(key, torch.ones(3), SecondMoment(diagonal, torch.zeros(2, 1)))


def test_keys_of_zero_or_no_number_are_refused() -> None:
    moment = SecondMoment(torch.ones(2), torch.zeros(2, 1))
    for key in (torch.zeros(2), torch.tensor([float("nan"), 1.0])):
        with pytest.raises(SurgeryError, match="almost orthogonal"):
            rank_one(key, torch.ones(3), moment)


def test_an_ordinary_key_is_far_from_the_guard() -> None:
    moment = SecondMoment(torch.ones(2), torch.zeros(2, 1))
    cosine = rank_one(torch.ones(2), torch.ones(3), moment).cosine
    assert cosine == pytest.approx(1)
    assert cosine > 100 * SMALLEST_COSINE
