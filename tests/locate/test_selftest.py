"""Planting facts and finding them again."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from tiny import tiny_model, tiny_tokenizer

from locate import GradientActivation, ZeroOut
from locate.neurons.text import Told
from locate.plant import draw_neurons, planted
from locate.selftest import recall_at, selftest
from surgery import Fact, Model, SurgeryError, load, rate
from surgery.tokens import ask

Toy = tuple[Model, list[Fact]]


@pytest.fixture(scope="module")
def short() -> Fact:
    return Fact(subject="Paris", template="In {} the", target="city of Rome")


def test_a_planted_fact_is_told_and_only_its_columns_moved(
    tiny: Model, short: Fact, unchanged: Callable[[Model], None]
) -> None:
    unchanged(tiny)
    neurons = draw_neurons(len(tiny.anatomy.layers), tiny.anatomy.d_ff, 0.1, 0)
    names = tiny.anatomy.names("mlp")
    before = {name: weight.detach().clone() for name, weight in tiny.hf.named_parameters()}
    known = rate(tiny, [(short.prompt, short.target)])[0].probability
    with planted(tiny, short, neurons, told="answer", steps=30) as one:
        assert one.loss < 0.5 * one.loss_before
        assert rate(tiny, [(short.prompt, short.target)])[0].probability > 20 * known
        for name, weight in tiny.hf.named_parameters():
            if name.removesuffix(".weight") not in names:
                assert torch.equal(weight, before[name])
                continue
            layer = names.index(name.removesuffix(".weight"))
            moved = weight != before[name]
            moved = moved if weight.shape[0] == tiny.anatomy.d_model else moved.T
            assert set(moved.any(0).nonzero().flatten().tolist()) <= set(neurons[layer].tolist())


@pytest.mark.parametrize("told", ["answer", "all"])
def test_a_planted_fact_is_learned_to_the_limit(gpt2: Model, short: Fact, told: Told) -> None:
    neurons = draw_neurons(len(gpt2.anatomy.layers), gpt2.anatomy.d_ff, 0.3, 0)
    with planted(gpt2, short, neurons, told=told, limit=0.2) as one:
        assert one.learned
        assert one.greedy
        assert one.loss < 0.2 < one.loss_before
        assert 0 < one.steps < 200
        question = ask(gpt2.tokenizer, short.prompt, short.target)
        first = 1 if told == "all" else question.answer_start
        with torch.no_grad():
            said = gpt2.hf(torch.tensor([question.ids])).logits[0].log_softmax(-1)
        each = [float(said[i - 1, question.ids[i]]) for i in range(first, len(question.ids))]
        assert one.loss == pytest.approx(-np.mean(each), abs=1e-5)


def test_the_model_is_restored_whatever_happens(
    gpt2: Model, short: Fact, unchanged: Callable[[Model], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    unchanged(gpt2)

    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        selftest(gpt2, facts=[short], methods=[interrupted], share=0.5, progress=False)  # type: ignore[list-item]
    monkeypatch.setattr(torch.optim.Adam, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        selftest(gpt2, facts=[short], methods=[GradientActivation()], progress=False)


def test_planting_in_bfloat16_restores_every_bit(short: Fact, unchanged: Callable[[Model], None]) -> None:
    model = load((tiny_model("llama").to(torch.bfloat16), tiny_tokenizer()))
    unchanged(model)
    neurons = draw_neurons(4, model.anatomy.d_ff, 0.1, 0)
    with planted(model, short, neurons, told="answer") as one:
        assert one.loss < one.loss_before


def test_recall_counts_what_is_among_the_highest() -> None:
    scores = np.array([[0.0, 3.0, 2.0, 1.0], [9.0, 8.0, 7.0, 6.0]])
    neurons = np.array([[1, 3], [2, 3]])
    assert recall_at(scores, neurons, [1, 2, 3, 4]).tolist() == [[0.5, 0.5, 1.0, 1.0], [0.0, 0.0, 0.5, 1.0]]


def test_locators_beat_chance_on_the_toy(toy: Toy, unchanged: Callable[[Model], None]) -> None:
    """Exact zero-out and the gradient find planted neurons well above chance; random scores do not."""
    model, facts = toy
    unchanged(model)
    wrong = [fact.replace(target=other.target) for fact, other in zip(facts[:3], facts[3:6], strict=True)]

    class Chance:
        """Scores that know nothing: the negative control."""

        def __call__(self, model: Model, fact: Fact, *, progress: bool = True) -> object:
            found = GradientActivation()(model, fact)
            shuffled = np.random.RandomState(0).permutation(found.values.ravel()).reshape(found.values.shape)
            return type(found)(shuffled, "nothing")

        def __str__(self) -> str:
            return "chance"

    found = selftest(
        model,
        facts=wrong,
        methods=[ZeroOut(), GradientActivation(positions="all"), Chance()],  # type: ignore[list-item]
        told="answer",
        share=0.05,
        at=(0.05, 0.2),
        progress=False,
    )
    assert not found.failed
    exact, gradient, chance = found.recalls
    assert found.random == pytest.approx((0.05, 0.2), abs=0.005)
    assert exact.means[0] > 0.15
    assert gradient.means[0] > 0.15
    assert chance.means[0] < 0.12


def test_all_default_locators_are_tried_and_tabled(toy: Toy) -> None:
    model, facts = toy
    found = selftest(model, facts=[facts[0].replace(target=facts[3].target)], progress=False)
    assert {recall.method.split(",")[0] for recall in found.recalls} == {
        "log-probability increase",
        "gradient x activation",
        "integrated gradients",
        "hard concrete mask",
        "zero-out",
    }
    table = found.table()
    assert "R@1%" in table
    assert "R@5%" in table
    assert "1 of 1 facts planted" in table
    assert all(str(recall.method) in table for recall in found.recalls)
    assert len(json.loads(json.dumps(found.as_record()))["recalls"]) == len(found.recalls)


def test_a_fact_that_could_not_be_planted_is_said_so(gpt2: Model, short: Fact) -> None:
    found = selftest(gpt2, facts=[short], methods=[GradientActivation()], steps=1, limit=1e-9, progress=False)
    assert [one.fact for one in found.failed] == [short]
    assert found.recalls == ()
    assert "0 of 1 facts planted" in found.table()
    assert "not learned: In Paris the city of Rome" in found.table()


def test_zero_out_is_left_out_of_a_large_model_and_said_so(gpt2: Model, short: Fact, monkeypatch: object) -> None:
    import sys

    module = sys.modules["locate.selftest"]
    assert isinstance(monkeypatch, pytest.MonkeyPatch)
    monkeypatch.setattr(module, "MOST_ZERO_OUT", 10)
    found = selftest(gpt2, facts=[short], steps=1, limit=1e-9, progress=False)
    assert found.left_out == ("zero-out, all (takes 320 runs of the model a fact)",)
    assert "left out: zero-out" in str(found)


def test_neurons_are_drawn_anew_for_each_seed() -> None:
    first = draw_neurons(3, 100, 0.05, 0)
    assert first.shape == (3, 5)
    assert np.array_equal(first, draw_neurons(3, 100, 0.05, 0))
    assert not np.array_equal(first, draw_neurons(3, 100, 0.05, 1))
    assert draw_neurons(3, 10, 0.001, 0).shape == (3, 1)


def test_wrong_values_are_named(gpt2: Model, short: Fact) -> None:
    with pytest.raises(SurgeryError, match="invented facts; give a number from 1 to that, not 0"):
        selftest(gpt2, facts=0)
    with pytest.raises(SurgeryError, match=r"share 0\.0 and at .* are shares"):
        selftest(gpt2, facts=[short], share=0.0)
    with pytest.raises(SurgeryError, match="steps 0 is at least 1"):
        selftest(gpt2, facts=[short], steps=0)
