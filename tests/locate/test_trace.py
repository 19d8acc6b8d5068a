"""Causal traces against a literal re-implementation of the published protocol, and what must hold of any trace."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from locate import Gaussian, Trace, causal_trace, causal_traces
from locate.corrupt import subject_embedding_std
from surgery import Fact, Model, Site, Span, SurgeryError
from surgery.site import Kind

SAMPLES, SEED, STD = 2, 4, 0.7


@pytest.fixture(scope="module")
def short(tiny: Model) -> Fact:
    return short_fact(tiny)


def short_fact(model: Model) -> Fact:
    """A short prompt with words before its subject, and the word this random model finds likeliest after it."""
    tokenizer = model.tokenizer
    with torch.no_grad():
        order = model.hf(torch.tensor([tokenizer("In Paris the")["input_ids"]])).logits[0, -1].argsort(descending=True)
    words = (str(tokenizer.convert_ids_to_tokens(int(i))) for i in order)
    target = next(word[1:] for word in words if word[0] == "Ġ" and word[1:].isalpha() and word.isprintable())
    return Fact(subject="Paris", template="In {} the", target=target)


def plain(model: Model, fact: Fact, **options: Any) -> Trace:
    options = {"corruption": Gaussian(std=STD), "samples": SAMPLES, "seed": SEED, **options}
    return causal_trace(model, fact, method="plain", progress=False, **options)


def published(
    model: Model, fact: Fact, kind: Kind, window: int
) -> tuple[float, float, np.ndarray[Any, Any], tuple[int, int]]:
    """Clean and corrupted probability, all cells' probabilities [positions, layers, samples], the subject's tokens.

    As in the published code: one batch of a clean row and noisy rows, in which each cell's noisy rows are given the
    clean row's states by forward hooks.
    """
    encoded = model.tokenizer(fact.prompt, return_offsets_mapping=True)
    ids = encoded["input_ids"]
    answer = model.tokenizer(f"{fact.prompt} {fact.target}")["input_ids"][len(ids)]
    start = fact.prompt.index(fact.subject)
    hit = [i for i, (a, b) in enumerate(encoded["offset_mapping"]) if a < start + len(fact.subject) and b > start]
    begin, end = hit[0], hit[-1] + 1
    embedding = model.hf.get_input_embeddings()
    noise = np.random.RandomState(SEED).randn(SAMPLES, end - begin, embedding.weight.shape[1]) * STD
    rows, width = SAMPLES + 1, len(ids)
    modules = [model.hf.get_submodule(name) for name in model.anatomy.names(kind)]

    def add_noise(module: Any, args: Any, output: torch.Tensor) -> None:
        output[1:, begin:end] += torch.from_numpy(noise).to(output)

    def restore_at(position: int) -> Callable[..., None]:
        def restore(module: Any, args: Any, output: Any) -> None:
            states = (output[0] if isinstance(output, tuple) else output).view(rows, width, -1)
            states[1:, position] = states[0, position]

        return restore

    def run(position: int | None, layers: range) -> torch.Tensor:
        handles = [embedding.register_forward_hook(add_noise)]
        if position is not None:
            handles += [modules[layer].register_forward_hook(restore_at(position)) for layer in layers]
        try:
            with torch.no_grad():
                return model.hf(torch.tensor([ids] * rows)).logits[:, -1].double().softmax(-1)[:, answer]
        finally:
            for handle in handles:
                handle.remove()

    unrestored = run(None, range(0))
    depth = len(modules)
    cells = [
        [
            run(i, range(max(0, layer - window // 2), min(depth, layer - (-window // 2))))[1:].numpy()
            for layer in range(depth)
        ]
        for i in range(width)
    ]
    return float(unrestored[0]), float(unrestored[1:].mean()), np.array(cells), (begin, end)


@pytest.mark.parametrize(("kind", "window"), [("state", 1), ("mlp", 2), ("attention", 3)])
def test_scores_are_those_of_the_published_protocol(
    tiny: Model, short: Fact, kind: Kind, window: int, unchanged: Callable[[Model], None]
) -> None:
    unchanged(tiny)
    clean, corrupted, cells, (begin, end) = published(tiny, short, kind, window)
    found = plain(tiny, short, kind=kind, window=window)
    assert found.clean == pytest.approx(clean, abs=1e-5)
    assert found.corrupted == pytest.approx(corrupted, abs=1e-5)
    np.testing.assert_allclose(found.scores, cells.mean(-1), atol=1e-5)
    np.testing.assert_allclose(found.errors, cells.std(-1, ddof=1) / SAMPLES**0.5, atol=1e-5)
    assert found.subject == Span(begin, end)
    assert (found.window, found.samples) == (window, SAMPLES)
    assert np.ptp(cells.mean(-1)) > 1e-3  # else any scores would do


def test_without_noise_every_score_is_the_clean_one(tiny: Model, short: Fact) -> None:
    found = plain(tiny, short, kind="mlp", window=2, corruption=Gaussian(std=0.0), samples=1)
    np.testing.assert_allclose(found.scores, found.clean, atol=1e-6)
    assert found.corrupted == pytest.approx(found.clean, abs=1e-6)


def test_what_restoring_cannot_or_must_undo(tiny: Model, short: Fact) -> None:
    states = plain(tiny, short)
    assert states.subject.start > 0
    assert abs(states.clean - states.corrupted) > 1e-4
    assert states.scores[-1, -1] == pytest.approx(states.clean, abs=1e-6)
    mlp = plain(tiny, short, kind="mlp", window=2)
    for found in (states, mlp):
        np.testing.assert_allclose(found.effects[: found.subject.start], 0, atol=1e-6)
        assert np.abs(found.effects[found.subject.last :]).max() > 1e-5


def test_a_seed_is_its_numbers(gpt2: Model) -> None:
    first, again, other = (plain(gpt2, short_fact(gpt2), seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first.scores, again.scores)
    assert first.corrupted == again.corrupted
    assert not np.allclose(first.scores, other.scores)
    assert first.clean == other.clean


@pytest.mark.parametrize(("error", "call"), [(KeyboardInterrupt, 1), (RuntimeError, 2), (KeyboardInterrupt, 5)])
def test_a_trace_that_is_broken_off_leaves_the_model_as_it_was(
    tiny: Model, short: Fact, error: type[BaseException], call: int, unchanged: Callable[[Model], None]
) -> None:
    unchanged(tiny)
    calls = iter(range(1, 10_000))

    def interrupt(module: Any, args: Any, output: Any) -> None:
        if next(calls) == call:
            raise error("in the middle")

    handle = tiny.hf.get_submodule(tiny.anatomy.layers[2].mlp).register_forward_hook(interrupt)
    try:
        with pytest.raises(error, match="in the middle"):
            plain(tiny, short, kind="mlp", window=3)
    finally:
        handle.remove()


def test_a_peak_is_the_highest_score(gpt2: Model) -> None:
    found = plain(gpt2, short_fact(gpt2))
    scores = np.zeros_like(found.scores)
    scores[-1, 3], scores[found.subject.start, 1] = 0.9, 0.5
    made = dataclasses.replace(found, scores=scores)
    assert made.peak() == Site.at(3, "state", len(scores) - 1)
    assert made.peak(made.subject) == Site.at(1, "state", made.subject.start)


def test_scores_that_are_no_probabilities_or_unlabelled_are_refused(gpt2: Model) -> None:
    found = plain(gpt2, short_fact(gpt2))
    for wrong in (found.scores - 1, found.scores + 1.1):
        with pytest.raises(ValueError, match="probabilities"):
            dataclasses.replace(found, scores=wrong)
    with pytest.raises(ValueError, match="without a single score"):
        dataclasses.replace(found, scores=found.scores * np.nan)
    with pytest.raises(ValueError, match="do not label"):
        dataclasses.replace(found, tokens=found.tokens[:-1])


def test_a_record_is_json_and_complete(gpt2: Model) -> None:
    found = plain(gpt2, short_fact(gpt2), kind="mlp", window=2)
    record = json.loads(json.dumps(found.as_record()))
    assert np.array_equal(record["scores"], found.scores)
    assert np.array_equal(record["errors"], found.errors)
    assert Fact.from_record(record["fact"]) == found.fact
    assert record["subject"] == [found.subject.start, found.subject.stop]
    assert record["peak"] == found.peak().name
    assert "".join(record["tokens"]) == found.fact.prompt


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": ["neuron"]}, "'neuron'.*state, mlp, attention"),
        ({"kinds": ["mlp", "mlp"]}, "each kind.*once"),
        ({"kinds": []}, "each kind.*once"),
        ({"method": "slow"}, "'slow'.*plain"),
        ({"direction": "sideways"}, "'sideways'.*restore, noise"),
        ({"positions": "verbs"}, "'verbs'.*last-subject"),
        ({"severed": "state"}, "'state'.*mlp, attention"),
        ({"severed": "mlp"}, "kind 'state' alone"),
        ({"tokens": 0}, "at least 1"),
        ({"samples": 0}, "at least 1"),
        ({"window": 0}, "at least 1"),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(gpt2: Model, options: dict[str, Any], message: str) -> None:
    # without the tests' own type checks, as a user calls it
    with pytest.raises(SurgeryError, match=message):
        inspect.unwrap(causal_traces)(gpt2, short_fact(gpt2), **{"method": "plain", **options})


def test_the_trace_of_a_trained_model_points_at_early_mlps_of_the_subject(toy: tuple[Model, list[Fact]]) -> None:
    model, facts = toy
    noise = Gaussian(std=3 * subject_embedding_std(model, facts))
    for fact in facts[::30]:
        found = plain(model, fact, kind="mlp", window=1, corruption=noise, samples=10)
        assert found.clean > 0.8
        peak = found.peak(found.subject)
        assert peak.layer in (0, 1)
        assert found.scores[found.subject.start : found.subject.stop, :2].max() > found.corrupted + 0.1
        assert found.peak() == peak
