"""The second moment of an mlp's keys as diagonal plus low rank: C = diag(d) + F F^T, positive definite.

1. F are the largest eigenpairs of the full matrix, V diag(s)^(1/2); d holds what they leave of its diagonal.
2. C^-1 k comes from Woodbury's identity in float64, without building C.
3. So do its extreme eigenvalues: C and C^-1 are only ever multiplied with.

Of a matrix much wider than the rank, the eigenpairs come from Lanczos iterations with a fixed first vector (scipy's
`eigsh`), which touch no other pairs; of a smaller one, from the whole decomposition.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from surgery.errors import SurgeryError

ITERATED = 1024
"""From this width on, eigenpairs are iterated for, where there are at least `PER_PAIR` rows a pair."""
PER_PAIR = 8
TOLERANCE = 1e-10
FLOOR = 1e-6
SOME = 128
"""Keys whose copies in float64 stay in the caches."""


@dataclass(frozen=True, eq=False)
class SecondMoment:
    """C = diag(diagonal) + factors factors^T, positive definite.

    Attributes:
        diagonal: [d_ff], above 0.
        factors: [d_ff, rank].
    """

    diagonal: Float[Tensor, " d_ff"]
    factors: Float[Tensor, "d_ff rank"]

    def __post_init__(self) -> None:
        sound = (self.diagonal > 0).all() and self.diagonal.isfinite().all() and self.factors.isfinite().all()
        if not sound or len(self.diagonal) != len(self.factors):
            raise SurgeryError("key statistics are not positive definite; fit them on more text")

    @classmethod
    def of(cls, full: Float[Tensor, "d_ff d_ff"], rank: int) -> SecondMoment:
        """Diagonal plus low rank form of a full second moment, equal to it on the diagonal.

        The diagonal is kept at or above a millionth of its mean, so neurons that never fired cannot take an
        unlimited share of an edit.

        Raises:
            SurgeryError: the matrix holds something that is no finite number, or nothing but zeros.
        """
        diagonal = full.diagonal().double().cpu()
        # an entry of a second moment is at most the mean of two of its diagonal's, so these tell of all
        if not diagonal.isfinite().all() or not diagonal.any():
            raise SurgeryError(
                "the keys of this layer are not finite or all zero; load the model with dtype='float32' or 'bfloat16'"
            )
        values, vectors = _largest(full, min(rank, len(full)))
        factors = vectors * values.clamp_min(0).sqrt()
        left = diagonal - (factors**2).sum(1)
        return cls(left.clamp_min(FLOOR * float(diagonal.mean())).float(), factors.float())

    def plus(self, keys: Float[Tensor, "rows d_ff"], weight: float) -> SecondMoment:
        """C + weight times the mean of k k^T over some keys."""
        more = (weight / len(keys)) ** 0.5 * keys.T.to(self.factors)
        return SecondMoment(self.diagonal, torch.cat([self.factors, more], 1))

    def solve(self, keys: Float[Tensor, "*n d_ff"]) -> Float[Tensor, "*n d_ff"]:
        """C^-1 k of each key, in float64 on the CPU."""
        k, half = keys.double().cpu(), self._half
        return (k / self.diagonal.double().cpu()).sub_((k @ half.T) @ half)

    def sizes(self, keys: Float[Tensor, "n d_ff"]) -> Float[Tensor, " n"]:
        """k^T C^-1 k of each key, in float64 on the CPU; few keys at a time, since their copies cost more than sums."""
        d, half, found = self.diagonal.double().cpu(), self._half, []
        for some in keys.split(SOME):
            k = some.double().cpu()
            found.append((k.square() / d).sum(1) - (k @ half.T).square().sum(1))
        return torch.cat(found)

    @cached_property
    def _half(self) -> Float[Tensor, "rank d_ff"]:
        """H with C^-1 = diag(d)^-1 - H^T H."""
        d, f = self.diagonal.double().cpu(), self.factors.double().cpu()
        scaled = f / d[:, None]
        inner = torch.linalg.cholesky(torch.eye(f.shape[1], dtype=torch.float64) + f.T @ scaled)
        return torch.linalg.solve_triangular(inner, scaled.T, upper=False)

    def dense(self) -> Float[Tensor, "d_ff d_ff"]:
        """C itself, in float64."""
        f = self.factors.double()
        return torch.diag(self.diagonal.double()) + f @ f.T

    def extremes(self) -> tuple[float, float]:
        """The smallest and the largest eigenvalue of C, without building it where it is large.

        Their quotient is its condition: how many times dearer an edit is in the dearest direction than in the cheapest.
        """
        if len(self.diagonal) < ITERATED:
            values = torch.linalg.eigvalsh(self.dense())
            return float(values[0]), float(values[-1])
        d, f, half = (one.double().cpu().numpy() for one in (self.diagonal, self.factors, self._half))
        return 1 / _top(lambda x: x / d - half.T @ (half @ x), len(d)), _top(lambda x: d * x + f @ (f.T @ x), len(d))


def whitened(
    keys: Float[Tensor, "d_ff n"], diagonal: Float[Tensor, " d_ff"], factors: Float[Tensor, "d_ff rank"]
) -> Float[Tensor, "d_ff n"]:
    """(diag(diagonal) + factors factors^T)^-1 keys in float64: by Woodbury's identity, or dense where cheaper."""
    d, f, k = diagonal.double().cpu()[:, None], factors.double().cpu(), keys.double().cpu()
    if f.shape[1] >= len(f):
        return torch.cholesky_solve(k, torch.linalg.cholesky(torch.addmm(d.flatten().diag(), f, f.T)))
    inner = torch.eye(f.shape[1], dtype=torch.float64) + f.T @ (f / d)
    return k / d - (f / d) @ torch.linalg.solve(inner, f.T @ (k / d))


def _top(product: Callable[[np.ndarray], np.ndarray], width: int) -> float:
    """The largest eigenvalue of a symmetric map."""
    (value,) = eigsh(
        LinearOperator((width, width), matvec=product, dtype=np.float64),
        k=1,
        which="LA",
        v0=_first(width),
        tol=1e-6,
        return_eigenvectors=False,
    )
    return float(value)


def _largest(full: Float[Tensor, "d_ff d_ff"], rank: int) -> tuple[Float[Tensor, " rank"], Float[Tensor, "d_ff rank"]]:
    """The largest eigenpairs of a symmetric matrix in float64 on the CPU, the largest first.

    It is multiplied with where it is: of a wide one, a GPU makes nothing of what takes a processor a minute.
    """
    if len(full) >= max(ITERATED, PER_PAIR * rank):
        matrix = full.double()

        def product(x: np.ndarray) -> np.ndarray:
            return (matrix @ torch.from_numpy(x.ravel()).to(matrix.device)).cpu().numpy()

        times = LinearOperator(matrix.shape, matvec=product, dtype=np.float64)
        found, sides = eigsh(times, k=rank, which="LA", v0=_first(len(full)), tol=TOLERANCE)
        values, vectors = torch.from_numpy(found), torch.from_numpy(sides)
    else:
        values, vectors = (one.cpu() for one in torch.linalg.eigh(full.double()))
    best = values.argsort(descending=True)[:rank]
    return values[best], vectors[:, best]


def _first(width: int) -> np.ndarray:
    """The vector iterations start from: the same every time, and along no neuron or sum of them in particular."""
    return np.random.RandomState(0).randn(width)
