"""What holds of every registered editing method, on every architecture."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from every_method import Quick, able, sites_of
from left import hooks_left
from tiny import ARCHITECTURES, VARIANTS, tiny_model, tiny_tokenizer
from torch import nn

from edits import (
    METHODS,
    Method,
    Statistics,
    fit_statistics,
)
from surgery import Edit, Fact, Model, WrongWeights, load

COPIES = ("alphaedit", "emmet", "memit", "nas", "pmet", "ft-l", "scale-neurons", "replace-neurons")
"""Methods whose way through a model is another one's: two architectures are enough."""
EVERY = (*ARCHITECTURES, *VARIANTS)
BOTH = ("gpt2", "llama")
PAIRS = [
    (architecture, method)
    for architecture in EVERY
    for method in METHODS
    if method not in COPIES or architecture in BOTH
]
everywhere = pytest.mark.parametrize(("tiny", "quick"), PAIRS, indirect=True)


def logits(model: Model, fact: Fact) -> torch.Tensor:
    with torch.no_grad():
        return model.hf(torch.tensor([model.tokenizer(fact.prompt)["input_ids"]])).logits


@dataclass(frozen=True)
class Made:
    """An edit of two facts for all who only look at it, and what computing it did besides.

    Attributes:
        edit: the edit.
        runs: how often the model was run for it.
        disturbed: what of the process is not as it was.
    """

    edit: Edit
    runs: int
    disturbed: tuple[str, ...]


def compute(model: Model, method: Method, *facts: Fact) -> Edit:
    model.perplexities.clear()  # so that every computation goes through the same runs
    return method(model, able(method, *facts), sites_of(method, model))


@pytest.fixture(scope="session")
def made(tiny: Model, two_layers: Statistics, quick: Quick, tiny_fact: Fact, other_fact: Fact) -> Made:
    runs = 0

    def count(module: Any, args: Any, output: Any) -> None:
        nonlocal runs
        runs += 1

    def state() -> dict[str, Any]:
        return {
            "weights": tiny.fingerprint,
            "logits": logits(tiny, tiny_fact).tolist(),
            "random numbers": torch.get_rng_state().tolist(),
            "hooks": hooks_left(tiny),
            "gradients": [
                name for name, one in tiny.hf.named_parameters() if one.requires_grad or one.grad is not None
            ],
        }

    tiny.block_axes  # noqa: B018 (worked out once a model, by runs of its own)
    before = state()
    with count_runs(tiny, count):
        edit = compute(tiny, quick(two_layers), tiny_fact, other_fact)
    after = state()
    return Made(edit, runs, tuple(name for name in before if before[name] != after[name]))


@contextmanager
def count_runs(model: Model, count: Callable[[Any, Any, Any], None]) -> Iterator[None]:
    """`count` is called whenever the model is run."""
    handle = model.hf.get_input_embeddings().register_forward_hook(count)
    try:
        yield
    finally:
        handle.remove()


@everywhere
def test_computing_an_edit_changes_nothing_and_applying_it_does(
    tiny: Model, made: Made, tiny_fact: Fact, other_fact: Fact
) -> None:
    edit, before = made.edit, logits(tiny, tiny_fact)
    assert made.disturbed == ()
    assert edit.base == tiny.fingerprint
    assert [fact.subject for fact in edit.facts] == [tiny_fact.subject, other_fact.subject]
    assert len(edit.deltas) == len(sites_of(METHODS[edit.method](), tiny))
    assert tiny_fact.prompt in edit.prompts
    assert not set(edit.prompts) & set(tiny_fact.paraphrases)
    with edit.applied(tiny):
        assert (logits(tiny, tiny_fact) - before).abs().max() > 1e-3
    assert torch.equal(logits(tiny, tiny_fact), before)


@everywhere
def test_an_edit_that_is_broken_off_leaves_the_weights_as_they_were(
    tiny: Model,
    made: Made,
    two_layers: Statistics,
    quick: Quick,
    tiny_fact: Fact,
    other_fact: Fact,
    unchanged: Callable[[Model], None],
    request: pytest.FixtureRequest,
) -> None:
    unchanged(tiny)
    base, method = tiny.fingerprint, quick(two_layers)
    assert made.runs > 1
    # each architecture at a place of its own, so that every method is broken off all along its way
    architecture = request.node.callspec.params["tiny"]
    places = (0.0, 0.5, 1.0) if architecture in BOTH else (EVERY.index(architecture) / (len(EVERY) - 1),)
    for place, error in zip(places, (KeyboardInterrupt, RuntimeError, KeyboardInterrupt), strict=False):
        calls, call = iter(range(1, 1000)), 1 + round(place * (made.runs - 1))

        def interrupt(
            module: Any, args: Any, output: Any, calls: Any = calls, call: int = call, error: Any = error
        ) -> None:
            if next(calls) == call:
                raise error("in the middle")

        with count_runs(tiny, interrupt), pytest.raises(error, match="in the middle"):
            compute(tiny, method, tiny_fact, other_fact)
        assert tiny.fingerprint == base


