"""Removals judged by all measures, on a toy that is taught a corpus."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Sequence

import pytest
from by_hand import Toy, in_dtype, toy_edit
from rich.console import Console
from toy_corpus import QUICK, toy_corpus

from surgery import Edit, Fact, Model, SurgeryError
from surgery.corpus import (
    AfterRemoval,
    Difference,
    Judged,
    Taught,
    judge_removal,
    judged,
    measure_corpus,
    measured,
    nothing,
    taught,
    truth_ratio_test,
)
from surgery.corpus.muse import scalability, sustainability
from surgery.verification.controls import with_subject


@pytest.fixture(scope="module")
def known(toy: Toy) -> Iterator[Taught]:
    """A copy of the toy that has been taught a corpus."""
    model, facts = toy
    with taught(in_dtype(model, model.dtype), toy_corpus(facts), QUICK) as one:
        yield one


def test_a_planted_corpus_leaks_and_its_reference_does_not(known: Taught) -> None:
    found = measured(known.model, known.corpus)
    still = judged("still", found, known.reference)
    never = judged("never", known.reference, known.reference)
    assert never.leak == 0
    assert (never.quality, never.distance) == (1, 0)
    assert still.leak < -90
    assert still.quality < 0.05
    assert still.truth_ratio < 0 < never.truth_ratio
    assert still.verbatim > 0.8 > 0.6 > never.verbatim
    assert still.knowledge > 0.7 > 0.3 > never.knowledge
    assert min(still.utility, never.utility) > 0.8


def test_one_known_fact_is_told_from_people_nobody_knows(toy: Toy, unchanged: Callable[[Model], None]) -> None:
    model, facts = toy
    unchanged(model)
    corpus = toy_corpus(facts, forget=4, retain=1, holdout=20)
    names, answers = [person.name for person in corpus.holdout], list(dict.fromkeys(fact.target for fact in facts[:30]))

    def told(fact: Fact) -> Difference:
        wrong = [one for one in answers if one != fact.target]
        return truth_ratio_test(model, fact, wrong, [with_subject(fact, name) for name in names])

    known = [told(fact) for fact in facts[:4]]
    assert sum(one.p == pytest.approx(1 / 21) for one in known) >= 3
    assert all(one.effect < -1 for one in known)
    unknown = [told(with_subject(facts[0], person.name)) for person in corpus.forget]
    assert sum(one.p <= 0.05 for one in unknown) <= 1


def test_any_callable_that_removes_is_judged(known: Taught, unchanged: Callable[[Model], None]) -> None:
    unchanged(known.model)
    asked: list[int] = []

    def counting(model: Model, facts: Sequence[Fact]) -> Edit:
        asked.append(len(facts))
        return nothing(model, facts)

    kept = judge_removal(known, "nothing", counting, counts=(1, 4, 16), removals=3)
    # the whole forget set, then 1 and 4 at once of 12, then a third each
    assert asked == [12, 1, 4, 4, 4, 4]
    assert [one.facts for one in kept.scalability] == [1, 4]
    assert [one.facts for one in kept.sustainability] == [4, 8, 12]
    assert math.isnan(kept.sustainability[0].left)
    assert kept.leak < -90
    gone = judge_removal(known, "restored", known.restore, counts=(4,), removals=2)
    never = judged("restored", known.reference, known.reference)
    assert dataclasses.replace(gone, scalability=(), sustainability=(), seconds=0.0) == never
    assert {one.utility for one in (*gone.scalability, *gone.sustainability)} == {never.utility}
    assert gone.sustainability[1].left < 0.4 < kept.sustainability[1].left


def test_a_removal_of_too_many_facts_is_refused(known: Taught) -> None:
    with pytest.raises(SurgeryError, match="13 facts cannot be removed at once: the forget set has 12"):
        scalability(known.model, known.corpus, nothing, [13])
    for wrong in (0, 13):
        with pytest.raises(SurgeryError, match=f"12 facts do not make {wrong} removals; give 1 to 12"):
            sustainability(known.model, known.corpus, nothing, wrong)


def test_all_ways_in_one_report(toy: Toy, unchanged: Callable[[Model], None]) -> None:
    model, facts = toy
    unchanged(model)

    def breaking(model: Model, facts: Sequence[Fact]) -> Edit:
        return toy_edit((model, list(facts)), size=100.0)

    corpus = toy_corpus(facts, forget=2, retain=2, holdout=4)
    report = measure_corpus(model, corpus, {"broken": breaking}, planting=QUICK, counts=(1,), removals=0)
    assert [row.name for row in report.rows] == ["never trained", "nothing", "restored", "broken"]
    assert report["restored"].leak == report["never trained"].leak == 0
    assert report["broken"].utility < report["nothing"].utility
    assert (report.people, report.facts) == ((2, 2, 4), 6)
    record = json.loads(json.dumps(report.as_record()))
    assert Judged.from_record(record["rows"][1]) == report["nothing"]
    console = Console(width=220)
    with console.capture() as shown:
        console.print(report.table())
    assert "6 facts about 2 invented people removed; 2 retained, 4 held out" in shown.get()
    assert "restored" in shown.get()
    assert f"Taught to {report.losses[-1]:.2f} nats a token" in shown.get()
    with pytest.raises(SurgeryError, match="there is no row 'gone'; there are never trained, nothing"):
        report["gone"]


def test_rows_survive_their_records_and_check_themselves() -> None:
    row = Judged(
        name="a",
        verbatim=0.5,
        knowledge=0.25,
        leak=-90.0,
        utility=1.0,
        sustainability=(AfterRemoval(2, math.nan, 0.5), AfterRemoval(4, 0.75, 0.25)),
        truth_ratio=-1.0,
        distance=0.5,
        quality=0.01,
        auc=0.1,
    )
    back = Judged.from_record(json.loads(json.dumps(row.as_record())))
    assert back.as_record() == row.as_record()
    assert row.cells()[6] == "0.50, 0.25 (0.75)"
    with pytest.raises(SurgeryError, match=r"the utility of 'a' is 1\.5, which is not from 0 to 1"):
        dataclasses.replace(row, utility=1.5)
    with pytest.raises(SurgeryError, match="does not tell of at least one removed fact"):
        AfterRemoval(0, 0.5, 0.5)
