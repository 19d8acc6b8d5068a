"""How a value search takes its steps: many descents side by side, none of which feels the others.

A shift should be short: what it does to other subjects grows with its length. Adam's first steps have the same length
in every coordinate, whatever the gradient there, so most of what they add does nothing for the loss. `Steepest`:

1. g = gradient / |gradient|, averaged over steps with a momentum m, each average divided by the weights in it.
2. A step is `length` times that average, in Euclidean length.
3. Where a step has made the loss larger, the length of all further ones is halved.

`Adam` is the published rule (Kingma and Ba 2014, https://arxiv.org/abs/1412.6980, algorithm 1), a step for each
coordinate; it is there for comparison.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

TINY = 1e-30


@runtime_checkable
class Descent(Protocol):
    """Takes steps for some of many points, which keep their numbers."""

    def step_(
        self,
        points: Float[Tensor, "points d"],
        going: Int[Tensor, " going"],
        gradients: Float[Tensor, "going d"],
        losses: Float[Tensor, " going"],
    ) -> None:
        """Move the points `going`, whose gradients and losses are given."""
        ...


class Steepest:
    """Steps of one Euclidean length along the mean of the latest gradients' directions."""

    def __init__(self, points: Float[Tensor, "points d"], length: float, momentum: float = 0.5) -> None:
        self._mean, self._momentum = torch.zeros_like(points), momentum
        self._length = points.new_full((len(points), 1), length)
        self._before = points.new_full((len(points),), torch.inf)
        self._taken = points.new_zeros(len(points), 1)

    def step_(
        self,
        points: Float[Tensor, "points d"],
        going: Int[Tensor, " going"],
        gradients: Float[Tensor, "going d"],
        losses: Float[Tensor, " going"],
    ) -> None:
        """By the three steps above."""
        direction = gradients / gradients.norm(dim=1, keepdim=True).clamp_min(TINY)
        self._mean[going] = self._momentum * self._mean[going] + (1 - self._momentum) * direction
        self._taken[going] += 1
        worse = losses > self._before[going]
        self._length[going] *= torch.where(worse, 0.5, 1.0)[:, None]
        self._before[going] = losses
        mean = self._mean[going] / (1 - self._momentum ** self._taken[going])
        points[going] -= self._length[going] * mean


class Adam:
    """Steps of one length in every coordinate, by its gradients' mean and size so far."""

    def __init__(self, points: Float[Tensor, "points d"], rate: float) -> None:
        self._rate, self._betas, self._floor = rate, (0.9, 0.999), 1e-8
        self._mean, self._square = torch.zeros_like(points), torch.zeros_like(points)
        self._taken = points.new_zeros(len(points), 1)

    def step_(
        self,
        points: Float[Tensor, "points d"],
        going: Int[Tensor, " going"],
        gradients: Float[Tensor, "going d"],
        losses: Float[Tensor, " going"],
    ) -> None:
        """By the published rule."""
        first, second = self._betas
        self._mean[going] = first * self._mean[going] + (1 - first) * gradients
        self._square[going] = second * self._square[going] + (1 - second) * gradients.square()
        self._taken[going] += 1
        mean = self._mean[going] / (1 - first ** self._taken[going])
        size = (self._square[going] / (1 - second ** self._taken[going])).sqrt()
        points[going] -= self._rate * mean / (size + self._floor)
