"""Changes that are written one upon another while an edit is worked out, and are all taken back at the end."""

from __future__ import annotations

import torch
from torch import Tensor

from surgery.edit import Delta, add_, weight_of
from surgery.model import Model


class Writes:
    """Adds deltas to a model's weights; called, it puts back the bytes that were there before the first.

    However many deltas a weight is given, one copy of it is kept: a sequence of hundreds of edits takes no more memory
    than one.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._first: dict[str, tuple[Tensor, Tensor]] = {}

    def add(self, delta: Delta) -> None:
        """Write a change.

        Raises:
            SurgeryError: the model has no such weight.
        """
        weight = weight_of(self._model, delta)
        if delta.module not in self._first:
            self._first[delta.module] = weight, weight.detach().clone()
        add_(weight, delta)

    @torch.no_grad()
    def __call__(self) -> None:
        """Put all weights back. A second call does nothing."""
        for weight, old in self._first.values():
            weight.copy_(old)
        self._first = {}
