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
from tiny import ARCHITECTURES, VARIANTS, tiny_model, tiny_tokenizer
from torch import nn

from edits import (
    METHODS,
    Limits,
    Method,
    NearCollapse,
    RankOne,
    Replace,
    Statistics,
    Suppress,
    fit_statistics,
    method_named,
    recommended_site,
    register,
)
from surgery import Edit, Fact, Model, Site, SurgeryError, WrongWeights, load
from surgery.shipped import neutral_texts
from surgery.verification.drift import perplexity

SITE = Site("L1.mlp")
NEURONS = ("zero-neurons", "scale-neurons", "replace-neurons")
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
Quick = Callable[..., Method]
everywhere = pytest.mark.parametrize(("tiny", "quick"), PAIRS, indirect=True)


def able(method: Method, *facts: Fact) -> list[Fact]:
    """The facts as a method can edit them: without new answers where it only removes."""
    return [fact.replace(new_target=None) for fact in facts] if method.name == "zero-neurons" else list(facts)


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
    return method(model, able(method, *facts), [SITE])


@pytest.fixture(scope="session")
def made(tiny: Model, tiny_statistics: Statistics, quick: Quick, tiny_fact: Fact, other_fact: Fact) -> Made:
    runs = 0

    def count(module: Any, args: Any, output: Any) -> None:
        nonlocal runs
        runs += 1

    def state() -> dict[str, Any]:
        return {
            "weights": tiny.fingerprint,
            "logits": logits(tiny, tiny_fact).tolist(),
            "random numbers": torch.get_rng_state().tolist(),
            "hooks": [name for name, one in tiny.hf.named_modules() if one._forward_hooks or one._forward_pre_hooks],
            "gradients": [
                name for name, one in tiny.hf.named_parameters() if one.requires_grad or one.grad is not None
            ],
        }

    tiny.block_axes  # noqa: B018 (worked out once a model, by runs of its own)
    before = state()
    with count_runs(tiny, count):
        edit = compute(tiny, quick(tiny_statistics), tiny_fact, other_fact)
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
    assert tiny_fact.prompt in edit.prompts
    assert not set(edit.prompts) & set(tiny_fact.paraphrases)
    with edit.applied(tiny):
        assert (logits(tiny, tiny_fact) - before).abs().max() > 1e-3
    assert torch.equal(logits(tiny, tiny_fact), before)


@everywhere
def test_an_edit_that_is_broken_off_leaves_the_weights_as_they_were(
    tiny: Model,
    made: Made,
    tiny_statistics: Statistics,
    quick: Quick,
    tiny_fact: Fact,
    other_fact: Fact,
    unchanged: Callable[[Model], None],
    request: pytest.FixtureRequest,
) -> None:
    unchanged(tiny)
    base, method = tiny.fingerprint, quick(tiny_statistics)
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
    tiny_statistics: Statistics,
    quick: Quick,
    tiny_fact: Fact,
    request: pytest.FixtureRequest,
) -> None:
    model = load((copy.deepcopy(tiny.hf).to(torch.bfloat16), tiny.tokenizer))
    base, edit = model.fingerprint, dataclasses.replace(made.edit, base=model.fingerprint)
    if request.node.callspec.params["tiny"] in BOTH or edit.method == "rank-one":
        own = quick(dataclasses.replace(tiny_statistics, fingerprints=(base,)))
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
    methods = [quick(fit_statistics(model, [tiny_fact.prompt] * 5, [1], rank=8, progress=False)) for model in models]
    found = [method(model, able(method, tiny_fact), [SITE]) for method, model in zip(methods, models, strict=True)]
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


def test_a_model_whose_weights_want_gradients_gets_the_same_edit_and_keeps_wanting(
    gpt2: Model, gpt2_statistics: Statistics, quick: Quick, tiny_fact: Fact
) -> None:
    method = quick(gpt2_statistics)
    wanted = method(gpt2, able(method, tiny_fact), [SITE])
    trainable = load((tiny_model("gpt2").requires_grad_(True), tiny_tokenizer()))
    edit = method(trainable, able(method, tiny_fact), [SITE])
    for delta, same in zip(edit.deltas, wanted.deltas, strict=True):
        assert torch.equal(delta.left, same.left)
    with edit.applied(trainable):
        pass
    assert trainable.fingerprint == gpt2.fingerprint
    assert all(weight.requires_grad for weight in trainable.hf.parameters())


