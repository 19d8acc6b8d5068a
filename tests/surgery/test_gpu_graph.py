"""A calculation that is recorded gives what it would give anew; one that waits for its GPU is not recorded."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from surgery.gpu_graph import Recording

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


def counted(at: Tensor, calls: list[int], *, wait: bool = False) -> Callable[[], tuple[Tensor, ...]]:
    """A loss and its gradient at a place that is changed between calls."""

    def calculate() -> tuple[Tensor, ...]:
        calls.append(1)
        leaf = at.detach().requires_grad_()
        loss = leaf.square().sum()
        if wait and float(loss.detach()) < 0:
            raise AssertionError
        (gradient,) = torch.autograd.grad(loss, leaf)
        return loss.detach(), gradient

    return calculate


def steps(where: str, *, wait: bool = False) -> tuple[list[tuple[float, list[float]]], int]:
    """What five calls give, the place halved after each, and how often the calculation was told."""
    at, calls = torch.tensor([4.0, -8.0], device=where), list[int]()
    recording, calculate, seen = Recording(at.device), counted(at, calls, wait=wait), []
    for _ in range(5):
        loss, gradient = recording(calculate)
        seen.append((float(loss), gradient.tolist()))
        at *= 0.5
    return seen, len(calls)


WANTED = [(80.0 / 4**n, [8.0 / 2**n, -16.0 / 2**n]) for n in range(5)]


def test_without_a_gpu_it_is_done_each_time() -> None:
    assert steps("cpu") == (WANTED, 5)


@GPU
def test_a_gpu_is_told_twice_whatever_is_asked_how_often() -> None:
    assert steps("cuda") == (WANTED, 2)


@GPU
def test_what_waits_is_not_recorded_and_told_of(caplog: pytest.LogCaptureFixture) -> None:
    # the first call is begun, found to wait, and done again
    assert steps("cuda", wait=True) == (WANTED, 6)
    assert caplog.text.count("each step of a search is ordered anew") == 1
    assert torch.cuda.get_sync_debug_mode() == 0


@GPU
def test_after_it_is_forgotten_another_is_recorded() -> None:
    first, second = (torch.tensor([one], device="cuda") for one in (2.0, 3.0))
    recording, calls = Recording(first.device), list[int]()
    for at, wanted in ((first, 4.0), (second, 9.0)):
        for _ in range(4):
            assert float(recording(counted(at, calls))[0]) == wanted
        recording.forget()
    assert len(calls) == 4


@GPU
def test_another_error_is_not_taken_for_waiting() -> None:
    def calculate() -> tuple[Tensor, ...]:
        raise RuntimeError("of the calculation's own")

    with pytest.raises(RuntimeError, match="of the calculation's own"):
        Recording(torch.device("cuda"))(calculate)
    assert torch.cuda.get_sync_debug_mode() == 0
