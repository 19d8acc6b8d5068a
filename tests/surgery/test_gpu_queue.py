"""Lists go to a device and numbers come back as they were; where there is no queue, at once."""

from __future__ import annotations

import torch

from surgery.gpu_queue import Asked, sent

CPU = torch.device("cpu")


def test_lists_are_sent_as_whole_numbers_also_empty_ones() -> None:
    assert sent([3, 0, 7], CPU).tolist() == [3, 0, 7]
    assert sent([3], CPU).dtype == sent([], CPU).dtype == torch.long
    assert sent([], CPU).shape == (0,)


def test_numbers_are_those_of_the_time_they_were_asked_for_and_keep_no_graph() -> None:
    numbers = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    asked = Asked(numbers * 2)
    assert not asked._told.requires_grad
    assert asked.tolist() == [[2.0, 4.0], [6.0, 8.0]]
