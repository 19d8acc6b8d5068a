"""Diagonal plus low rank: the largest eigenpairs however found, positive definite, small in a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edits import SecondMoment, Statistics
from surgery import SurgeryError

WIDE = 1100


@pytest.fixture(scope="module")
def wide() -> torch.Tensor:
    """The second moment of 3000 keys with a falling spectrum and a common direction, wide enough to iterate for."""
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(3000, WIDE, generator=generator) * torch.logspace(0, -2, WIDE) + 0.3
    return (keys.T @ keys).double() / len(keys)


def test_iterated_eigenpairs_are_those_of_the_whole_decomposition(
    wide: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    iterated = SecondMoment.of(wide, 16)
    monkeypatch.setattr("torch.linalg.eigh", None)  # it is not asked
    again = SecondMoment.of(wide, 16)
    monkeypatch.undo()
    monkeypatch.setattr("edits.moment.ITERATED", WIDE + 1)
    whole = SecondMoment.of(wide, 16)
    assert torch.equal(iterated.factors, again.factors)
    assert torch.equal(iterated.diagonal, again.diagonal)
    torch.testing.assert_close(iterated.diagonal, whole.diagonal, rtol=1e-6, atol=0)
    torch.testing.assert_close(iterated.dense(), whole.dense(), rtol=1e-6, atol=1e-9)
    # column by column up to sign
    signs = (iterated.factors * whole.factors).sum(0).sign()
    torch.testing.assert_close(iterated.factors * signs, whole.factors, rtol=1e-5, atol=1e-7)


def test_extreme_eigenvalues_are_those_of_the_dense_matrix(wide: torch.Tensor) -> None:
    moment = SecondMoment.of(wide, 16)
    values = torch.linalg.eigvalsh(moment.dense())
    assert moment.extremes() == pytest.approx((float(values[0]), float(values[-1])), rel=1e-4)
    assert values[0] > 0
    small = SecondMoment(torch.tensor([0.5, 1.0, 2.0]), torch.tensor([[0.0], [0.0], [1.0]]))
    assert small.extremes() == pytest.approx((0.5, 3.0))


@pytest.mark.parametrize("count", [0, 1, 300])
def test_sizes_of_keys_are_those_by_the_dense_inverse(wide: torch.Tensor, count: int) -> None:
    moment = SecondMoment.of(wide, 16)
    keys = torch.randn(count, WIDE, generator=torch.Generator().manual_seed(2))
    inverse = torch.linalg.inv(moment.dense())
    torch.testing.assert_close(moment.sizes(keys), torch.einsum("ni,ij,nj->n", keys.double(), inverse, keys.double()))
    torch.testing.assert_close(moment.solve(keys), keys.double() @ inverse)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_keys_that_are_not_finite_or_all_zero_are_refused(value: float) -> None:
    with pytest.raises(SurgeryError, match="not finite or all zero; load the model with dtype='float32'"):
        SecondMoment.of(torch.full((6, 6), value), 2)


def test_parts_that_do_not_fit_each_other_are_refused() -> None:
    with pytest.raises(SurgeryError, match="not positive definite"):
        SecondMoment(torch.tensor([1.0, float("inf")]), torch.ones(2, 1))


def test_a_layer_of_an_eight_billion_parameter_llama_is_far_below_20_mb(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    moment = SecondMoment(torch.rand(14336, generator=generator) + 1e-4, torch.randn(14336, 64, generator=generator))
    path = Statistics({5: moment}, ("0" * 64,), "made up", 143360).save(tmp_path / "statistics.safetensors")
    assert 1_800_000 < path.stat().st_size < 2_000_000
    smallest, largest = Statistics.load(path).layers[5].extremes()
    assert 0 < 1e-4 < smallest < largest


@pytest.mark.parametrize("size", [1e-12, 1e-5, 1.0, 1e6, 1e15], ids=str)
def test_factors_of_any_size_survive_16_bits(size: float, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    spread = torch.logspace(0, -6, 5)
    factors = size * torch.randn(40, 5, generator=generator) * spread
    factors[:, 4] = 0
    moment = SecondMoment(size**2 * (torch.rand(40, generator=generator) + 0.1), factors)
    saved = Statistics({0: moment}, ("0" * 64,), "made up", 400).save(tmp_path / "statistics")
    back = Statistics.load(saved)
    torch.testing.assert_close(back.layers[0].factors, factors, rtol=2**-10, atol=0)
    values = torch.linalg.eigvalsh(back.layers[0].dense())
    assert values[0] > 0
    twice = Statistics.load(back.save(tmp_path / "again"))
    assert torch.equal(twice.layers[0].factors, back.layers[0].factors)


@pytest.mark.parametrize("wrong", [-1.0, 0.0, float("nan")], ids=str)
def test_a_file_that_is_not_positive_definite_is_refused(
    wrong: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = Statistics({3: SecondMoment(torch.ones(4), torch.ones(4, 1))}, ("0" * 64,), "made up", 400)
    good.layers[3].diagonal[2] = wrong  # past the check at birth
    path = good.save(tmp_path / "statistics")
    with pytest.raises(SurgeryError, match="statistics is damaged: the key statistics of layer 3 are not positive"):
        Statistics.load(path)
