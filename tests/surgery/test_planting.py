"""Invented people, and a model that is taught texts about them and gets every byte back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import pytest
from by_hand import Toy, in_dtype
from toy_corpus import QUICK, toy_corpus

from surgery import Model, SurgeryError, invented_facts
from surgery.corpus import Planting, invented_corpus, invented_people, planted_corpus
from surgery.corpus.invented import invented_subjects
from surgery.corpus.measure import lessons
from surgery.corpus.plant import text_loss
from surgery.predict import rate
from surgery.shipped import example_facts


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


def test_the_real_model_learns_a_person(smol: Model) -> None:
    (person,) = invented_people(1)
    asked = [(fact.prompt, fact.target) for fact in person.facts]
    assert all(one.rank > 1 for one in rate(smol, asked))
    with planted_corpus(smol, lessons([person]), Planting(rounds=6, stop=0.3)) as planted:
        assert sum(one.rank == 1 for one in rate(smol, asked)) >= 4
        assert planted.losses[-1] < 1
