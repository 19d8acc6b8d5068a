"""The closed forms, against dense float64, and what they promise."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from edits import Constrained, LeastSquares, NullSpace, SecondMoment, Solver
from edits.moment import whitened
from edits.solve import SMALLEST_COSINE, Solution
from surgery import SurgeryError

D_MODEL, D_FF, N = 12, 30, 5
SCALE_FREE = (Constrained(), Constrained(slack=0.1), LeastSquares(), NullSpace())


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Keys, residuals, C and the keys of earlier edits."""

    keys: Tensor
    residuals: Tensor
    moment: SecondMoment
    earlier: Tensor


@pytest.fixture
def drawn() -> Drawn:
    g = torch.Generator().manual_seed(0)
    factors = torch.randn(D_FF, 4, generator=g) * torch.tensor([4.0, 2.0, 1.0, 1.0])
    return Drawn(
        keys=torch.randn(D_FF, N, generator=g),
        residuals=torch.randn(D_MODEL, N, generator=g),
        moment=SecondMoment(torch.rand(D_FF, generator=g) + 0.2, factors),
        earlier=torch.randn(D_FF, 7, generator=g),
    )


def solved(solver: Solver, drawn: Drawn, earlier: Tensor | None = None) -> Tensor:
    return change(solver(drawn.keys, drawn.residuals, solver.space(drawn.moment), earlier))


def change(found: Solution) -> Tensor:
    return found.left.double() @ found.right.double().T


def assert_agree(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6 * float(wanted.abs().max()))


@pytest.mark.parametrize("rank", [0, 3, D_FF - 1, D_FF, 2 * D_FF])
def test_whitened_keys_are_those_of_the_whole_matrix(rank: int, drawn: Drawn) -> None:
    factors = torch.randn(D_FF, rank, generator=torch.Generator().manual_seed(1))
    whole = drawn.moment.diagonal.double().diag() + factors.double() @ factors.double().T
    found = whitened(drawn.keys, drawn.moment.diagonal, factors)
    torch.testing.assert_close(whole @ found, drawn.keys.double(), rtol=1e-9, atol=1e-9)


def test_two_different_keys_in_one_formula_make_an_enormous_change_and_one_key_does_not() -> None:
    """By hand: the published code has the mean key in the direction and the bare prompt's in the denominator."""
    bare, behind, wanted = torch.tensor([1.0, 0.0]), torch.tensor([-0.998, 1.0]), torch.tensor([[3.0], [4.0]])
    moment = SecondMoment(torch.tensor([1.0, 4.0]), torch.zeros(2, 0))
    mean = (bare + behind) / 2  # 0.001, 0.5
    white = mean / moment.diagonal  # 0.001, 0.125
    published = wanted * white / (white @ bare)  # the denominator is 0.001
    assert float(published.norm()) == pytest.approx(5 * 0.125004 / 0.001, rel=1e-4)
    found = change(Constrained()(mean[:, None], wanted, Constrained().space(moment)))
    assert_agree(found @ mean.double(), wanted[:, 0].double())
    assert float(found.norm()) == pytest.approx(5 * 0.125004 / 0.062501, rel=1e-4)  # two shifts a key of length 0.5


@pytest.mark.parametrize(("scale", "published"), [(0.01, 0.001 / 0.101), (1.0, 10 / 10.1), (10.0, 1000 / 1000.1)])
def test_a_slack_means_the_same_on_models_with_other_keys(scale: float, published: float) -> None:
    """By hand: of k^T C^-1 k = 10 scale^2, an absolute slack of 0.1 leaves a hundredth here and all of it there."""
    key, moment = scale * torch.tensor([1.0, 6.0]), SecondMoment(torch.tensor([1.0, 4.0]), torch.zeros(2, 0))
    size = float(key @ (key / moment.diagonal))
    assert size == pytest.approx(10 * scale**2)
    assert size / (size + 0.1) == pytest.approx(published)
    solver = Constrained(slack=0.1)
    found = change(solver(key[:, None], torch.ones(1, 1), solver.space(moment)))
    assert float(found @ key.double()) == pytest.approx(1 / 1.1, rel=1e-5)


@pytest.mark.parametrize(("scale", "published"), [(0.001, 0), (0.01, 1), (1.0, 3)])
def test_a_threshold_keeps_the_same_directions_on_models_with_other_keys(scale: float, published: int) -> None:
    """By hand: of eigenvalues 1, 1 and 7 times a scale, an absolute 0.02 leaves alone none, one or all of them."""
    values = scale * torch.tensor([1.0, 1.0, 7.0])
    assert int((values >= 0.02).sum()) == published
    space = NullSpace().space(SecondMoment(values, torch.zeros(3, 0)))
    assert space.used is not None
    torch.testing.assert_close(space.used.abs(), torch.tensor([[0.0], [0.0], [1.0]], dtype=torch.float64))


