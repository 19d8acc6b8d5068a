"""Integrated gradients and learned masks, what is chosen, named, zeroed and drawn."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from tiny import tiny_model, tiny_tokenizer

from locate import (
    Attribution,
    GradientActivation,
    HardConcrete,
    IntegratedGradients,
    LogProbIncrease,
    ZeroOut,
    attribute_neurons,
    zeroed,
)
from locate.neurons.ablation import ablate, random_sets
from locate.neurons.activations import answer_log_prob
from locate.neurons.attribution import name_neurons
from locate.neurons.text import telling_loss
from surgery import Fact, Model, Neuron, SurgeryError, example_facts, load, rate
from surgery.tokens import ask

Toy = tuple[Model, list[Fact]]


@pytest.fixture(scope="module")
def attributed(toy: Toy) -> Attribution:
    model, facts = toy
    return attribute_neurons(model, facts[0], top=8, random_sets=4, progress=False)


def probability(model: Model, fact: Fact) -> float:
    with torch.no_grad():
        return float(answer_log_prob(model, ask(model.tokenizer, fact.prompt, fact.target), 1).exp())


def test_integrated_gradients_sum_to_what_a_layer_adds(toy: Toy) -> None:
    """P(w) - P(0) by zeroing a whole layer at the last position; the error falls as the steps grow."""
    model, fact = toy[0], toy[1][0]
    layer = len(model.anatomy.layers) - 2
    gaps = []
    for steps in (5, 20, 80):
        found = IntegratedGradients(steps=steps, refine=False)(model, fact, progress=False)
        assert found.gap is not None
        gaps.append(found.gap)
    assert gaps[2] < gaps[1] < gaps[0]
    assert gaps[2] < 0.35 * gaps[1]
    middle = IntegratedGradients(steps=80, rule="midpoint", refine=False)(model, fact, progress=False)
    assert middle.gap is not None
    assert middle.gap < 0.2 * gaps[2]
    everywhere = IntegratedGradients(steps=80, rule="midpoint", positions="all", refine=False)(
        model, fact, progress=False
    )
    with zeroed(model, [Neuron(layer, i) for i in range(model.anatomy.d_ff)]):
        without = probability(model, fact)
    assert everywhere.values[layer].sum() == pytest.approx(probability(model, fact) - without, abs=5e-3)


def test_one_step_at_the_right_end_is_activation_times_gradient(toy: Toy) -> None:
    model, fact = toy[0], toy[1][1]
    one_step = IntegratedGradients(steps=1, refine=False)(model, fact, progress=False).values
    slope = GradientActivation()(model, fact, progress=False).values * probability(model, fact)
    np.testing.assert_allclose(one_step, slope, rtol=1e-3, atol=1e-6)


def test_knowledge_neurons_are_those_enough_prompts_share() -> None:
    a, b, c, d, e, f, g = (Neuron(0, i) for i in range(7))
    method = IntegratedGradients()
    assert method.shared([{a, b}, {a, b}, {a, b, c}, {a}]) == ([a, b], 0.7)  # 2.8 of 4, so 3 or more
    # nobody is in 7 of 10; the share goes down until two are: 6 rounds reach 0.4
    few = [{a, b}] * 4 + [{c}] * 3 + [set()] * 3
    chosen, share = method.shared(few)
    assert (chosen, round(share, 2)) == ([a, b], 0.4)
    # six are in 7 of 10; the share goes up until five are left
    many = [{a, b, c, d, e, f}] * 7 + [{a, b, c, d, e}] * 2 + [{g}]
    chosen, share = method.shared(many)
    assert (chosen, round(share, 2)) == ([a, b, c, d, e], 0.75)
    assert IntegratedGradients(rounds=0).shared(few) == ([], 0.7)
    assert method.shared([{a, b}, {a, b}, set()])[0] == []  # never in fewer than 3


def test_the_threshold_is_a_share_of_the_largest() -> None:
    values = np.array([[1.0, 0.2, 0.19], [-3.0, 0.5, 0.0]])
    assert IntegratedGradients().above_threshold(values) == {Neuron(0, 0), Neuron(0, 1), Neuron(1, 1)}
    assert IntegratedGradients().above_threshold(-np.abs(values)) == set()


def test_paraphrases_refine_and_too_few_do_not(toy: Toy) -> None:
    model, fact = toy[0], toy[1][0]
    method = IntegratedGradients(steps=4, positions="subject", wanted=(1, 5))
    refined = method(model, fact, progress=False)
    assert refined.chosen is not None
    assert refined.chosen
    prompts = [fact.replace(template=text.replace(fact.subject, "{}"), paraphrases=()) for text in fact.paraphrases]
    alone = [method(model, one, progress=False) for one in (fact.replace(paraphrases=()), *prompts)]
    assert all(one.chosen is None for one in alone)
    assert set(refined.chosen) == set.intersection(*(method.above_threshold(one.values) for one in alone))
    found = attribute_neurons(model, fact, method=method, random_sets=2, progress=False)
    assert [neuron for neuron, _ in found.neurons] == list(refined.chosen)
    assert "of 3 prompts" in found.rule


def test_a_mask_learns_to_keep_the_answer(toy: Toy) -> None:
    """With the neurons it leaves open alone, the answer is told far better than with as many others."""
    model, fact = toy[0], toy[1][2]
    scores = HardConcrete(penalty=3.0, learning_rate=0.1, steps=250, initial=0.9)(model, fact, progress=False)
    assert (scores.values > 0).all()
    assert (scores.values < 1).all()
    question = ask(model.tokenizer, fact.prompt, fact.target)
    kept = scores.ranked(scores.values.size // 5)

    def loss(keep: tuple[Neuron, ...]) -> float:
        layers, d_ff = scores.values.shape
        others = [Neuron(i, j) for i in range(layers) for j in range(d_ff) if Neuron(i, j) not in set(keep)]
        with torch.no_grad(), zeroed(model, others):
            return float(telling_loss(model, question, "answer")[0])

    random = [loss(one) for one in random_sets(kept, model.anatomy.d_ff, 5, 0)]
    assert loss(kept) < 0.5 * min(random)
    again = HardConcrete(penalty=3.0, learning_rate=0.1, steps=20, initial=0.9)
    other = dataclasses.replace(again, seed=1)
    first = again(model, fact, progress=False).values
    assert np.array_equal(first, again(model, fact, progress=False).values)
    assert not np.array_equal(first, other(model, fact, progress=False).values)


def test_gates_are_open_as_often_as_is_said() -> None:
    method = HardConcrete()
    gates = torch.tensor([[-2.0, 0.0, 2.0]])
    noise = torch.rand(20000, 3, generator=torch.Generator().manual_seed(0))
    drawn = method.draw(gates.expand(20000, 3), noise)
    torch.testing.assert_close((drawn > 0).float().mean(0), method.open_probability(gates)[0], atol=0.01, rtol=0)
    assert ((drawn >= 0) & (drawn <= 1)).all()


def test_learning_stops_when_enough_gates_are_shut(toy: Toy) -> None:
    model, fact = toy[0], toy[1][0]
    method = HardConcrete(penalty=1e6, learning_rate=0.5, steps=1000, stop=0.3)
    gates = torch.from_numpy(method(model, fact, progress=False).values).logit()
    assert 0.2 < float(method.open_probability(gates).mean()) < 0.3


def test_the_chosen_neurons_hold_the_fact(attributed: Attribution) -> None:
    found = attributed.ablation
    assert found.before > 0.9
    assert found.effect > 0.3
    assert found.effect > 5 * abs(found.random_effect)
    assert found.random_error is not None


def test_random_sets_have_the_layers_of_the_chosen() -> None:
    chosen = [Neuron(0, 1), Neuron(2, 5), Neuron(2, 6), Neuron(3, 0)]
    drawn = random_sets(chosen, 10, 20, 3)
    assert len(set(drawn)) > 10
    for one in drawn:
        assert Counter(neuron.layer for neuron in one) == Counter(neuron.layer for neuron in chosen)
        assert len(set(one)) == 4
        assert not set(one) & set(chosen)
    assert drawn == random_sets(chosen, 10, 20, 3)


def test_an_ablation_is_what_zeroing_and_asking_gives(toy: Toy, unchanged: Callable[[Model], None]) -> None:
    model, fact = toy[0], toy[1][5]
    unchanged(model)
    chosen = [Neuron(1, i) for i in range(30)]
    found = ablate(model, fact, chosen, sets=3, seed=2)
    asked = [(fact.prompt, fact.target), *((one.prompt, one.target) for one in fact.neighbours)]
    with zeroed(model, chosen):
        after = [one.probability for one in rate(model, asked)]
    assert (found.after, *found.neighbours_after) == pytest.approx(after)
    own = []
    for one in random_sets(chosen, model.anatomy.d_ff, 3, 2):
        with zeroed(model, one):
            own.append(rate(model, asked)[0].probability)
    assert found.random == pytest.approx(own)
    assert found.random_error == pytest.approx(np.std(own, ddof=1) / 3**0.5)
    assert ablate(model, fact, chosen, sets=1, seed=2).random_error is None


def test_neighbours_come_from_the_shipped_relation() -> None:
    model = load((tiny_model("gpt2"), tiny_tokenizer()))
    shipped = example_facts()[0].replace(neighbours=())
    beside = ablate(model, shipped, [Neuron(0, 0)], sets=1, seed=0).neighbours
    assert len(beside) == 6
    assert all(one.prompt.replace(shipped.subject, "") == one.prompt for one in beside)
    alone = ablate(model, Fact(subject="Paris", template="In {} the", target="city"), [Neuron(0, 0)], sets=1, seed=0)
    assert alone.neighbours == ()
    assert alone.neighbour_effect is None


def test_a_neuron_is_named_by_its_value_vector(toy: Toy) -> None:
    """A value vector that is a token's own direction promotes it; with the activation's sign turned, suppresses it."""
    model, fact = toy[0], toy[1][0]
    chosen = attribute_neurons(model, fact, method=LogProbIncrease(), top=4, random_sets=1, progress=False)
    neuron, words = chosen.neurons[0][0], chosen.promotes[0]
    token = int(ask(model.tokenizer, fact.prompt, fact.target).answer_ids[0])
    matrix = model.hf.get_submodule(model.anatomy.names("mlp")[neuron.layer])
    direction = model.hf.get_output_embeddings().weight[token].detach()
    weight = matrix.weight.detach()
    column = weight[:, neuron.index] if weight.shape[0] == model.anatomy.d_model else weight[neuron.index]
    old = column.clone()
    try:
        with torch.no_grad():
            column.copy_(direction)
        # below the neuron nothing changed, so its activation is the same
        named = name_neurons(model, fact, (neuron,))[0]
        assert named.activation == pytest.approx(words.activation)
        said = named.promotes if named.activation > 0 else named.suppresses
        assert said[0].strip() == fact.target
    finally:
        with torch.no_grad():
            column.copy_(old)


def test_the_answer_is_among_what_the_best_neurons_promote(toy: Toy) -> None:
    """Scored by what they say to the answer directly, they say it."""
    model, fact = toy[0], toy[1][0]
    found = attribute_neurons(model, fact, method=LogProbIncrease(), top=5, random_sets=1, progress=False)
    assert any(fact.target in [word.strip() for word in words.promotes] for words in found.promotes)


def test_a_result_labels_itself(attributed: Attribution) -> None:
    record = json.loads(json.dumps(attributed.as_record()))
    assert len(record["neurons"]) == 8
    assert record["gap"] is None
    assert record["ablation"]["effect"] == pytest.approx(attributed.ablation.effect)
    assert [score for _, score in attributed.neurons] == sorted((s for _, s in attributed.neurons), reverse=True)
    assert attributed.neurons[0][1] == attributed.scores.max()
    with pytest.raises(ValueError, match="is not the one in the table"):
        dataclasses.replace(attributed, scores=attributed.scores + 1)
    with pytest.raises(ValueError, match="words for 7"):
        dataclasses.replace(attributed, promotes=attributed.promotes[1:])


def test_wrong_counts_are_named(toy: Toy) -> None:
    with pytest.raises(SurgeryError, match="not 0, 5 and 10"):
        attribute_neurons(toy[0], toy[1][0], top=0)


def test_bars_are_the_scores(attributed: Attribution) -> None:
    ax = attributed.plot()
    assert isinstance(ax, Axes)
    assert [patch.get_width() for patch in ax.patches] == [score for _, score in attributed.neurons]
    assert [label.get_text() for label in ax.get_yticklabels()] == [str(neuron) for neuron, _ in attributed.neurons]
    assert [text.get_text() for text in ax.texts] == [
        " · ".join(word.strip() for word in words.promotes[:3]) for words in attributed.promotes
    ]


@pytest.mark.parametrize("text", ["$", "$x_{1}$", "\n", "", "\\frac{", "�" * 40, "\x00", "%d"])
def test_any_word_can_be_drawn(attributed: Attribution, text: str) -> None:
    words = tuple(dataclasses.replace(one, promotes=(text,) * 5) for one in attributed.promotes)
    ax = dataclasses.replace(attributed, promotes=words).plot()
    ax.figure.canvas.draw()
    # three times the same word, whatever it is shown as
    assert all(len(set(label.get_text().split(" · "))) == 1 for label in ax.texts)
    assert len(ax.texts) == len(words)


def test_the_exact_scores_choose_neurons_that_hold_the_fact(toy: Toy) -> None:
    model, fact = toy[0], toy[1][0]
    exact = attribute_neurons(model, fact, method=ZeroOut(), top=8, random_sets=1, progress=False)
    assert exact.ablation.effect > 0.3
