"""What a search goes by: each group's own loss and gradient, whoever is read beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from edits import Replace, ValueSearch
from edits.losses import SearchLoss
from edits.reading import Replayed, Rows
from edits.values import Value, find_values
from surgery import Fact, Model, Site
from surgery.gpu_graph import Recording

SITE = Site("L1.mlp")
CONTEXTS = ("{}", "It rained. {}")
SUBJECTS = ("The old tower", "The red house", "The street", "Paris", "", "The river", "An old street", "A wide river")


@pytest.fixture
def facts(tiny_fact: Fact) -> list[Fact]:
    """Some of one token and one without a subject, which has no essence prompt."""
    bare = tiny_fact.replace(template=tiny_fact.prompt, subject="")
    return [tiny_fact.replace(subject=one) if one else bare for one in SUBJECTS]


def losses_of(model: Model, facts: Sequence[Fact]) -> SearchLoss:
    objective = Replace()
    groups = [Rows(model, [fact], objective, CONTEXTS, "{} is a") for fact in facts]
    old = torch.full((len(facts), model.anatomy.d_model), 0.5) * torch.arange(1, len(facts) + 1)[:, None]
    wanted = [[objective.loss(model, fact)] for fact in facts]
    return SearchLoss(Replayed(model, SITE, groups), groups, wanted, old, kl=0.5, decay=0.1)


def moved(loss: SearchLoss, seed: int = 0) -> SearchLoss:
    loss()  # the first reading is of the unshifted model
    loss.unit += 0.05 * torch.randn(loss.unit.shape, generator=torch.Generator().manual_seed(seed))
    return loss


def test_a_gradient_is_that_of_the_groups_own_loss(tiny: Model, facts: list[Fact]) -> None:
    together = moved(losses_of(tiny, facts))
    found, still = together(), [0, 2, 4]
    gradients = together.gradient(still)
    for n, i in enumerate(still):
        alone = losses_of(tiny, [facts[i]])
        alone.norms = together.norms[i : i + 1]
        alone()
        alone.unit.copy_(together.unit[i : i + 1])
        torch.testing.assert_close(alone()[:, 0], found[:, i], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(alone.gradient([0])[0], gradients[n], rtol=1e-3, atol=1e-5)
        along = gradients[n] / gradients[n].norm()
        alone.unit += 1e-2 * along
        above = float(alone()[0, 0])
        alone.unit -= 2e-2 * along
        assert (above - float(alone()[0, 0])) / 2e-2 == pytest.approx(float(gradients[n].norm()), rel=0.02)


def test_who_goes_on_keeps_its_numbers_when_others_are_left_out(tiny: Model, facts: list[Fact]) -> None:
    loss = moved(losses_of(tiny, facts))
    before, gradients = loss(), loss.gradient([1, 3, 4])
    loss.keep([1, 3, 4])
    assert loss.going == loss.at.tolist() == [1, 3, 4]
    torch.testing.assert_close(loss(), before[:, [1, 3, 4]], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss.gradient([0, 1, 2]), gradients, rtol=1e-3, atol=1e-5)
    loss.keep([2])
    torch.testing.assert_close(loss(last=True), before[:, [4]], rtol=1e-4, atol=1e-5)


class Recorded(Recording):
    """Pretends that recordings are worth keeping, as on a GPU."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.possible = True

    def __call__(self, calculate: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        return calculate()


def test_reading_along_what_is_done_changes_no_value(
    gpt2: Model, facts: list[Fact], monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[int] = []
    keep = Replayed.keep

    def counted(self: Replayed, groups: Sequence[int]) -> None:
        left.append(len(groups))
        keep(self, groups)

    monkeypatch.setattr(Replayed, "keep", counted)

    def found(stop: float) -> tuple[Value, ...]:
        left.clear()
        search = ValueSearch(steps=12, step=3.0, clamp=100.0, stop=stop)
        return find_values(gpt2, facts, SITE, Replace(), CONTEXTS, search)

    line = sorted(one.losses[8] for one in found(0.0))[-3]  # some pass it soon, some late, some not at all
    wanted, at_once = found(line), list(left)
    monkeypatch.setattr("edits.losses.Recording", Recorded)
    along = found(line)
    assert len({len(one.losses) for one in wanted}) > 2
    assert len(at_once) > 1
    assert 0 < len(left) < len(at_once)
    assert all(2 * n <= before for n, before in zip(left, [len(facts), *left], strict=False))
    for one, other in zip(wanted, along, strict=True):
        assert len(one.losses) == len(other.losses)
        torch.testing.assert_close(other.shift, one.shift, rtol=1e-3, atol=1e-5)
        assert other.losses == pytest.approx(one.losses, rel=1e-4)
    # what is too much to be recorded is not read in vain
    monkeypatch.setattr("edits.losses.GPU_WORK", 1)
    found(line)
    assert left == at_once
