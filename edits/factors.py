"""A dense change of a matrix as two factors, of as few columns as reproduce it.

1. The singular values whose squares' sum is below the square of float32's rounding of the whole are left away.
2. Where that leaves no fewer numbers than the change itself has, one factor is the identity on the change's smaller
   side and the other the change: no larger, and exact to the bit.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def factored(change: Float[Tensor, "out in"]) -> tuple[Float[Tensor, "out rank"], Float[Tensor, "in rank"]]:
    """left and right with left right^T = change to float32's rounding."""
    most = min(change.shape)
    u, s, v = torch.linalg.svd(change.double(), full_matrices=False)
    left_away = s.square().flip(0).cumsum(0).flip(0).sqrt()
    rank = max(1, int((left_away > torch.finfo(torch.float32).eps * s.norm()).sum()))
    if rank < most:
        return (u[:, :rank] * s[:rank]).float(), v[:rank].T.float()
    identity = torch.eye(most, device=change.device)
    return (identity, change.T) if change.shape[0] == most else (change, identity)
