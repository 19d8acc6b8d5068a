"""Steps of a value search: their lengths, their direction, and that descents side by side do not feel each other."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from edits.descent import Adam, Descent, Steepest

STEEP = torch.tensor([100.0, 1.0, 0.01])


def bowl(points: Tensor) -> tuple[Tensor, Tensor]:
    """Losses of points of a narrow bowl, and their gradients."""
    return (STEEP * (points - 1).square()).sum(1) / 2, STEEP * (points - 1)


def descend(make: Callable[[Tensor], Descent], points: Tensor, steps: int) -> Tensor:
    """Where the descents end, all of them going on to the last step."""
    points, going = points.clone(), torch.arange(len(points))
    descent = make(points)
    for _ in range(steps):
        losses, gradients = bowl(points)
        descent.step_(points, going, gradients, losses)
    return points


def test_the_first_step_goes_straight_down_by_the_given_length() -> None:
    start = torch.tensor([[3.0, 3.0, 3.0], [0.0, -2.0, 1.0]])
    moved = descend(lambda p: Steepest(p, 0.25), start, 1) - start
    torch.testing.assert_close(moved.norm(dim=1), torch.tensor([0.25, 0.25]))
    down = -bowl(start)[1]
    torch.testing.assert_close(moved, 0.25 * down / down.norm(dim=1, keepdim=True))


def test_steps_follow_the_mean_of_directions_and_halve_where_it_got_worse() -> None:
    point, at = torch.zeros(1, 2), torch.tensor([0])
    descent = Steepest(point, 1.0, momentum=0.5)
    descent.step_(point, at, torch.tensor([[-2.0, 0.0]]), torch.tensor([5.0]))
    torch.testing.assert_close(point, torch.tensor([[1.0, 0.0]]))
    # weights of the two directions: 1/4 and 1/2, divided by their sum
    descent.step_(point, at, torch.tensor([[0.0, -7.0]]), torch.tensor([4.0]))
    torch.testing.assert_close(point, torch.tensor([[1 + 1 / 3, 2 / 3]]))
    descent.step_(point, at, torch.tensor([[0.0, -1.0]]), torch.tensor([4.5]))
    torch.testing.assert_close(point, torch.tensor([[1 + 1 / 3 + 0.5 / 7, 2 / 3 + 0.5 * 6 / 7]]))


@pytest.mark.parametrize("make", [lambda p: Steepest(p, 0.3), lambda p: Adam(p, 0.1)])
def test_descents_do_not_feel_each_other(make: Callable[[Tensor], Descent]) -> None:
    starts = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    together = descend(make, starts, 7)
    for i in range(4):
        torch.testing.assert_close(together[i : i + 1], descend(make, starts[i : i + 1], 7))


@pytest.mark.parametrize("make", [lambda p: Steepest(p, 0.3), lambda p: Adam(p, 0.1)])
def test_points_that_are_done_stay(make: Callable[[Tensor], Descent]) -> None:
    points = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    alone, before = points[[0, 2]].clone(), points.clone()
    some, apart = make(points), make(alone)
    for _ in range(4):
        losses, gradients = bowl(points[[0, 2]])
        some.step_(points, torch.tensor([0, 2]), gradients, losses)
        losses, gradients = bowl(alone)
        apart.step_(alone, torch.tensor([0, 1]), gradients, losses)
    torch.testing.assert_close(points[1], before[1], rtol=0, atol=0)
    torch.testing.assert_close(points[[0, 2]], alone)


def test_adam_is_the_published_rule() -> None:
    start = torch.tensor([[3.0, 3.0, 3.0], [0.0, -2.0, 1.0]])
    wanted = start.clone().requires_grad_()
    published = torch.optim.Adam([wanted], lr=0.1)
    for _ in range(9):
        published.zero_grad()
        bowl(wanted)[0].sum().backward()
        published.step()
    torch.testing.assert_close(descend(lambda p: Adam(p, 0.1), start, 9), wanted.detach())


def test_steepest_reaches_a_loss_by_a_shorter_way_than_adam() -> None:
    """A loss of one direction out of many: Adam's first steps are as long in all the others."""
    noise = 0.01 * torch.randn(1, 200, generator=torch.Generator().manual_seed(0))
    reached = {}
    for name, make in {"steepest": lambda p: Steepest(p, 0.2), "adam": lambda p: Adam(p, 0.05)}.items():
        point, at = torch.zeros(1, 200), torch.tensor([0])
        descent = make(point)
        while float(point[0, 0]) < 1:
            gradient = noise.clone()
            gradient[0, 0] = -1
            descent.step_(point, at, gradient, 1 - point[:, 0])
        reached[name] = float(point.norm())
    assert reached["steepest"] < 1.3 < 5 < reached["adam"]