@pytest.mark.parametrize("count", [1, N])
def test_rome_and_emmet(drawn: Drawn, count: int) -> None:
    """R (K^T C^-1 K)^-1 K^T C^-1, with one key the outer product of residual and whitened key."""
    k, r, c = drawn.keys[:, :count].double(), drawn.residuals[:, :count].double(), drawn.moment.dense()
    white = torch.linalg.inv(c) @ k
    found = Constrained()(drawn.keys[:, :count], drawn.residuals[:, :count], Constrained().space(drawn.moment))
    assert_agree(change(found), r @ torch.linalg.inv(k.T @ white) @ white.T)
    assert_agree(change(found) @ k, r)
    assert found.denominators == pytest.approx((k * white).sum(0).tolist(), rel=1e-9)
    assert found.cosines == pytest.approx(torch.cosine_similarity(k, white, dim=0).tolist(), rel=1e-9)


def test_emmet_with_slack(drawn: Drawn) -> None:
    k, c = drawn.keys.double(), drawn.moment.dense()
    gram = k.T @ torch.linalg.inv(c) @ k
    slack = 0.1 * float(gram.diagonal().mean()) * torch.eye(N, dtype=torch.float64)
    wanted = drawn.residuals.double() @ torch.linalg.inv(gram + slack) @ k.T @ torch.linalg.inv(c)
    assert_agree(solved(Constrained(slack=0.1), drawn), wanted)


@pytest.mark.parametrize("sequence", [False, True])
def test_memit_and_its_sequence(drawn: Drawn, sequence: bool) -> None:
    """R K^T (lambda C + K_p K_p^T + K K^T)^-1, by the d_ff x d_ff matrix the solver never builds."""
    k, p, c = drawn.keys.double(), drawn.earlier.double(), drawn.moment.dense()
    before = p @ p.T if sequence else torch.zeros_like(c)
    earlier = drawn.earlier if sequence else None
    wanted = drawn.residuals.double() @ k.T @ torch.linalg.inv(3.0 * c + before + k @ k.T)
    assert_agree(solved(LeastSquares(weight=3.0), drawn, earlier), wanted)
    mean = float((k * (torch.linalg.inv(c) @ k)).sum(0).mean())
    assert_agree(
        solved(LeastSquares(balance=0.5), drawn, earlier), solved(LeastSquares(weight=0.5 * mean), drawn, earlier)
    )


@pytest.mark.parametrize("sequence", [False, True])
def test_alphaedit(drawn: Drawn, sequence: bool) -> None:
    """The published solve: (P (K K^T + K_p K_p^T) + l I) X = P K R^T, dW = X^T."""
    k, c = drawn.keys.double(), drawn.moment.dense()
    values, vectors = torch.linalg.eigh(c)
    kept = vectors[:, values < values.mean()]
    assert 0 < kept.shape[1] < D_FF
    p = kept @ kept.T
    before = drawn.earlier.double() @ drawn.earlier.double().T if sequence else torch.zeros_like(c)
    level = 0.02 * float((p @ k).square().sum(0).mean())
    left = p @ (k @ k.T + before) + level * torch.eye(D_FF, dtype=torch.float64)
    wanted = torch.linalg.solve(left, p @ k @ drawn.residuals.double().T).T
    found = solved(NullSpace(), drawn, drawn.earlier if sequence else None)
    assert_agree(found, wanted)
    used = vectors[:, values >= values.mean()]
    assert (found @ used).abs().max() < 1e-5 * found.abs().max()


@pytest.mark.parametrize("solver", SCALE_FREE, ids=str)
def test_others_weigh_like_so_much_ordinary_text(drawn: Drawn, solver: Solver) -> None:
    """C + w mean(k_o k_o^T); in the null space C is its mean eigenvalue, and which space it is they do not decide."""
    others = 3.0 * drawn.earlier.T
    space = solver.beside(solver.space(drawn.moment), others, 5.0)
    found = change(solver(drawn.keys, drawn.residuals, space))
    assert (found @ others.double().T).norm() < 0.7 * (solved(solver, drawn) @ others.double().T).norm()
    if not isinstance(solver, NullSpace):
        wider = SecondMoment(drawn.moment.diagonal, torch.cat([drawn.moment.factors, (5 / 7) ** 0.5 * others.T], 1))
        assert_agree(found, change(solver(drawn.keys, drawn.residuals, solver.space(wider))))
        return
    k, c, o = drawn.keys.double(), drawn.moment.dense(), others.double()
    values, vectors = torch.linalg.eigh(c)
    kept = vectors[:, values < values.mean()]
    p = kept @ kept.T
    level = 0.02 * float((p @ k).square().sum(0).mean())
    metric = torch.eye(D_FF, dtype=torch.float64) + 5 / 7 * p @ o.T @ o @ p / (c.trace() / D_FF)
    wanted = drawn.residuals.double() @ k.T @ p @ torch.linalg.inv(level * metric + p @ k @ k.T @ p)
    assert_agree(found, wanted)


