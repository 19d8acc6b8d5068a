"""What holds of every registered editing method, on every architecture."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer
from torch import nn

from edits import (
    METHODS,
    Method,
    Neutral,
    RankOne,
    Replace,
    Statistics,
    ValueSearch,
    fit_statistics,
    method_named,
    recommended_site,
    register,
)
from edits.values import find_value
from surgery import Edit, Fact, Model, Site, SurgeryError, WrongWeights, load

SITE = Site("L1.mlp")
CONTEXTS = ("{}", "It rained. {}")
Quick = Callable[..., Method]


def logits(model: Model, fact: Fact) -> torch.Tensor:
    with torch.no_grad():
        return model.hf(torch.tensor([model.tokenizer(fact.prompt)["input_ids"]])).logits


@pytest.fixture(scope="module")
def other_fact(tiny_fact: Fact) -> Fact:
    return tiny_fact.replace(subject="The river", new_target="Berlin")


def test_computing_an_edit_changes_nothing_and_applying_it_does(
    tiny: Model,
    tiny_statistics: Statistics,
    quick: Quick,
    tiny_fact: Fact,
    other_fact: Fact,
    unchanged: Callable[[Model], None],
) -> None:
    unchanged(tiny)
    before, random = logits(tiny, tiny_fact), torch.get_rng_state()
    edit = quick(tiny_statistics)(tiny, [tiny_fact, other_fact], [SITE])
    assert torch.equal(logits(tiny, tiny_fact), before)
    assert torch.equal(torch.get_rng_state(), random)
    assert edit.base == tiny.fingerprint
    assert edit.facts == (tiny_fact, other_fact)
    assert tiny_fact.prompt in edit.prompts
    assert not set(edit.prompts) & set(tiny_fact.paraphrases)
    with edit.applied(tiny):
        assert (logits(tiny, tiny_fact) - before).abs().max() > 1e-3
    assert torch.equal(logits(tiny, tiny_fact), before)


def test_an_edit_that_is_broken_off_leaves_the_weights_as_they_were(
    tiny: Model,
    tiny_statistics: Statistics,
    quick: Quick,
    tiny_fact: Fact,
    other_fact: Fact,
    unchanged: Callable[[Model], None],
) -> None:
    unchanged(tiny)
    base = tiny.fingerprint
    for error, call in ((KeyboardInterrupt, 1), (RuntimeError, 3), (KeyboardInterrupt, 9)):
        calls = iter(range(1, 1000))

        def interrupt(
            module: Any, args: Any, output: Any, calls: Any = calls, call: int = call, error: Any = error
        ) -> None:
            if next(calls) == call:
                raise error("in the middle")

        handle = tiny.hf.get_input_embeddings().register_forward_hook(interrupt)
        try:
            with pytest.raises(error, match="in the middle"):
                quick(tiny_statistics)(tiny, [tiny_fact, other_fact], [SITE])
        finally:
            handle.remove()
        assert tiny.fingerprint == base


def test_an_edit_broken_off_between_facts_is_undone(
    gpt2: Model, gpt2_statistics: Statistics, tiny_fact: Fact, other_fact: Fact, unchanged: Callable[[Model], None]
) -> None:
    unchanged(gpt2)
    old = gpt2.anatomy.matrix(SITE).clone()

    def interrupt(module: Any, args: Any, output: Any) -> None:
        if not torch.equal(gpt2.anatomy.matrix(SITE), old):  # the first fact's change is in, for the second one
            raise KeyboardInterrupt

    handle = gpt2.hf.get_input_embeddings().register_forward_hook(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            small(gpt2_statistics)(gpt2, [tiny_fact, other_fact], [SITE])
    finally:
        handle.remove()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_undoing_brings_back_every_bit(
    tiny: Model, tiny_statistics: Statistics, quick: Quick, tiny_fact: Fact, dtype: torch.dtype
) -> None:
    model, statistics = tiny, tiny_statistics
    if dtype != torch.float32:
        model = load((copy.deepcopy(tiny.hf).to(dtype), tiny.tokenizer))
        statistics = dataclasses.replace(tiny_statistics, fingerprints=(model.fingerprint,))
    base = model.fingerprint
    edit = quick(statistics)(model, tiny_fact, [SITE])
    assert model.fingerprint == base
    undo = edit.apply(model)
    assert undo.changed > 0
    assert model.fingerprint != base
    undo()
    assert model.fingerprint == base


def small(statistics: Statistics, **settings: Any) -> RankOne:
    settings = {"contexts": CONTEXTS, "search": ValueSearch(steps=3), "progress": False, **settings}
    return RankOne(statistics=statistics, **settings)


def test_the_edited_matrix_gives_the_key_its_new_value(
    tiny: Model, tiny_statistics: Statistics, tiny_fact: Fact
) -> None:
    edit = small(tiny_statistics)(tiny, tiny_fact, [SITE])
    value = find_value(tiny, tiny_fact, SITE, Replace(), CONTEXTS, ValueSearch(steps=3))
    with edit.applied(tiny):
        found = tiny.anatomy.matrix(SITE).double() @ value.key.double()
    wanted = value.old.double() + value.shift.double()
    assert (found - wanted).norm() < 1e-4 * wanted.norm()
    assert value.shift.norm() > 1e-2 * wanted.norm()
    assert [delta.module for delta in edit.deltas] == [tiny.anatomy.name(SITE)]
    assert edit.deltas[0].rank == 1


def test_facts_are_edited_one_after_the_other(
    gpt2: Model, gpt2_statistics: Statistics, tiny_fact: Fact, other_fact: Fact
) -> None:
    method = small(gpt2_statistics)
    both = method(gpt2, [tiny_fact, other_fact], [SITE]).deltas[0]
    first = method(gpt2, tiny_fact, [SITE])
    alone = method(gpt2, other_fact, [SITE]).deltas[0]
    assert both.rank == 2
    assert torch.equal(both.left[:, :1], first.deltas[0].left)
    assert not torch.equal(both.left[:, 1:], alone.left)
    with first.applied(gpt2):
        second = find_value(gpt2, other_fact, SITE, Replace(), CONTEXTS, ValueSearch(steps=3))
    torch.testing.assert_close(both.left[:, 1], second.shift, rtol=1e-4, atol=1e-6)


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
    found = [
        quick(fit_statistics(model, [tiny_fact.prompt] * 5, [1], rank=8, progress=False))(model, tiny_fact, [SITE])
        for model in models
    ]
    for delta, other in zip(*(edit.deltas for edit in found), strict=True):
        assert delta.dense().shape == (convolved.config.n_embd, convolved.config.n_inner)
        torch.testing.assert_close(
            delta.dense(), other.dense(), rtol=1e-3, atol=1e-5 * float(delta.dense().abs().max())
        )
    before = logits(models[0], tiny_fact)
    with found[0].applied(models[0]), found[1].applied(models[1]):
        torch.testing.assert_close(logits(models[0], tiny_fact), logits(models[1], tiny_fact), rtol=1e-3, atol=1e-3)
        assert (logits(models[0], tiny_fact) - before).abs().max() > 1e-2


def test_a_file_holds_the_whole_edit_and_fits_its_weights_only(
    tiny: Model, tiny_statistics: Statistics, quick: Quick, tiny_fact: Fact, tmp_path: Path
) -> None:
    edit = quick(tiny_statistics)(tiny, tiny_fact, [SITE])
    back = Edit.load(edit.save(tmp_path / "edit.safetensors"))
    assert back.summary() == edit.summary()
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


def test_a_seed_is_its_edit(gpt2: Model, gpt2_statistics: Statistics, tiny_fact: Fact) -> None:
    def made(seed: int) -> Edit:
        search = ValueSearch(steps=3)
        method = RankOne(statistics=gpt2_statistics, count=3, length=4, search=search, seed=seed, progress=False)
        return method(gpt2, tiny_fact, [SITE])

    first, again, other = made(1), made(1), made(2)
    assert first.settings["contexts"] == again.settings["contexts"] != other.settings["contexts"]
    assert len(first.settings["contexts"]) == 4
    for side in ("left", "right"):
        assert torch.equal(getattr(first.deltas[0], side), getattr(again.deltas[0], side))
        assert not torch.equal(getattr(first.deltas[0], side), getattr(other.deltas[0], side))


def test_a_model_whose_weights_want_gradients_gets_the_same_edit_and_keeps_wanting(
    gpt2: Model, gpt2_statistics: Statistics, quick: Quick, tiny_fact: Fact
) -> None:
    wanted = quick(gpt2_statistics)(gpt2, tiny_fact, [SITE])
    trainable = load((tiny_model("gpt2").requires_grad_(True), tiny_tokenizer()))
    edit = quick(gpt2_statistics)(trainable, tiny_fact, [SITE])
    for delta, same in zip(edit.deltas, wanted.deltas, strict=True):
        assert torch.equal(delta.left, same.left)
    with edit.applied(trainable):
        pass
    assert trainable.fingerprint == gpt2.fingerprint
    assert all(weight.requires_grad for weight in trainable.hf.parameters())


def test_the_claim_follows_from_the_facts(gpt2: Model, gpt2_statistics: Statistics, tiny_fact: Fact) -> None:
    removal = small(gpt2_statistics)(gpt2, tiny_fact.replace(new_target=None), [SITE])
    rewrite = small(gpt2_statistics)(gpt2, tiny_fact, [SITE])
    assert (removal.claim, removal.settings["objective"]) == ("removed", "neutral")
    assert (rewrite.claim, rewrite.settings["objective"]) == ("rewritten", "replace")
    assert small(gpt2_statistics, objective=Neutral())(gpt2, tiny_fact, [SITE]).claim == "removed"


def test_facts_that_cannot_be_edited_together_or_at_all_are_refused(
    gpt2: Model, gpt2_statistics: Statistics, quick: Quick, tiny_fact: Fact, unchanged: Callable[[Model], None]
) -> None:
    unchanged(gpt2)
    gone = tiny_fact.replace(new_target=None)
    with pytest.raises(SurgeryError, match="1 of 2 facts name a new_target; rewrite and remove in two edits"):
        quick(gpt2_statistics)(gpt2, [tiny_fact, gone], [SITE])
    with pytest.raises(SurgeryError, match="there is no fact to edit"):
        quick(gpt2_statistics)(gpt2, [], [SITE])
    with pytest.raises(SurgeryError, match="no new_target to replace 'Paris' with"):
        quick(gpt2_statistics, objective=Replace())(gpt2, [tiny_fact, gone], [SITE])


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        ([Site("L9.mlp")], "there is no layer 9: GPT2LMHeadModel has layers 0 to 3"),
        ([Site("L1.attention")], "such as 'L4.mlp', not .*L1.attention"),
        ([Site("L1.state")], "such as 'L4.mlp'"),
        ([Site("L0.mlp"), Site("L1.mlp")], "exactly one mlp"),
        ([], "exactly one mlp"),
        ([Site("L3.mlp")], "no key statistics for layer 3, only for 0, 1"),
    ],
    ids=str,
)
def test_sites_that_cannot_be_edited_are_refused(
    gpt2: Model, gpt2_statistics: Statistics, tiny_fact: Fact, sites: list[Site], message: str
) -> None:
    with pytest.raises(SurgeryError, match=message):
        small(gpt2_statistics)(gpt2, tiny_fact, sites)


def test_statistics_of_other_weights_are_refused(gpt2_statistics: Statistics, quick: Quick, tiny_fact: Fact) -> None:
    other = load((tiny_model("gpt2", seed=1), tiny_tokenizer()))
    with pytest.raises(WrongWeights, match="fitted on other weights"):
        quick(gpt2_statistics)(other, tiny_fact, [SITE])


@pytest.mark.parametrize("context", ["It rained.", "{} it is"])
def test_contexts_without_a_place_for_the_prompt_are_refused(
    gpt2: Model, gpt2_statistics: Statistics, tiny_fact: Fact, context: str
) -> None:
    with pytest.raises(SurgeryError, match=r"does not end with {}"):
        small(gpt2_statistics, contexts=("{}", context))(gpt2, tiny_fact, [SITE])


def test_a_shift_that_is_not_finite_is_refused(
    gpt2: Model, gpt2_statistics: Statistics, tiny_fact: Fact, unchanged: Callable[[Model], None]
) -> None:
    unchanged(gpt2)
    with pytest.raises(SurgeryError, match="not finite"):
        small(gpt2_statistics, search=ValueSearch(steps=2, decay=float("nan")))(gpt2, tiny_fact, [SITE])


def test_an_edit_that_has_nothing_to_do_changes_nothing_and_can_be_applied(
    gpt2: Model, gpt2_statistics: Statistics, tiny_fact: Fact, unchanged: Callable[[Model], None]
) -> None:
    unchanged(gpt2)
    base = gpt2.fingerprint
    edit = small(gpt2_statistics, search=ValueSearch(stop=1e6))(gpt2, tiny_fact, [SITE])
    assert edit.deltas[0].norm == 0
    with edit.applied(gpt2):
        assert gpt2.fingerprint == base


def test_without_a_site_the_recommended_one_is_edited(
    gpt2: Model, gpt2_statistics: Statistics, quick: Quick, tiny_fact: Fact
) -> None:
    site = recommended_site(gpt2)
    assert site == Site("L0.mlp")  # a sixth of four layers
    assert gpt2.anatomy.name(site) in {delta.module for delta in quick(gpt2_statistics)(gpt2, tiny_fact).deltas}


def test_methods_are_found_by_name_and_registered_once() -> None:
    for name, made in METHODS.items():
        assert made.name == name
        assert isinstance(method_named(name), Method)
    with pytest.raises(SurgeryError, match="'rome'; choose one of rank-one"):
        method_named("rome")
    with pytest.raises(ValueError, match="there is a method 'rank-one' already"):
        register(RankOne)
