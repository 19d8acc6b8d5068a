"""Neurons zeroed, scaled and rewritten: columns by hand, the sign of an activation, neurons of several facts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from answers_by_hand import activation, answer_ids
from sweeping import FAR

from edits import MaximumEntropy, Method, ReplaceNeurons, ScaleNeurons, Suppress, ZeroNeurons
from locate import GradientActivation, zeroed
from locate.neurons import Scores
from surgery import Edit, Fact, Model, Neuron, Site, SurgeryError
from surgery.predict import rate

MADE_UP = tuple(Neuron(layer, index) for layer, index in ((0, 3), (0, 11), (1, 5), (2, 40), (2, 41), (3, 0)))


@dataclass(frozen=True)
class Given:
    """An attribution that chooses neurons it was given, and notes what it is asked."""

    neurons: tuple[Neuron, ...] = MADE_UP
    asked: list[Fact] = field(default_factory=list)

    def __call__(self, model: Model, fact: Fact, *, progress: bool = True) -> Scores:
        self.asked.append(fact)
        values = np.zeros((len(model.anatomy.layers), model.anatomy.d_ff))
        return Scores(values, "made up", chosen=self.neurons)


@pytest.fixture(scope="module")
def gone(tiny_fact: Fact) -> Fact:
    return tiny_fact.replace(new_target=None)


def logits(model: Model, fact: Fact) -> torch.Tensor:
    with torch.no_grad():
        return model.hf(torch.tensor([model.tokenizer(fact.prompt)["input_ids"]])).logits


def columns(edit: Edit, model: Model) -> dict[Neuron, torch.Tensor]:
    """What an edit adds to each neuron's column."""
    layers = {layer.mlp: i for i, layer in enumerate(model.anatomy.layers)}
    found = {}
    for delta in edit.deltas:
        for j in delta.dense().abs().sum(0).nonzero()[:, 0].tolist():
            found[Neuron(layers[delta.module], j)] = delta.dense()[:, j]
    return found


@pytest.mark.parametrize(("method", "scale"), [(ZeroNeurons, 0.0), (ScaleNeurons, 2.0)], ids=["zero", "scale"])
def test_a_column_written_is_an_activation_scaled(
    tiny: Model, tiny_fact: Fact, method: type[Any], scale: float, unchanged: Callable[[Model], None]
) -> None:
    unchanged(tiny)
    fact = tiny_fact if scale > 1 else tiny_fact.replace(new_target=None)
    edit = method(attribution=Given(), progress=False)(tiny, fact)
    assert sum(delta.rank for delta in edit.deltas) == len(MADE_UP)
    assert edit.log[0]["neurons"] == [str(one) for one in MADE_UP]
    before = logits(tiny, fact)
    with zeroed(tiny, MADE_UP, scale=scale):
        wanted = logits(tiny, fact)
    assert (wanted - before).abs().max() > 1e-3
    with edit.applied(tiny):
        torch.testing.assert_close(logits(tiny, fact), wanted, rtol=1e-3, atol=1e-3)


def test_a_neuron_of_two_facts_is_zero_and_not_turned_around(
    gpt2: Model, gone: Fact, other_fact: Fact, unchanged: Callable[[Model], None]
) -> None:
    unchanged(gpt2)
    facts = [gone, other_fact.replace(new_target=None)]
    with ZeroNeurons(attribution=Given(), progress=False)(gpt2, facts).applied(gpt2):
        for one in MADE_UP:
            assert (gpt2.anatomy.matrix(Site.at(one.layer, "mlp"))[:, one.index] == 0).all()


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_new_answer_is_written_with_the_activations_sign(
    by_name: Callable[[str], Model], name: str, tiny_fact: Fact
) -> None:
    model = by_name(name)
    edit = ReplaceNeurons(attribution=Given(), old=1.0, new=8.0, limits=FAR, progress=False)(model, tiny_fact)
    head = model.hf.get_output_embeddings().weight.double()
    old, new = (head[answer_ids(model, tiny_fact.prompt, text)[0]] for text in ("Paris", str(tiny_fact.new_target)))
    found, signs = columns(edit, model), set()
    assert set(found) == set(MADE_UP)
    for one in MADE_UP:
        active = activation(model, one.layer, one.index, tiny_fact.prompt)
        size = model.anatomy.matrix(Site.at(one.layer, "mlp"))[:, one.index].double().norm()
        sign = -1 if active < 0 else 1
        wanted = sign * size * (8.0 * new / new.norm() - old / old.norm())
        torch.testing.assert_close(found[one].double(), wanted, rtol=1e-4, atol=1e-6)
        # what it adds to the stream at the prompt's end points to the new answer, which BERT's rule would not
        assert active * float(found[one].double() @ (new - old)) > 0
        signs.add(sign)
    assert signs == {-1, 1}