@pytest.mark.parametrize("solver", SCALE_FREE, ids=str)
def test_units_do_not_matter(drawn: Drawn, solver: Solver) -> None:
    """Keys ten times as long, C with them: the same values, so a change ten times smaller."""
    longer = Drawn(
        keys=10 * drawn.keys,
        residuals=drawn.residuals,
        moment=SecondMoment(100 * drawn.moment.diagonal, 10 * drawn.moment.factors),
        earlier=10 * drawn.earlier,
    )
    assert_agree(solved(solver, longer, longer.earlier), solved(solver, drawn, drawn.earlier) / 10)


def test_the_published_weight_leaves_short_keys_out(drawn: Drawn) -> None:
    """The control of the test above: lambda 15,000 installs next to nothing where keys are short; the balance does."""
    for solver, low, high in ((LeastSquares(weight=15000.0), 0.0, 0.05), (LeastSquares(), 0.9, 1.0)):
        installed = solved(solver, drawn) @ drawn.keys.double()
        share = float((installed * drawn.residuals).sum() / drawn.residuals.square().sum())
        assert low <= share <= high


def test_batches_with_the_running_sum_keep_what_earlier_ones_installed(drawn: Drawn) -> None:
    solver, space = LeastSquares(weight=1e-3), LeastSquares().space(drawn.moment)
    wanted = torch.randn(D_MODEL, 7, generator=torch.Generator().manual_seed(1))
    first = change(solver(drawn.earlier, wanted, space))
    kept, lost = (
        (first + change(solver(drawn.keys, drawn.residuals - (first @ drawn.keys.double()).float(), space, earlier)))
        @ drawn.earlier.double()
        for earlier in (drawn.earlier, None)
    )
    assert (kept - wanted).norm() < 0.05 * wanted.norm()
    assert (lost - wanted).norm() > 0.5 * wanted.norm()


def test_no_other_change_that_gives_the_keys_their_values_is_smaller_weighed_by_c(drawn: Drawn) -> None:
    found = solved(Constrained(), drawn)
    k, c = drawn.keys.double(), drawn.moment.dense()
    least = float((found @ c @ found.T).trace())
    draw = torch.Generator().manual_seed(1)
    for _ in range(20):
        aside = 0.01 * torch.randn(D_MODEL, D_FF, generator=draw, dtype=torch.float64)
        other = found + aside - aside @ k @ torch.linalg.pinv(k)
        assert float((other @ c @ other.T).trace()) > least


def test_a_key_almost_orthogonal_to_its_direction_is_refused() -> None:
    # C^-1 turns k away: nearly all of k is where C is huge, nearly all of C^-1 k where it is tiny
    moment, key = SecondMoment(torch.tensor([1e8, 1e-8]), torch.zeros(2, 1)), torch.tensor([[1.0], [1e-9]])
    for solver in (Constrained(), LeastSquares()):
        with pytest.raises(SurgeryError, match=r"almost orthogonal.*another layer"):
            solver(key, torch.ones(3, 1), solver.space(moment))


def test_keys_of_zero_or_no_number_are_refused() -> None:
    moment = SecondMoment(torch.ones(2), torch.zeros(2, 1))
    for key in (torch.zeros(2, 1), torch.tensor([[float("nan")], [1.0]])):
        with pytest.raises(SurgeryError, match="almost orthogonal"):
            Constrained()(key, torch.ones(3, 1), Constrained().space(moment))


def test_an_ordinary_key_is_far_from_the_guard() -> None:
    moment = SecondMoment(torch.ones(2), torch.zeros(2, 1))
    (cosine,) = Constrained()(torch.ones(2, 1), torch.ones(3, 1), Constrained().space(moment)).cosines
    assert cosine == pytest.approx(1)
    assert cosine > 100 * SMALLEST_COSINE


def test_two_keys_that_are_one_are_refused_without_slack(drawn: Drawn) -> None:
    keys = torch.cat([drawn.keys[:, :1], drawn.keys[:, :1] * (1 + 1e-8)], 1)
    space = Constrained().space(drawn.moment)
    with pytest.raises(SurgeryError, match="almost the same key"):
        Constrained()(keys, drawn.residuals[:, :2], space)
    found = change(Constrained(slack=0.02)(keys, drawn.residuals[:, :2], space)) @ keys.double()
    mean = drawn.residuals[:, :2].double().mean(1)
    torch.testing.assert_close(found[:, 0], mean, rtol=0.02, atol=1e-3)


def test_settings_without_sense_are_refused(drawn: Drawn) -> None:
    for make in (
        lambda: Constrained(slack=-0.1),
        lambda: LeastSquares(balance=0.0),
        lambda: LeastSquares(weight=0.0),
        lambda: NullSpace(threshold=0.0),
    ):
        with pytest.raises(SurgeryError, match="must be"):
            make()
    with pytest.raises(SurgeryError, match=r"no direction of the keys is below 1e-09 mean eigenvalues; raise"):
        NullSpace(threshold=1e-9).space(drawn.moment)
