"""Closed forms: from keys and values to the change of a weight."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from edits.statistics import SecondMoment
from surgery.errors import SurgeryError

SMALLEST_COSINE = 1e-3


@dataclass(frozen=True, eq=False)
class RankOneSolution:
    """dW = left right^T with (W + dW) k = W k + left.

    Attributes:
        left: the value's shift.
        right: C^-1 k / (k^T C^-1 k).
        denominator: k^T C^-1 k.
        cosine: between k and C^-1 k; the smaller, the more other directions the change touches.
    """

    left: Float[Tensor, " d_model"]
    right: Float[Tensor, " d_ff"]
    denominator: float
    cosine: float


def rank_one(key: Float[Tensor, " d_ff"], shift: Float[Tensor, " d_model"], moment: SecondMoment) -> RankOneSolution:
    """The least change of W, weighed by C, that moves the value of `key` by `shift`.

    Meng et al. 2022, eq. 2: dW = Lambda (C^-1 k)^T with Lambda = (v* - W k) / ((C^-1 k)^T k), one k everywhere. Solved
    in float64.

    Raises:
        SurgeryError: the denominator is so small against |k| |C^-1 k| that the change would be out of proportion.
    """
    k = key.double().cpu()
    direction = moment.solve(k)
    denominator = float(k @ direction)
    cosine = denominator / max(float(k.norm() * direction.norm()), 1e-300)
    if not cosine > SMALLEST_COSINE:
        raise SurgeryError(
            f"the key and its whitened direction are almost orthogonal (cosine {cosine:.1e}); an edit there would "
            "break the model: choose another layer, or fit the key statistics on more text"
        )
    return RankOneSolution(shift.float().cpu(), (direction / denominator).to(torch.float32), denominator, cosine)
