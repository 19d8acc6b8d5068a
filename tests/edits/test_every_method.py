"""What every registered editing method refuses, tells and takes, whatever the architecture."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from every_method import SITE, Quick, able, sites_of
from tiny import tiny_model, tiny_tokenizer

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
from surgery import Fact, Model, Site, SurgeryError, WrongWeights, load
from surgery.shipped import neutral_texts
from surgery.verification.drift import perplexity

NEURONS = ("zero-neurons", "scale-neurons", "replace-neurons")


def test_computed_again_or_with_texts_padded_on_the_other_side_it_is_the_same_edit(
    gpt2: Model, quick: Quick, tiny_fact: Fact, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = quick(fit_statistics(gpt2, [tiny_fact.prompt] * 5, [0, 1], rank=8, progress=False))
    longer = tiny_fact.replace(subject="The long river", new_target="Berlin")
    facts = able(method, tiny_fact, longer)
    first = method(gpt2, facts, sites_of(method, gpt2))
    for side in ("left", "right"):
        monkeypatch.setattr(gpt2.tokenizer, "padding_side", side)
        again = method(gpt2, facts, sites_of(method, gpt2))
        for delta, same in zip(first.deltas, again.deltas, strict=True):
            assert torch.equal(delta.left, same.left)
            assert torch.equal(delta.right, same.right)


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
