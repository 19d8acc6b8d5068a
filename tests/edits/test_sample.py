"""The facts a sweep samples by itself: what the model knows, each with a new answer of its neighbours."""

from __future__ import annotations

import pytest
from sweeping import Toy

import edits.sample
from edits import sample_facts
from edits.sample import with_new_answers
from surgery import Fact, Neighbour, SurgeryError, rate


def test_new_answers_are_those_of_neighbours() -> None:
    fact = Fact(
        subject="a", template="{} is", target="x", neighbours=[Neighbour(f"{n} is", n) for n in ("x", "y", "z", "w")]
    )
    drawn = {with_new_answers([fact], seed=seed)[0].new_target for seed in range(30)}
    assert drawn == {"y", "z", "w"}
    assert with_new_answers([fact], seed=5) == with_new_answers([fact], seed=5)
    assert with_new_answers([fact.replace(new_target="v")])[0].new_target == "v"
    with pytest.raises(SurgeryError, match="has no new_target to try"):
        with_new_answers([fact.replace(neighbours=fact.neighbours[:1])])


def test_facts_are_sampled_from_what_the_model_knows(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    model, everybody = toy
    templates = list(dict.fromkeys(fact.template for fact in everybody))
    unknown = [fact.replace(target=with_new_answers([fact])[0].new_target) for fact in everybody]

    def shipped(name: str) -> list[Fact]:
        known = name != templates[0]
        return [fact for fact in (everybody if known else unknown) if fact.template == name]

    monkeypatch.setattr(edits.sample, "relations", lambda: tuple(templates))
    monkeypatch.setattr(edits.sample, "example_facts", shipped)
    found = sample_facts(model, 6, seed=1)
    assert len({fact.subject + fact.template for fact in found}) == 6
    assert [sum(fact.template == one for fact in found) for one in templates] == [0, 3, 3]
    for fact in found:
        assert rate(model, [(fact.prompt, fact.target)])[0].rank == 1
        assert fact.new_target in {one.target for one in shipped(fact.template)} - {fact.target}
    assert found == sample_facts(model, 6, seed=1) != sample_facts(model, 6, seed=2)
    with pytest.raises(SurgeryError, match="knows 60 of the shipped facts, not 61"):
        sample_facts(model, 61)
    with pytest.raises(SurgeryError, match="a sample of 0 facts"):
        sample_facts(model, 0)
