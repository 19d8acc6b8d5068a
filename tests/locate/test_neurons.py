"""Scores of neurons against brute force, and what must hold of them in every architecture."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import numpy as np
import pytest
import torch

from locate import GradientActivation, HardConcrete, IntegratedGradients, LogProbIncrease, ZeroOut, zeroed
from locate.neurons.activations import activations, answer_log_prob, columns
from locate.neurons.stream import read_stream
from locate.neurons.text import check_told
from surgery import Fact, Model, Neighbour, Neuron, Site, SurgeryError, rate
from surgery.hooks import TraceDict, hidden
from surgery.tokens import ask, ask_fact

METHODS = [
    LogProbIncrease(),
    GradientActivation(),
    GradientActivation(positions="subject"),
    GradientActivation(positions="all"),
    IntegratedGradients(steps=2, refine=False),
    HardConcrete(steps=2, penalty=1.0),
    HardConcrete(steps=2, penalty=1.0, told="all"),
    ZeroOut(positions="last"),
]


@pytest.fixture(scope="module")
def short() -> Fact:
    return Fact(subject="Paris", template="In {} the", target="city", neighbours=[Neighbour("In Rome the", "city")])


def log_prob(model: Model, fact: Fact) -> float:
    question = ask(model.tokenizer, fact.prompt, fact.target)
    with torch.no_grad():
        return float(answer_log_prob(model, question, 1))


def test_what_neurons_add_sums_to_what_the_mlp_adds(
    tiny: Model, short: Fact, unchanged: Callable[[Model], None]
) -> None:
    unchanged(tiny)
    question = ask(tiny.tokenizer, short.prompt, short.target)
    stream = read_stream(tiny, question)
    states = tiny.anatomy.names("state")
    with torch.no_grad(), TraceDict(tiny.hf, states, clone=True) as seen:
        tiny.hf(torch.tensor([question.prompt_ids]))
    for layer, name in enumerate(states):
        after = hidden(seen[name].output, 1)[0, -1]
        bias = getattr(tiny.hf.get_submodule(tiny.anatomy.names("mlp")[layer]), "bias", None)
        bias = 0 if bias is None else bias * stream.gains[layer]
        total = stream.before[layer] + stream.added(layer).sum(0) + bias
        torch.testing.assert_close(total, after, rtol=1e-4, atol=1e-4 * float(after.abs().max()))


def test_log_prob_increase_is_that_of_the_definition(tiny: Model, short: Fact) -> None:
    """In the layer before last and the last, for some neurons, one at a time and in float64 after the head."""
    question = ask(tiny.tokenizer, short.prompt, short.target)
    scores = LogProbIncrease()(tiny, short, progress=False).values
    assert scores.shape == (len(tiny.anatomy.layers), tiny.anatomy.d_ff)
    stream, answer = read_stream(tiny, question), question.answer_ids[0]
    for layer in (len(scores) - 2, len(scores) - 1):
        before = tiny.anatomy.unembed(stream.before[layer]).double().log_softmax(-1)[answer]
        for i in (0, 17, tiny.anatomy.d_ff - 1):
            column = tiny.anatomy.matrix(_mlp(layer))[:, i]
            value = stream.activations[layer, i] * stream.gains[layer] * column
            after = tiny.anatomy.unembed(stream.before[layer] + value).double().log_softmax(-1)[answer]
            assert scores[layer, i] == pytest.approx(float(after - before), abs=2e-5)
    assert np.abs(scores).max() > 1e-2


def test_the_last_layers_neurons_need_no_approximation(gpt2: Model, short: Fact) -> None:
    """In the last layer, the stream without all neurons but one is the model with the others zeroed."""
    last = len(gpt2.anatomy.layers) - 1
    scores = LogProbIncrease()(gpt2, short, progress=False).values[last]
    matrix = gpt2.hf.get_submodule(gpt2.anatomy.names("mlp")[last])
    bias = matrix.bias.detach().clone()
    with torch.no_grad():
        matrix.bias.zero_()
    try:
        everything = [Neuron(last, i) for i in range(gpt2.anatomy.d_ff)]
        with zeroed(gpt2, everything):
            nothing = log_prob(gpt2, short)
        for i in (0, 5, 40):
            with zeroed(gpt2, everything[:i] + everything[i + 1 :]):
                assert log_prob(gpt2, short) - nothing == pytest.approx(scores[i], abs=1e-5)
    finally:
        with torch.no_grad():
            matrix.bias.copy_(bias)


@pytest.mark.parametrize("positions", ["last", "subject", "all"])
def test_the_gradient_is_the_slope_of_scaling_a_neuron(tiny: Model, short: Fact, positions: str) -> None:
    """Against finite differences, by scaling the whole position's neurons of a layer."""
    scores = GradientActivation(positions=positions)(tiny, short, progress=False).values
    if positions != "all":
        assert not np.allclose(scores, GradientActivation(positions="all")(tiny, short, progress=False).values)
        return
    for layer in (0, len(scores) - 1):
        found = []
        for scale in (1.02, 0.98):
            with zeroed(tiny, [Neuron(layer, i) for i in range(scores.shape[1])], scale=scale):
                found.append(log_prob(tiny, short))
        assert (found[0] - found[1]) / 0.04 == pytest.approx(scores[layer].sum(), rel=3e-2, abs=2e-3)


