"""Limits that stop an edit before a model collapses, and hand over what is done."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from itertools import permutations
from typing import Any

import pytest
import torch
from sweeping import CONTEXTS, FAR, SEARCH, Toy

from edits import (
    Emmet,
    Limits,
    NearCollapse,
    RankOne,
    Statistics,
)
from surgery import Fact, Model, Site, SurgeryError

SITES = [Site.at(0, "mlp")]
SAME: dict[str, Any] = {
    "contexts": CONTEXTS, "search": SEARCH, "progress": False, "limits": FAR, "key": "mean", "names": 0.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("limit", "logged", "told"),
    [
        ("relative_change", "total_change", "the weights would have changed by .* of their norm"),
        ("value_norm", "norm_to_pilot", "a value would be .* times as long as the first ones"),
        ("perplexity", "perplexity_ratio", "the perplexity of neutral text would be .* times what it was"),
    ],
)
def test_it_stops_before_a_limit_and_hands_over_what_is_done(
    toy: Toy,
    facts: list[Fact],
    statistics: Statistics,
    unchanged: Callable[[Model], None],
    limit: str,
    logged: str,
    told: str,
) -> None:
    model, _ = toy
    unchanged(model)
    free = RankOne(statistics=statistics, **SAME)
    orders = [[facts[i] for i in order] for order in permutations(range(3))]
    log, order = next(
        (log, order)
        for order in orders
        if (log := free(model, order, SITES).log)[0][logged] < 0.999 * max(one[logged] for one in log)
    )
    most = (log[0][logged] + max(one[logged] for one in log)) / 2
    method = dataclasses.replace(free, limits=dataclasses.replace(FAR, **{limit: most}))
    with pytest.raises(NearCollapse, match=rf"of 3 facts {told} \(limit {most}\); edit fewer facts") as caught:
        method(model, order, SITES)
    assert 1 <= caught.value.done < len(facts)
    edit, before = caught.value.edit, free(model, order[: caught.value.done], SITES)
    assert edit is not None
    assert torch.equal(edit.deltas[0].left, before.deltas[0].left)
    assert edit.facts == tuple(order[: caught.value.done])


def test_a_first_batch_past_a_limit_leaves_no_edit(toy: Toy, facts: list[Fact], statistics: Statistics) -> None:
    method = Emmet(statistics=statistics, **{**SAME, "limits": Limits(relative_change=1e-6)})
    with pytest.raises(NearCollapse, match="after 0 of 3 facts the weights would have changed") as caught:
        method(toy[0], facts, SITES)
    assert (caught.value.edit, caught.value.done) == (None, 0)
    assert "names" not in str(caught.value)
    with pytest.raises(NearCollapse, match=r"fewer facts, weigh nearly the same names less \(names=0\), or raise"):
        dataclasses.replace(method, names=1.0)(toy[0], facts, SITES)


@pytest.mark.parametrize(
    "wrong", [{"relative_change": 0.0}, {"value_norm": -1.0}, {"perplexity": float("nan")}, {"texts": ()}]
)
def test_limits_without_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(SurgeryError, match=r"a limit is a number above 0|needs some neutral text"):
        Limits(**wrong)


def test_the_model_as_it_came_is_measured_once(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """But again where its weights or the texts are others."""
    measured: list[Model] = []
    monkeypatch.setattr("edits.limits.perplexity", lambda model, texts: measured.append(model) or 7.0 + len(texts))
    model = dataclasses.replace(tiny)  # which holds nothing yet
    limits = Limits(texts=("The old tower",))
    assert [limits.measure_once(model, "ab"), limits.measure_once(model, "ab")] == [8.0, 8.0]
    assert len(measured) == 1
    assert limits.measure_once(model, "cd") == 8.0
    assert dataclasses.replace(limits, texts=("The old tower", "A river")).measure_once(model, "ab") == 9.0
    assert limits.measure_once(dataclasses.replace(tiny), "ab") == 8.0
    assert len(measured) == 4
    assert limits.measure(model) == 8.0
    assert len(measured) == 5
