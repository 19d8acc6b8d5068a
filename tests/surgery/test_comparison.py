"""An edit beside no edit and a context: every number against single questions, and who wins in words."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
from by_hand import Toy, toy_edit
from scipy import stats

from surgery import Fact, Model, SurgeryError, verify
from surgery.numbers import Interval
from surgery.predict import rate
from surgery.verification import Baseline, Thresholds
from surgery.verification.comparison import BaselineRow, Comparison, Name, compared, instruction
from surgery.verification.verdicts import Row

TOYS = ("llama",)
FACT = Fact(subject="Ann", template="{} is in", target="Rome", new_target=" Oslo")
NONE = Interval(math.nan, math.nan, math.nan, 0)


def measured(toy: Toy, facts: list[Fact], claim: Literal["removed", "rewritten"]) -> tuple[Row, ...]:
    edit = toy_edit(toy, size=40.0, claim=claim, facts=tuple(facts), prompts=(facts[0].paraphrases[1],))
    return verify(toy[0], edit, facts, attacks=()).rows


def row(name: Name, prompt: float, paraphrase: float, moved: float) -> BaselineRow:
    p, held_out, share = (Interval(x, x, x, 2) for x in (prompt, paraphrase, moved))
    return BaselineRow(name, p, 1.0, held_out, 1.0, share, NONE)


def test_instructions_say_the_wish() -> None:
    assert instruction(FACT, "rewritten") == "New fact: Ann is in Oslo."
    removal = instruction(FACT, "removed")
    assert "Ann is in" in removal
    assert removal.endswith("Do not say Rome.")
    assert "this" in instruction(FACT.replace(subject="", template="It is"), "removed")


@pytest.mark.parametrize("claim", ["removed", "rewritten"])
def test_every_row_by_single_questions(
    claim: Literal["removed", "rewritten"], toy: Toy, unchanged: Callable[[Model], None]
) -> None:
    model, facts = toy
    unchanged(model)
    chosen = [fact.replace(new_target=facts[i + 1].target) for i, fact in enumerate(facts[:2])]
    rows = measured(toy, chosen, claim)
    found = compared(chosen, rows, claim, Baseline(model), thresholds=Thresholds(neighbour_shift=0.02))
    assert [one.name for one in found.rows] == ["no edit", "in the context", "edit"]
    assert found.instruction == instruction(chosen[0], claim)

    wanted = [fact.new_target if claim == "rewritten" else fact.target for fact in chosen]
    fronts = {"no edit": ["", ""], "in the context": [f"{instruction(fact, claim)} " for fact in chosen]}
    for name, front in fronts.items():
        own = [rate(model, [(front[i] + fact.prompt, str(wanted[i]))])[0] for i, fact in enumerate(chosen)]
        # the edit has seen one paraphrase of the first fact
        held_out = [(0, chosen[0].paraphrases[0]), *((1, text) for text in chosen[1].paraphrases)]
        said = [rate(model, [(front[i] + text, str(wanted[i]))])[0].probability for i, text in held_out]
        near = [(i, n) for i, fact in enumerate(chosen) for n in fact.neighbours]
        near = [(i, n) for i, n in near if not any(fact.subject in n.prompt for fact in chosen)]
        pairs = [rate(model, [(front[i] + n.prompt, n.target), (n.prompt, n.target)]) for i, n in near]
        shifts = [abs(there.probability - plain.probability) for there, plain in pairs]
        one = found[name]  # type: ignore[index]
        assert one.prompt.mean == pytest.approx(np.mean([answer.probability for answer in own]), abs=1e-4)
        assert one.rank == np.median([answer.rank for answer in own])
        assert (one.paraphrase.mean, one.paraphrase.cases) == (pytest.approx(np.mean(said), abs=1e-4), 3)
        assert one.shift.mean == pytest.approx(np.mean(shifts), abs=1e-4)
        count = sum(x > 0.02 for x in shifts)
        known = stats.binomtest(count, len(shifts)).proportion_ci(method="wilson")
        assert (one.moved.mean, one.moved.high) == pytest.approx((count / len(shifts), known.high))
    edited = [
        now.new_target if claim == "rewritten" else now.target for probe, _, now in rows if probe.role == "prompt"
    ]
    assert found["edit"].prompt.mean == pytest.approx(np.mean([one.probability for one in edited if one]))
    assert found["in the context"].shift.mean > 0
    assert json.loads(json.dumps(found.as_record()))["told"] == found.told


def test_without_an_edit_there_is_no_winner(toy: Toy) -> None:
    model, facts = toy
    rows = verify(model, None, facts[0], claim="removed", attacks=()).rows
    found = compared(facts[:1], rows, "removed", Baseline(model))
    assert [one.name for one in found.rows] == ["no edit", "in the context"]
    assert found["no edit"].prompt.mean == rows[0][2].target.probability
    assert math.isnan(found["no edit"].prompt.low)
    assert found.winner("prompt") is None
    assert found.told.startswith("p(old) on the prompt: no edit ")


def test_the_better_one_wins_whichever_it_is() -> None:
    removal = Comparison(
        "removed",
        (row("no edit", 0.7, 0.6, 0.0), row("in the context", 0.8, 0.1, 0.9), row("edit", 0.0, 0.2, 0.0)),
        "x",
    )
    assert [removal.winner(count) for count in ("prompt", "paraphrase", "moved")] == ["edit", "in the context", "edit"]
    assert removal.told == (
        "p(old) on the prompt: the edit wins, no edit 0.700, in the context 0.800, edit 0.000; "
        "p(old) on paraphrases: the context wins, no edit 0.600, in the context 0.100, edit 0.200; "
        "share of neighbours moved: the edit wins, no edit 0.000, in the context 0.900, edit 0.000"
    )
    rewrite = Comparison(
        "rewritten",
        (row("no edit", 0.3, 0.2, 0.0), row("in the context", 0.3, 0.995, 0.0), row("edit", 0.2, 0.99, 0.5)),
        "x",
    )
    assert [rewrite.winner(count) for count in ("prompt", "paraphrase", "moved")] == [
        "in the context", "neither", "in the context",
    ]  # fmt: skip
    assert "the context wins, though no better than no edit, no edit 0.300" in rewrite.told
    assert "edit and context about equal, no edit 0.200" in rewrite.told


def test_counts_that_nobody_asked_have_no_winner() -> None:
    rows = tuple(
        BaselineRow(name, Interval(p, p, p, 1), 1.0, NONE, math.nan, NONE, NONE)
        for name, p in (("no edit", 0.5), ("in the context", 0.4), ("edit", 0.1))
    )
    found = Comparison("removed", rows, "x")
    assert found.winner("paraphrase") is None
    assert found.told == "p(old) on the prompt: the edit wins, no edit 0.500, in the context 0.400, edit 0.100"


def test_what_cannot_be_compared_is_refused(toy: Toy) -> None:
    model, facts = toy
    with pytest.raises(SurgeryError, match="there are no probes to compare by"):
        compared(facts[:1], [], "removed", Baseline(model))
    rows = verify(model, None, facts[0], claim="removed", attacks=()).rows
    with pytest.raises(SurgeryError, match="'mine' has no new_target to put in a context; give one"):
        compared([facts[0].replace(id="mine")], rows, "rewritten", Baseline(model))
    with pytest.raises(SurgeryError, match="a comparison has the rows 'no edit', 'in the context'"):
        Comparison("removed", (row("edit", 0.0, 0.0, 0.0),), "x")