def test_neurons_are_the_best_of_the_layers_given_and_the_old_answers(gpt2: Model, tiny_fact: Fact, gone: Fact) -> None:
    scores = GradientActivation()(gpt2, gone).values
    edit = ZeroNeurons(count=3, attribution=GradientActivation(), progress=False)(gpt2, gone, [Site("L2.mlp")])
    best = np.argsort(-scores[2], kind="stable")[:3]
    assert edit.log[0]["neurons"] == [f"L2.n{i}" for i in best]
    assert [delta.module for delta in edit.deltas] == [gpt2.anatomy.name(Site("L2.mlp"))]
    for method, answer in ((ReplaceNeurons, "Paris"), (ScaleNeurons, "Rome")):
        given = Given()
        method(attribution=given, progress=False)(gpt2, tiny_fact)
        assert [fact.target for fact in given.asked] == [answer]
        assert given.asked[0].paraphrases == ()  # they judge the edit


def test_an_answer_goes_with_its_neurons(toy: tuple[Model, list[Fact]], unchanged: Callable[[Model], None]) -> None:
    model, facts = toy
    unchanged(model)
    fact = facts[27]
    draws = np.random.RandomState(0).choice(len(model.anatomy.layers) * model.anatomy.d_ff, 60, replace=False)
    anything = Given(tuple(Neuron(int(i) // model.anatomy.d_ff, int(i) % model.anatomy.d_ff) for i in draws))
    asked = [(fact.prompt, fact.target)]
    before = rate(model, asked)[0].probability
    own, other = (
        ZeroNeurons(count=60, attribution=one, progress=False)(model, fact) for one in (GradientActivation(), anything)
    )
    assert (own.claim, own.settings["objective"]) == ("removed", "suppress")
    with own.applied(model):
        assert rate(model, asked)[0].probability < 0.3 * before
    with other.applied(model):
        assert rate(model, asked)[0].probability > 0.6 * before


@pytest.mark.parametrize(
    ("method", "removed", "message"),
    [
        (ZeroNeurons(), False, "zero-neurons as it is set serves the objective 'suppress', not 'replace'"),
        (ZeroNeurons(objective=MaximumEntropy()), True, "'suppress', not 'maximum-entropy'; give it facts that are to"),
        (ScaleNeurons(), True, "scale-neurons as it is set serves the objective 'replace', not 'neutral'"),
        (ScaleNeurons(factor=0.5), False, "scale-neurons as it is set serves the objective 'suppress', not 'replace'"),
        (ReplaceNeurons(objective=Suppress()), True, "replace-neurons as it is set serves the objective 'replace'"),
        (
            ZeroNeurons(objective=Suppress(weight=3.0)),
            True,
            r"knows no settings of an objective; give it Suppress\(\) as",
        ),
    ],
    ids=lambda one: one.name if isinstance(one, Method) else "",
)
def test_what_neurons_cannot_be_made_to_say_is_refused(
    gpt2: Model, tiny_fact: Fact, gone: Fact, method: Method, removed: bool, message: str
) -> None:
    with pytest.raises(SurgeryError, match=message):
        method(gpt2, gone if removed else tiny_fact)


def test_settings_that_write_nothing_are_refused(gpt2: Model, gone: Fact) -> None:
    with pytest.raises(SurgeryError, match="zero-neurons writes to at least 1 neuron a fact, not 0"):
        ZeroNeurons(count=0)
    with pytest.raises(SurgeryError, match="a factor of 1 changes nothing"):
        ScaleNeurons(factor=1.0)
    method = ZeroNeurons(attribution=Given(neurons=MADE_UP[:1]), progress=False)
    with pytest.raises(SurgeryError, match="finds no neurons of these facts in the layers given"):
        method(gpt2, gone, [Site("L3.mlp")])
    weaker = ScaleNeurons(factor=-1.0, attribution=Given(), progress=False)(gpt2, gone)
    assert weaker.claim == "removed"
    assert dataclasses.replace(weaker, log=()).settings["factor"] == -1.0
