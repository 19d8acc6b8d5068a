"""A dense change of a matrix as two factors, of as few columns as reproduce it.

1. A product with half as many random columns as the change's smaller side has tells whether its rank is below that.
2. If so, singular values are left away whose squares' sum is below the square of float32's rounding of the whole.
3. If not, as after any training by Adam, one factor is the identity on the smaller side and the other the change:
   hardly larger than the change, exact to the bit, and spared the decomposition of a large matrix.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

ROUNDING = torch.finfo(torch.float32).eps


def factored(change: Float[Tensor, "out in"]) -> tuple[Float[Tensor, "out rank"], Float[Tensor, "in rank"]]:
    """left and right with left right^T = change to float32's rounding."""
    most = min(change.shape)
    if _rank_below(change, most // 2):
        u, s, v = torch.linalg.svd(change.double(), full_matrices=False)
        tail = s.square().flip(0).cumsum(0).flip(0).sqrt()
        rank = max(1, int((tail > ROUNDING * s.norm()).sum()))
        return (u[:, :rank] * s[:rank]).float(), v[:rank].T.float()
    identity = torch.eye(most, device=change.device)
    return (identity, change.T) if change.shape[0] == most else (change, identity)


def _rank_below(change: Float[Tensor, "out in"], rank: int) -> bool:
    """Whether a product with so many random columns has dependent ones."""
    if rank < 1:
        return False
    draw = torch.Generator().manual_seed(0)
    random = torch.randn(max(change.shape), rank, generator=draw, dtype=torch.double).to(change.device)
    wide = change.double() if change.shape[1] >= change.shape[0] else change.double().T
    s = torch.linalg.svdvals(wide @ random)
    return bool(s[-1] <= 10 * ROUNDING * s[0])
