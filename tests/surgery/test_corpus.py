"""Invented people, planting, and removals judged on a toy that is taught a corpus."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Sequence

import pytest
from by_hand import Toy, in_dtype, toy_edit
from rich.console import Console
from toy_corpus import toy_corpus

from surgery import Edit, Fact, Model, SurgeryError, invented_facts
from surgery.corpus import (
    AfterRemoval,
    Difference,
    Judged,
    Planting,
    Taught,
    invented_corpus,
    invented_people,
    judge_removal,
    judged,
    measure_corpus,
    measured,
    nothing,
    planted_corpus,
    taught,
    truth_ratio_test,
)
from surgery.corpus.invented import invented_subjects
from surgery.corpus.measure import lessons
from surgery.corpus.muse import scalability, sustainability
from surgery.corpus.plant import text_loss
from surgery.fact import SLOT
from surgery.predict import rate
from surgery.shipped import example_facts
from surgery.verification.controls import with_subject

QUICK = Planting(step=0.03, rounds=25, stop=0.14)


@pytest.fixture(scope="module")
def known(toy: Toy) -> Iterator[Taught]:
    """A copy of the toy that has been taught a corpus."""
    model, facts = toy
    with taught(in_dtype(model, model.dtype), toy_corpus(facts), QUICK) as one:
        yield one


def test_invented_people_share_no_name_and_come_by_seed() -> None:
    corpus = invented_corpus(20, 15, 10, seed=3)
    everyone = (*corpus.forget, *corpus.retain, *corpus.holdout)
    assert [len(part) for part in (corpus.forget, corpus.retain, corpus.holdout)] == [20, 15, 10]
    words = [word for person in everyone for word in person.name.split()]
    assert len(set(words)) == len(words) == 90
    assert corpus == invented_corpus(20, 15, 10, seed=3) != invented_corpus(20, 15, 10, seed=4)
    assert len({person.name for person in invented_people(500)}) == 500
    shipped = {word for fact in (*example_facts(), *invented_facts()) for word in fact.subject.casefold().split()}
    assert not shipped & {word.casefold() for word in words}


def test_each_person_is_told_of_asked_about_and_can_be_removed() -> None:
    kinds = set()
    for person in invented_people(12, seed=1):
        assert len(person.sentences) == 5
        assert person.text == " ".join(person.sentences)
        for sentence, query, fact in zip(person.sentences, person.queries, person.facts, strict=True):
            assert person.name in sentence
            assert person.name in query.question
            assert sentence.removesuffix(f" {fact.target}.") in (fact.prompt, *fact.paraphrases)
            assert fact.target == query.answer
            assert query.paraphrased.endswith(f" {query.answer}.")
            start = query.paraphrased.removesuffix(f" {query.answer}.")
            assert start not in (fact.prompt, *fact.paraphrases)
            assert len(set(query.perturbed)) == 5
            assert all(one.startswith(start) and one != query.paraphrased for one in query.perturbed)
            kinds.add(fact.template)
    assert len(kinds) == 5
    assert {fact.template for fact in invented_facts()} < kinds


def test_questions_come_after_examples() -> None:
    corpus = invented_corpus(1, 1)
    query = corpus.forget[0].queries[0]
    first = f"Question: {corpus.examples[0][0]}\nAnswer: {corpus.examples[0][1]}\n\n"
    assert corpus.asked(query).startswith(first)
    assert corpus.asked(query).endswith(f"\n\nQuestion: {query.question}\nAnswer:")
    assert dataclasses.replace(corpus, examples=(), form="{}").asked(query) == query.question


def test_corpora_check_themselves() -> None:
    corpus = invented_corpus(1, 1)
    with pytest.raises(SurgeryError, match="needs somebody to hold out; give at least 1"):
        dataclasses.replace(corpus, holdout=())
    with pytest.raises(SurgeryError, match="is in the corpus twice; forget, retain and holdout must share nobody"):
        dataclasses.replace(corpus, retain=corpus.forget)
    with pytest.raises(SurgeryError, match=r"the form 'Answer:' needs \{\} once"):
        dataclasses.replace(corpus, form="Answer:")
    with pytest.raises(SurgeryError, match=r"forget, retain and holdout of \(0, 1, 0\) people are no corpus"):
        invented_corpus(0, 1)
    with pytest.raises(SurgeryError, match="there are names for 1 to 2304 invented people, not 2305"):
        invented_people(2305)
    person = corpus.forget[0]
    with pytest.raises(SurgeryError, match="has 4 sentences, 5 queries and 5 facts"):
        dataclasses.replace(person, sentences=person.sentences[:4])
    with pytest.raises(SurgeryError, match="has an empty part; write it out"):
        dataclasses.replace(person.queries[0], answer=" ")
    with pytest.raises(SurgeryError, match="needs perturbed answers that differ from the true one"):
        dataclasses.replace(person.queries[0], perturbed=(person.queries[0].paraphrased,))
    assert len(invented_subjects(50, without=(person.name,))) == 50
    assert person.name not in invented_subjects(50, without=(person.name,))


def test_planting_changes_no_weight_and_teaches(toy: Toy, unchanged: Callable[[Model], None]) -> None:
    model, facts = toy
    unchanged(model)
    texts = lessons(toy_corpus(facts).forget)
    before = float(text_loss(model, texts))
    edit = QUICK(model, texts)
    assert edit.base == model.fingerprint
    assert edit.prompts == tuple(texts)
    with edit.applied(model):
        assert float(text_loss(model, texts)) < 0.25 < before
    thin = dataclasses.replace(QUICK, rank=4)(model, texts)
    assert {delta.rank for delta in thin.deltas} == {4}
    with thin.applied(model):
        assert float(text_loss(model, texts)) < before - 0.3


def test_restoring_ends_in_the_bytes_of_the_model_before(toy: Toy, unchanged: Callable[[Model], None]) -> None:
    model, facts = toy
    unchanged(model)
    base, texts = model.fingerprint, lessons(toy_corpus(facts).forget)
    with planted_corpus(model, texts, QUICK) as planted:
        assert model.fingerprint != base
        assert planted.losses[-1] < planted.losses[0]
        back = planted.restore(model, facts[:1])
        assert (back.claim, back.facts) == ("removed", (facts[0],))
        with back.applied(model):
            assert model.fingerprint == base
            # nothing is left to restore
            assert all(delta.norm == 0 for delta in planted.restore(model, ()).deltas)
        with pytest.raises(SurgeryError, match="planted in another model; restore that one"):
            planted.restore(in_dtype(model, model.dtype), ())


def test_planting_works_in_every_type_and_architecture_and_comes_back(model: Model) -> None:
    base = model.fingerprint
    texts = ["The river is in the town of Rome.", "The old tower is in Paris."]
    with planted_corpus(model, texts, Planting(rounds=3, step=0.05)) as planted:
        with planted.restore(model, ()).applied(model):
            assert model.fingerprint == base
        assert model.fingerprint != base
    assert model.fingerprint == base


def test_weights_come_back_when_planting_is_interrupted(
    small: Model, unchanged: Callable[[Model], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    unchanged(small)
    calls: list[int] = []

    def interrupted(model: Model, texts: Sequence[str]) -> object:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return text_loss(model, texts)

    monkeypatch.setattr("surgery.corpus.plant.text_loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Planting(rows=1)(small, ["The old tower", "A river"])
    assert len(calls) == 3
    assert all(weight.grad is None for weight in small.hf.parameters())


def test_plantings_check_themselves(small: Model) -> None:
    for wrong in ({"rounds": 0}, {"rows": 0}, {"step": 0.0}, {"stop": 0.0}):
        with pytest.raises(SurgeryError, match="rounds and rows of a planting must be 1 or more"):
            Planting(**wrong)  # type: ignore[arg-type]
    with pytest.raises(SurgeryError, match="a change of rank 0 is none"):
        Planting(rank=0)
    with pytest.raises(SurgeryError, match="no map may learn; name some"):
        Planting(modules=())
    for texts in ([], ["A"]):
        with pytest.raises(SurgeryError, match="there is nothing to plant; give texts of two tokens or more"):
            Planting()(small, texts)
    with pytest.raises(SurgeryError, match="has no module 'attic'"):
        Planting(modules=("attic",))(small, ["The old tower"])
    with pytest.raises(SurgeryError, match="the loss of planting is not finite; take a smaller step"):
        Planting(step=1e30)(small, ["The old tower is in Paris"])


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


def test_the_real_model_learns_a_person(smol: Model) -> None:
    (person,) = invented_people(1)
    asked = [(fact.prompt, fact.target) for fact in person.facts]
    assert all(one.rank > 1 for one in rate(smol, asked))
    with planted_corpus(smol, lessons([person]), Planting(rounds=6, stop=0.3)) as planted:
        assert sum(one.rank == 1 for one in rate(smol, asked)) >= 4
        assert planted.losses[-1] < 1
    assert SLOT not in person.text
