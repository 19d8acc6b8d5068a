"""A second pass for what the first leaves undone: who gets it, beside what, what is logged, and where it ends."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from sweeping import CONTEXTS, FAR, SEARCH, Toy

from edits import (
    Limits,
    Mass,
    MassSequence,
    MaximumEntropy,
    Neutral,
    Objective,
    Pmet,
    RankOne,
    Refuse,
    Replace,
    Statistics,
    Suppress,
)
from edits.solve import LeastSquares, Solution, Space
from surgery import Edit, Fact, Model, Site, SurgeryError
from surgery.predict import Answer, rate

TOYS = ("llama",)
SITES = [Site.at(layer, "mlp") for layer in range(2)]
HALF = LeastSquares(balance=0.6)
"""So heavy that a first pass gives a lone key five eighths of what it should have."""
SAME: dict[str, Any] = {"contexts": CONTEXTS, "search": SEARCH, "progress": False, "limits": FAR, "names": 0.0}


def answers(model: Model, edit: Edit, facts: Sequence[Fact]) -> list[bool]:
    with edit.applied(model):
        return [one.rank == 1 for one in rate(model, [(fact.prompt, str(fact.new_target)) for fact in facts])]


@pytest.fixture(scope="module")
def chosen(toy: Toy) -> list[Fact]:
    """Facts with the answers of others, so many that they get in each other's way."""
    some = list({fact.subject: fact for fact in toy[1][::9]}.values())[:8]
    return [one.replace(new_target=other.target) for one, other in zip(some, some[3:] + some[:3], strict=True)]


@pytest.fixture(scope="module")
def one(toy: Toy, statistics: Statistics, chosen: list[Fact]) -> Edit:
    """The edit of one pass."""
    return Mass(statistics=statistics, solver=HALF, passes=1, **SAME)(toy[0], chosen, SITES)


def test_only_what_is_left_undone_is_written_again(
    toy: Toy, statistics: Statistics, chosen: list[Fact], one: Edit
) -> None:
    model = toy[0]
    two = Mass(statistics=statistics, solver=HALF, **SAME)(model, chosen, SITES)
    before, after = (answers(model, edit, chosen) for edit in (one, two))
    assert 0 < sum(before) < len(chosen)
    assert sum(after) > sum(before)
    for edit, met in ((one, before), (two, after)):
        assert [entry["met"] for entry in edit.log] == met
    assert [entry.get("passes", 1) for entry in two.log] == [1 if ok else 2 for ok in before]
    for first, second, ok in zip(one.log, two.log, before, strict=True):
        if ok:
            assert {**first, "met": None} == {**second, "met": None}
        else:
            assert second["steps"] > first["steps"]
    again = before.count(False)
    assert [two_.rank - one_.rank for one_, two_ in zip(one.deltas, two.deltas, strict=True)] == [again] * len(SITES)
    # nothing else differs
    assert (two.facts, two.prompts, two.base) == (one.facts, one.prompts, one.base)
    assert two.settings == {**one.settings, "passes": 2}


def test_a_batch_that_is_done_has_no_second_pass(toy: Toy, statistics: Statistics, chosen: list[Fact]) -> None:
    few = chosen[:1]
    one, two = (Mass(statistics=statistics, passes=n, **SAME)(toy[0], few, SITES) for n in (1, 3))
    assert [entry["met"] for entry in one.log] == [True]
    assert one.log == two.log
    for a, b in zip(one.deltas, two.deltas, strict=True):
        assert torch.equal(a.left, b.left)
        assert torch.equal(a.right, b.right)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Noting(LeastSquares):
    """Notes how many keys it solves for, and the earlier ones."""

    def __call__(
        self, keys: torch.Tensor, residuals: torch.Tensor, space: Space, earlier: torch.Tensor | None = None
    ) -> Solution:
        NOTED.append((keys, earlier))
        return super().__call__(keys, residuals, space, earlier)


NOTED: list[tuple[torch.Tensor, torch.Tensor | None]] = []


@pytest.mark.parametrize("method", [Mass, MassSequence])
def test_a_second_pass_keeps_the_keys_of_all_others(
    toy: Toy, statistics: Statistics, chosen: list[Fact], method: type[Mass]
) -> None:
    model, site = toy[0], SITES[:1]
    first = method(statistics=statistics, solver=HALF, passes=1, layers=1, **SAME)(model, chosen, site)
    NOTED.clear()
    method(statistics=statistics, solver=Noting(balance=0.6), passes=2, layers=1, **SAME)(model, chosen, site)
    met = [entry["met"] for entry in first.log]
    keys, earlier = NOTED[-1]
    assert keys.shape[1] == met.count(False)
    assert earlier is not None
    all_keys = torch.cat([own for own, _ in NOTED[:-1]], 1)
    assert torch.equal(earlier, all_keys[:, [i for i, ok in enumerate(met) if ok]])
    if method is Mass:
        assert NOTED[0][1] is None


def test_a_pass_that_would_pass_a_limit_is_left_away(
    toy: Toy, statistics: Statistics, chosen: list[Fact], one: Edit
) -> None:
    far = max(entry["total_change"] for entry in one.log)
    near = Limits(relative_change=far * 1.0001, value_norm=100.0, perplexity=1e6)
    two = Mass(statistics=statistics, solver=HALF, **{**SAME, "limits": near})(toy[0], chosen, SITES)
    assert two.log == one.log
    for a, b in zip(one.deltas, two.deltas, strict=True):
        assert torch.equal(a.left @ a.right.T, b.left @ b.right.T)


@pytest.mark.parametrize(
    ("objective", "met"),
    [
        (Replace(), {(0.4, 1): True, (0.4, 2): False}),
        (Refuse(), {(0.4, 1): True, (0.9, 2): False}),
        (Suppress(), {(0.01, 1): True, (0.02, 100): False}),
        (MaximumEntropy(), {(0.01, 1): True, (0.02, 100): False}),
        (Neutral(), {(0.01, 1): True, (0.02, 100): False}),
    ],
)
def test_objectives_tell_what_they_wanted(objective: Objective, met: dict[tuple[float, int], bool]) -> None:
    found = {asked: objective.met(Answer("p", "a", *asked, top="b")) for asked in met}
    assert found == met


def test_the_published_ways_have_one_pass() -> None:
    assert [one().passes for one in (RankOne, Pmet, Mass, MassSequence)] == [1, 1, 2, 2]
    with pytest.raises(SurgeryError, match="layers, batch and passes of a method must be 1 or more"):
        Mass(passes=0)