def test_facts_that_cannot_be_edited_together_or_at_all_are_refused(
    gpt2: Model, gpt2_statistics: Statistics, quick: Quick, tiny_fact: Fact, unchanged: Callable[[Model], None]
) -> None:
    unchanged(gpt2)
    gone = tiny_fact.replace(new_target=None)
    with pytest.raises(SurgeryError, match="1 of 2 facts name a new_target; rewrite and remove in two edits"):
        quick(gpt2_statistics)(gpt2, [tiny_fact, gone], [SITE])
    with pytest.raises(SurgeryError, match="there is no fact to edit"):
        quick(gpt2_statistics)(gpt2, [], [SITE])
    with pytest.raises(SurgeryError, match=r"no new_target to replace 'Paris'|serves the objective 'suppress', not"):
        quick(gpt2_statistics, objective=Replace())(gpt2, [tiny_fact, gone], [SITE])
    method = quick(gpt2_statistics)
    if method.name != "zero-neurons":
        both = [tiny_fact, tiny_fact.replace(new_target="Oslo")]
        with pytest.raises(SurgeryError, match=r"cannot be answered by both '.*' and 'Oslo'; leave one of them away"):
            method(gpt2, both, [SITE])


def test_an_edit_tells_what_made_it_and_what_it_does(
    gpt2: Model, gpt2_statistics: Statistics, quick: Quick, tiny_fact: Fact
) -> None:
    method = quick(gpt2_statistics)
    edit = method(gpt2, able(method, tiny_fact), [SITE])
    wanted = Suppress() if method.name == "zero-neurons" else Replace()
    assert edit.settings["objective"] == wanted.name
    assert set(edit.settings["objective_settings"]) == {one.name for one in dataclasses.fields(wanted)}
    size = float(gpt2.anatomy.matrix(SITE).norm())
    before = perplexity(gpt2, neutral_texts()[:6])
    with edit.applied(gpt2):
        after = perplexity(gpt2, neutral_texts()[:6])
    assert edit.log[0]["total_change"] == pytest.approx(edit.deltas[0].norm / size, rel=1e-4)
    assert edit.log[0]["perplexity_ratio"] == pytest.approx(after / before, rel=1e-4)


def test_every_method_stops_before_a_limit(
    gpt2: Model, gpt2_statistics: Statistics, quick: Quick, tiny_fact: Fact, unchanged: Callable[[Model], None]
) -> None:
    unchanged(gpt2)
    for limit, told in (("relative_change", "the weights would have changed"), ("perplexity", "the perplexity of")):
        method = quick(gpt2_statistics, limits=Limits(**{limit: 1e-9}))
        with pytest.raises(NearCollapse, match=f"after 0 of 1 facts {told}"):
            method(gpt2, able(method, tiny_fact), [SITE])


def test_statistics_of_other_weights_are_refused(gpt2_statistics: Statistics, quick: Quick, tiny_fact: Fact) -> None:
    other = load((tiny_model("gpt2", seed=1), tiny_tokenizer()))
    method = quick(gpt2_statistics)
    assert method.uses_statistics == hasattr(method, "statistics")
    if method.uses_statistics:
        with pytest.raises(WrongWeights, match="fitted on other weights"):
            method(other, tiny_fact, [SITE])


def test_without_sites_a_method_edits_those_it_says(gpt2: Model, quick: Quick, tiny_fact: Fact) -> None:
    assert recommended_site(gpt2) == Site("L0.mlp")  # a sixth of four layers
    method = quick(fit_statistics(gpt2, [tiny_fact.prompt] * 5, range(4), rank=8, progress=False))
    edited = [delta.module for delta in method(gpt2, able(method, tiny_fact)).deltas]
    own = [gpt2.anatomy.name(site) for site in method.sites(gpt2)]
    assert edited == [name for name in own if name in edited]
    assert edited == own or method.name in NEURONS  # which may leave a layer out


def test_methods_are_found_by_name_and_registered_once() -> None:
    for name, made in METHODS.items():
        assert made.name == name
        assert isinstance(method_named(name), Method)
    with pytest.raises(SurgeryError, match=r"'rome'; choose one of .*rank-one"):
        method_named("rome")
    with pytest.raises(ValueError, match="there is a method 'rank-one' already"):
        register(RankOne)
