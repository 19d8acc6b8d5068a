"""A calculation that a GPU is told of once and then does again and again.

The processor orders every product of a GPU by itself, which for few rows takes longer than the products do: a step of a
value search of one fact kept an 8-billion-parameter model's GPU busy for a tenth of the time. A CUDA graph (Gray 2019,
https://developer.nvidia.com/blog/cuda-graphs/) is such a sequence of orders, remembered:

1. The first time, the calculation is merely done. It is watched for waiting: a graph cannot hold what looks at a number
   and decides.
2. The second time, its orders are remembered instead of carried out, and then carried out together.
3. From then on they are given together.

The tensors that go in and come out are the same ones each time; others would not be seen.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

WAITED = "synchronizing CUDA operation"


class Recording:
    """What was told a GPU in a calculation, and is not told again; anywhere else, the calculation is done each time.

    Attributes:
        possible: whether there is a GPU, and nothing so far has waited for it.
    """

    def __init__(self, device: torch.device) -> None:
        self.possible, self._device, self._done = device.type == "cuda", device, False
        self._graph: torch.cuda.CUDAGraph | None = None
        self._results: tuple[Tensor, ...] = ()

    def __call__(self, calculate: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """What `calculate` gives, which must be the same calculation until `forget`.

        Returns:
            its results; on a GPU, the next call overwrites them.
        """
        if not self.possible:
            return calculate()
        with torch.cuda.device(self._device):
            if not self._done:
                self._done = True
                return self._watched(calculate)
            if self._graph is None:
                self._graph, self._results = _recorded(calculate)
            self._graph.replay()
            return self._results

    def forget(self) -> None:
        """Another calculation comes; the memory of this one is free."""
        self._done, self._graph, self._results = False, None, ()

    def _watched(self, calculate: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        before = torch.cuda.get_sync_debug_mode()
        _watch(2)
        try:
            return calculate()
        except RuntimeError as error:
            if WAITED not in str(error):
                raise
        finally:
            _watch(before)
        self.possible = False
        logger.warning("the model waits for its GPU, so that each step of a search is ordered anew, which takes longer")
        return calculate()


def _recorded(calculate: Callable[[], tuple[Tensor, ...]]) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...]]:
    """The orders of a calculation, and where its results will be.

    `torch.cuda.graph` gives all spare memory back first, pinned memory too, and whatever comes next has to ask for it
    again; so that is done only where what has been in use once might not be free a second time.
    """
    here, graph = torch.cuda.current_stream(), torch.cuda.CUDAGraph()
    if torch.cuda.mem_get_info()[0] < torch.cuda.memory_reserved():
        torch.cuda.empty_cache()
    beside = torch.cuda.Stream()
    beside.wait_stream(here)
    with torch.cuda.stream(beside):
        graph.capture_begin()
        try:
            results = calculate()
        finally:
            graph.capture_end()
    here.wait_stream(beside)
    return graph, results


def _watch(mode: int) -> None:
    """Whether waiting for the GPU is an error (2), told of (1) or neither (0)."""
    with warnings.catch_warnings():
        # PyTorch says, once, that it does not yet find all of it
        warnings.simplefilter("ignore", UserWarning)
        torch.cuda.set_sync_debug_mode(mode)
