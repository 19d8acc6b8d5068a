"""What a GPU is given and asked while it is busy.

A GPU works through a queue. To hand it a list, or to look at a number, PyTorch waits until the queue is empty; it then
stands idle until new work arrives. Memory that the GPU reads by itself (pinned) lets both happen in turn with the rest.
Anywhere else there is no queue, and the same is done at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def sent(numbers: Sequence[int], device: torch.device) -> Tensor:
    """Whole numbers on a device, for work that is queued after them."""
    made = torch.tensor(numbers, dtype=torch.long)
    return made.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else made.to(device)


class Asked:
    """Numbers on their way from a device; work may be queued before they are looked at."""

    def __init__(self, numbers: Tensor) -> None:
        self._told, self._there = numbers.detach(), None
        if numbers.device.type == "cuda":
            self._told = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._told.copy_(numbers.detach(), non_blocking=True)
            self._there = torch.cuda.Event()
            self._there.record(torch.cuda.current_stream(numbers.device))

    def tolist(self) -> list[list[float]]:
        """The numbers, once they are there."""
        if self._there is not None:
            self._there.synchronize()
        return self._told.tolist()