def test_zeroing_is_what_editing_the_weights_would_do(tiny: Model, short: Fact) -> None:
    """The down-projection's columns at 0 give the same answer; and a neuron matters, or nothing is shown."""
    chosen = [Neuron(1, 3), Neuron(1, 8), Neuron(2, 30)]
    asked = [(short.prompt, short.target)]
    before = rate(tiny, asked)[0].probability
    with zeroed(tiny, chosen):
        hooked = rate(tiny, asked)[0].probability
    matrices = [(tiny.anatomy.matrix(_mlp(one.layer)), one.index) for one in chosen]
    old = [matrix[:, i].detach().clone() for matrix, i in matrices]
    try:
        with torch.no_grad():
            for matrix, i in matrices:
                matrix[:, i] = 0
        assert rate(tiny, asked)[0].probability == pytest.approx(hooked, rel=1e-4)
    finally:
        with torch.no_grad():
            for (matrix, i), column in zip(matrices, old, strict=True):
                matrix[:, i] = column
    assert abs(before - hooked) > 1e-3 * before
    with zeroed(tiny, chosen, scale=1.0):
        assert rate(tiny, asked)[0].probability == before


def test_zero_out_is_zeroing_one_at_a_time(llama: Model, short: Fact) -> None:
    scores = ZeroOut()(llama, short, progress=False).values
    clean = log_prob(llama, short)
    for neuron in (Neuron(0, 0), Neuron(1, 33), Neuron(3, 79)):
        with zeroed(llama, [neuron]):
            lost = clean - log_prob(llama, short)
        assert scores[neuron.layer, neuron.index] == pytest.approx(lost, abs=1e-5)


def test_gradients_estimate_zero_out(gpt2: Model, short: Fact) -> None:
    exact = ZeroOut()(gpt2, short, progress=False).values
    estimate = GradientActivation(positions="all")(gpt2, short, progress=False).values
    assert np.corrcoef(exact.ravel(), estimate.ravel())[0, 1] > 0.8
    elsewhere = GradientActivation(positions="last")(gpt2, short, progress=False).values
    assert np.corrcoef(exact.ravel(), elsewhere.ravel())[0, 1] < np.corrcoef(exact.ravel(), estimate.ravel())[0, 1]


def test_activations_are_the_down_projections_inputs(tiny: Model, short: Fact) -> None:
    question = ask(tiny.tokenizer, short.prompt, short.target)
    names = tiny.anatomy.names("mlp")
    found = activations(tiny, question, range(question.answer_start))
    with torch.no_grad(), TraceDict(tiny.hf, names, retain_input=True) as seen:
        tiny.hf(torch.tensor([question.prompt_ids]))
    for layer, name in enumerate(names):
        torch.testing.assert_close(found[layer], hidden(seen[name].input, 1)[0])


@pytest.mark.parametrize("method", [METHODS[0], *METHODS[3:6]], ids=str)
def test_every_method_leaves_the_model_alone_and_repeats_itself(
    tiny: Model, short: Fact, method: LogProbIncrease, unchanged: Callable[[Model], None]
) -> None:
    unchanged(tiny)
    flags = [weight.requires_grad for weight in tiny.hf.parameters()]
    first = method(tiny, short, progress=False)
    assert first.values.shape == (len(tiny.anatomy.layers), tiny.anatomy.d_ff)
    assert np.ptp(first.values) > 0
    assert np.array_equal(first.values, method(tiny, short, progress=False).values)
    assert [weight.requires_grad for weight in tiny.hf.parameters()] == flags
    assert all(weight.grad is None for weight in tiny.hf.parameters())


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_no_hook_is_left_after_an_interruption(
    gpt2: Model,
    short: Fact,
    method: LogProbIncrease,
    unchanged: Callable[[Model], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unchanged(gpt2)

    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(gpt2.hf.get_submodule(gpt2.anatomy.names("mlp")[-1]), "forward", interrupt)
    with pytest.raises(KeyboardInterrupt):
        method(gpt2, short, progress=False)


def test_wrong_values_are_named(gpt2: Model, short: Fact) -> None:
    with pytest.raises(SurgeryError, match=r"no neuron L4\.n0: GPT2LMHeadModel has layers 0 to 3 of 80 neurons"):
        with zeroed(gpt2, [Neuron(4, 0)]):
            pass
    question, span = ask_fact(gpt2.tokenizer, short, short.target)
    with pytest.raises(SurgeryError, match=r"no positions 'first'; choose one of last, subject, all"):
        inspect.unwrap(columns)(question, span, "first")  # past the tests' type checks, which users do not run
    with pytest.raises(SurgeryError, match="choose 'answer' or 'all'"):
        check_told("prompt")
    with pytest.raises(SurgeryError, match="steps 0 are above 0"):
        HardConcrete(steps=0)
    with pytest.raises(SurgeryError, match=r"stop 1\.0 .* are shares"):
        HardConcrete(stop=1.0)
    left = IntegratedGradients()
    object.__setattr__(left, "rule", "left")
    with pytest.raises(SurgeryError, match="choose 'right' or 'midpoint'"):
        left.__post_init__()
    with pytest.raises(SurgeryError, match=r"share 1\.5 are shares"):
        IntegratedGradients(share=1.5)
    with pytest.raises(SurgeryError, match="no range of counts"):
        IntegratedGradients(wanted=(5, 2))


def _mlp(layer: int) -> Site:
    return Site.at(layer, "mlp")