def fingerprints(model: Model, edit: Edit) -> list[str]:
    """Of the weights as they are, with the edit, and after its undo."""
    found = [model.fingerprint]
    undo = edit.apply(model)
    assert undo.changed > 0
    found.append(model.fingerprint)
    undo()
    return [*found, model.fingerprint]


@everywhere
def test_undoing_brings_back_every_bit(tiny: Model, made: Made) -> None:
    before, edited, after = fingerprints(tiny, made.edit)
    assert before == after != edited


@everywhere
def test_undoing_brings_back_every_bit_of_half_as_many(
    tiny: Model,
    made: Made,
    two_layers: Statistics,
    quick: Quick,
    tiny_fact: Fact,
    request: pytest.FixtureRequest,
) -> None:
    model = load((copy.deepcopy(tiny.hf).to(torch.bfloat16), tiny.tokenizer))
    base, edit = model.fingerprint, dataclasses.replace(made.edit, base=model.fingerprint)
    if request.node.callspec.params["tiny"] in BOTH or edit.method == "rank-one":
        own = quick(dataclasses.replace(two_layers, fingerprints=(base,)))
        edit = compute(model, own, tiny_fact)
    before, edited, after = fingerprints(model, edit)
    assert base == before == after != edited


def test_the_same_weights_stored_the_other_way_round_get_the_same_edit(quick: Quick, tiny_fact: Fact) -> None:
    convolved = tiny_model("gpt2")
    linear = copy.deepcopy(convolved)
    for block in linear.transformer.h:
        old = block.mlp.c_proj
        block.mlp.c_proj = nn.Linear(old.weight.shape[0], old.weight.shape[1])
        block.mlp.c_proj.weight.data = old.weight.data.T.contiguous()
        block.mlp.c_proj.bias.data = old.bias.data
    linear.requires_grad_(False)
    models = [load((hf, tiny_tokenizer())) for hf in (convolved, linear)]
    methods = [quick(fit_statistics(model, [tiny_fact.prompt] * 5, [0, 1], rank=8, progress=False)) for model in models]
    found = [compute(model, method, tiny_fact) for method, model in zip(methods, models, strict=True)]
    for delta, other in zip(*(edit.deltas for edit in found), strict=True):
        assert delta.dense().shape == (convolved.config.n_embd, convolved.config.n_inner)
        torch.testing.assert_close(
            delta.dense(), other.dense(), rtol=1e-3, atol=1e-5 * float(delta.dense().abs().max())
        )
    before = logits(models[0], tiny_fact)
    with found[0].applied(models[0]), found[1].applied(models[1]):
        torch.testing.assert_close(logits(models[0], tiny_fact), logits(models[1], tiny_fact), rtol=1e-3, atol=1e-3)
        assert (logits(models[0], tiny_fact) - before).abs().max() > 1e-2


@everywhere
def test_a_file_holds_the_whole_edit_and_fits_its_weights_only(
    tiny: Model, made: Made, tiny_fact: Fact, tmp_path: Path
) -> None:
    edit = made.edit
    back = Edit.load(edit.save(tmp_path / "edit.safetensors"))
    for delta, kept in zip(edit.deltas, back.deltas, strict=True):
        assert torch.equal(delta.left, kept.left)
        assert torch.equal(delta.right, kept.right)
    assert {**back.summary(), "weights": None} == {**edit.summary(), "weights": None}
    assert (back.facts, back.prompts, back.claim) == (edit.facts, edit.prompts, edit.claim)
    with edit.applied(tiny):
        wanted = logits(tiny, tiny_fact)
        with pytest.raises(WrongWeights, match="made for other weights"):
            back.apply(tiny)  # not twice
    with back.applied(tiny):
        assert torch.equal(logits(tiny, tiny_fact), wanted)
    other = load((tiny_model("gpt2", seed=1), tiny_tokenizer()))
    base = other.fingerprint
    with pytest.raises(WrongWeights, match="made for other weights"):
        back.apply(other)
    assert other.fingerprint == base
