"""One weight's change as a value: W + left right^T, kept as its factors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from surgery.errors import SurgeryError


@dataclass(frozen=True, eq=False, repr=False)
class Delta:
    """W + left right^T for the weight of one linear map.

    Attributes:
        module: dotted name of the linear map.
        left: [out, rank], float32.
        right: [in, rank], float32.

    Raises:
        SurgeryError: the factors do not fit together or hold numbers that are not finite.
    """

    module: str
    left: Float[Tensor, "out rank"]
    right: Float[Tensor, "in rank"]

    def __post_init__(self) -> None:
        for side in ("left", "right"):
            factor = getattr(self, side)
            if factor.ndim != 2 or factor.shape[1] != self.left.shape[1]:
                raise SurgeryError(f"the delta of {self.module} has factors of different rank")
            if not factor.isfinite().all():
                raise SurgeryError(f"the delta of {self.module} is not finite; the solve failed, so nothing is changed")
            # a copy in row order, also of one column, so that the same numbers always give the same norm
            plain = factor.detach().to("cpu", torch.float32).clone(memory_format=torch.contiguous_format)
            object.__setattr__(self, side, plain)

    @property
    def rank(self) -> int:
        """Columns of the factors."""
        return self.left.shape[1]

    @property
    def norm(self) -> float:
        """Frobenius norm of left right^T, without building it."""
        gram = (self.left.double().T @ self.left.double()) * (self.right.double().T @ self.right.double())
        return math.sqrt(max(float(gram.sum()), 0.0))

    def __repr__(self) -> str:
        return f"Delta({self.module!r}, rank={self.rank}, norm={self.norm:.3g})"

    def dense(self) -> Float[Tensor, "out in"]:
        """left right^T in float32."""
        return (self.left.double() @ self.right.double().T).float()

    def compressed(self) -> Delta:
        """The same change in as few columns as it needs, at least one; itself where it has no more than that.

        Singular values below float32's rounding of the largest are left out: `dense` is the same to that rounding.
        The product of the factors is decomposed through their QR factors, so it is never built.
        """
        if self.rank < 2:
            return self
        q_left, r_left = torch.linalg.qr(self.left.double())
        q_right, r_right = torch.linalg.qr(self.right.double())
        u, sizes, vt = torch.linalg.svd(r_left @ r_right.T, full_matrices=False)
        # columns that cancel out leave the float64 rounding of what they were
        columns = float((self.left.double().norm(dim=0) * self.right.double().norm(dim=0)).sum())
        floor = max(torch.finfo(torch.float32).eps * float(sizes[0]), 1e-12 * columns)
        rank = max(int((sizes > floor).sum()), 1)
        if rank >= self.rank:
            return self
        root = sizes[:rank].sqrt()
        return Delta(self.module, (q_left @ u[:, :rank] * root).float(), (q_right @ vt[:rank].T * root).float())

    def __add__(self, other: Delta) -> Delta:
        """Both changes of one weight as one, of the sum of the ranks."""
        if other.module != self.module:
            raise SurgeryError(f"deltas of {self.module} and {other.module} do not add up; they change two weights")
        return Delta(self.module, torch.cat([self.left, other.left], 1), torch.cat([self.right, other.right], 1))
