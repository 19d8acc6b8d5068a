"""The depth of removals: against patches by plain hooks, with facts planted and taken out again, and in a figure."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import Toy, edit_of, toy_edit
from torch import nn

from surgery import Delta, Edit, Fact, Model, SurgeryError, WrongWeights, rate
from surgery.errors import NothingToTry
from surgery.hooks import hidden, with_hidden
from surgery.tokens import ask, pad
from surgery.verification.baseline import Baseline
from surgery.verification.controls import with_subject
from surgery.verification.depth import Depth, depths, removal_depth
from surgery.verification.figures import plot_depth


def strangers(_: Model, fact: Fact) -> list[Fact]:
    names = ("The day", "People home", "They went", "A summer", "some friends", "old people")
    return [with_subject(fact, name) for name in names]


def in_mlp(toy: Toy, layer: int, size: float, seed: int = 0) -> Edit:
    """A random change of rank one in one layer's mlp."""
    model, draw = toy[0], torch.Generator().manual_seed(seed)
    left, right = (torch.randn(n, 1, generator=draw) for n in (model.anatomy.d_model, model.anatomy.d_ff))
    delta = Delta(model.anatomy.names("mlp")[layer], size * left / left.norm(), right / right.norm())
    return edit_of(model, delta, claim="removed", facts=(toy[1][0],))


def patched_by_hand(model: Model, fact: Fact, source: Callable[[], Any], prompt: str, layer: int) -> float:
    """Log-probability of a one-token answer with one state of another run at the prompt's end."""
    question, other = ask(model.tokenizer, fact.prompt, fact.target), ask(model.tokenizer, prompt, fact.target)
    block, seen = model.hf.get_submodule(model.anatomy.names("state")[layer]), []
    handle = block.register_forward_hook(lambda *given: seen.append(hidden(given[-1], 1)[0, other.answer_start - 1]))
    with source(), torch.no_grad():
        model.hf(**model.inputs(pad([other.ids])))
    handle.remove()

    def patch(module: nn.Module, given: Any, output: Any) -> Any:
        states = hidden(output, 1).clone()
        states[0, question.answer_start - 1] = seen[0]
        return with_hidden(output, states)

    handle = block.register_forward_hook(patch)
    with torch.no_grad():
        logits = model.hf(**model.inputs(pad([question.ids]))).logits[0, question.answer_start - 1]
    handle.remove()
    return float(logits.log_softmax(-1)[question.answer_ids[0]])


def test_drops_are_those_of_plain_patches(toy: Toy, unchanged: Callable[[Model], None]) -> None:
    model, facts = toy
    unchanged(model)
    fact, edit = facts[0], in_mlp(toy, 1, 8.0)
    depth = removal_depth(model, edit, fact, controls=strangers, count=3)
    base = math.log(rate(model, [(fact.prompt, fact.target)])[0].probability)
    assert depth.base == pytest.approx(base, abs=1e-5)
    for layer in range(4):
        by_hand = patched_by_hand(model, fact, lambda: edit.applied(model), fact.prompt, layer)
        assert depth.drops[layer] == pytest.approx(base - by_hand, abs=2e-4)
        left = [patched_by_hand(model, fact, torch.no_grad, one.prompt, layer) for one in strangers(model, fact)[:3]]
        assert depth.reference[layer] == pytest.approx(base - np.mean(left), abs=2e-4)
    # before the edited layer nothing differs
    assert depth.drops[0] == pytest.approx(0, abs=1e-5)
    assert depth.assumed
    assert "assumed: the base model asked of 3 invented subjects" in depth.told


def test_the_last_layer_gives_the_edited_models_own_probability(toy: Toy) -> None:
    model, facts = toy
    edit = toy_edit(toy, size=8.0)
    depth = removal_depth(model, edit, facts[0], controls=strangers)
    with edit.applied(model):
        own = math.log(rate(model, [(facts[0].prompt, facts[0].target)])[0].probability)
    assert depth.base - depth.drops[-1] == pytest.approx(own, abs=1e-5)
    assert depth.edited == pytest.approx(own, abs=1e-5)


def test_answers_of_several_tokens_count_a_token(toy: Toy) -> None:
    model, facts = toy
    fact = facts[0].replace(target=f"{facts[0].target} .")
    edit = toy_edit(toy, size=8.0)
    depth = removal_depth(model, edit, fact, controls=strangers)
    with edit.applied(model):
        own = math.log(rate(model, [(fact.prompt, fact.target)])[0].probability) / 2
    assert depth.base - depth.drops[-1] == pytest.approx(own, abs=1e-5)


def test_an_edit_that_changes_nothing_erases_nothing(toy: Toy) -> None:
    model, facts = toy
    depth = removal_depth(model, in_mlp(toy, 1, 0.0), facts[0], controls=strangers)
    assert np.abs(depth.drops).max() < 1e-5
    assert depth.score == pytest.approx(0, abs=1e-4)
    assert depth.reference.max() > 1


def test_facts_are_asked_in_words_the_edit_has_not_seen(toy: Toy) -> None:
    """The likeliest held-out paraphrase, with the same invented names; the prompt where there is no other."""
    model, (first, second, *_) = toy
    edit = dataclasses.replace(toy_edit(toy, size=8.0), prompts=(first.prompt, second.prompt))
    bare = second.replace(paraphrases=())
    baseline = Baseline(model)
    found = depths(model, edit, [first, bare], baseline=baseline, controls=strangers)
    best = max(first.paraphrases, key=lambda text: baseline.rate([(text, first.target)])[0].probability)
    assert [one.prompt for one in found.values()] == [best, bare.prompt]
    other = first.replace(template=best.replace(first.subject, "{}"), paraphrases=())
    alone = removal_depth(model, edit, other, controls=strangers)
    np.testing.assert_allclose(found[0].drops, alone.drops, atol=1e-6)
    np.testing.assert_allclose(found[0].reference, alone.reference, atol=1e-6)
    unseen = dataclasses.replace(edit, prompts=())
    assert depths(model, unseen, [first], baseline=baseline, controls=strangers)[0].prompt == first.prompt
    nobody = Fact(subject="", template="The summer was a", target="long")
    assert list(depths(model, edit, [nobody, bare], baseline=baseline, controls=strangers)) == [1]
    with pytest.raises(NothingToTry, match="no subject that an invented one could replace"):
        depths(model, edit, [nobody], baseline=baseline, controls=strangers)


def test_planted_facts_have_a_true_reference(toy: Toy) -> None:
    """An edit stands for planting: without it the model is the one that never knew."""
    model, facts = toy
    fact, out = facts[0], in_mlp(toy, 0, 30.0)
    whole = removal_depth(model, out, fact, reference=out)
    assert whole.score == pytest.approx(1)
    assert not whole.assumed
    assert "assumed" not in whole.told
    np.testing.assert_allclose(whole.drops, whole.reference)
    # one that acts only later leaves the earlier layers' states intact, however little the model says in the end
    late = removal_depth(model, in_mlp(toy, 2, 1000.0), fact, reference=out)
    assert np.abs(late.drops[:2]).max() < 1e-5
    assert late.drops[3] > 1
    assert 0 < late.score < 0.9


def test_the_score_by_hand() -> None:
    def depth(drops: Sequence[float], reference: Sequence[float], layers: int | None = None) -> Depth:
        names = tuple(f"layer {i}" for i in range(len(reference) if layers is None else layers))
        return Depth("f", "asked so", names, np.array(drops), np.array(reference), "given", False, -0.1, -3.0)

    one = depth([0.2, 1.0, -0.5, 3.0], [0.04, 2.0, 1.0, 2.0])
    np.testing.assert_allclose(one.ratios, [np.nan, 0.5, 0.0, 1.0])
    assert one.score == pytest.approx((0.5 * 2 + 0 * 1 + 1 * 2) / 5)
    assert one.told == "asked 'asked so': 60% erased over 3 of 4 layers; most missing after layer 3, 3.00 nats; given"
    assert one.as_record()["score"] == pytest.approx(0.6)
    assert one.as_record()["drops"] == [0.2, 1.0, -0.5, 3.0]
    none = depth([1.0], [0.01])
    assert math.isnan(none.score)
    assert none.as_record()["score"] is None
    assert none.told == "asked 'asked so': no layer can tell: the reference loses at most 0.010 nats; given"
    with pytest.raises(SurgeryError, match="drops of a depth must be one finite number for each of 2 layers"):
        depth([1.0], [1.0], layers=2)
    with pytest.raises(SurgeryError, match="reference of a depth must be one finite number"):
        depth([1.0], [math.nan])


def test_the_figure_draws_both_lines() -> None:
    names = tuple(f"layer {i}" for i in range(3))
    reference, drops = np.array([0.0, 1.0, 2.0]), np.array([0.0, 0.5, 2.0])
    ax = plot_depth(Depth("a $ b", "asked so", names, drops, reference, "assumed: so", True, -0.1, -2.0))
    np.testing.assert_allclose(ax.lines[0].get_ydata(), drops)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["invented subjects (assumed)", "edited"]
    assert ax.get_title() == r"a \$ b: 83% erased"
    given = plot_depth(Depth("f", "asked so", names, drops, 0 * reference, "given", False, -0.1, -2.0), ax)
    assert given is ax
    assert "no layer can tell" in ax.get_title()


def test_what_cannot_be_measured_is_refused(toy: Toy) -> None:
    model, facts = toy
    edit = toy_edit(toy, size=1.0)
    with pytest.raises(SurgeryError, match="has no subject that an invented one could replace; give reference=EDIT"):
        removal_depth(model, edit, Fact(subject="", template="The summer was a", target="long"))
    with pytest.raises(SurgeryError, match="0 invented subjects cannot stand for a model"):
        removal_depth(model, edit, facts[0], count=0)
    with pytest.raises(SurgeryError, match="after none of 1 invented subjects 'Orvel' has the tokens"):
        removal_depth(
            model, edit, facts[0].replace(target="Orvel"), controls=lambda *_: [facts[0].replace(target="Quist")]
        )
    with pytest.raises(WrongWeights, match="made for other weights"):
        removal_depth(model, toy_edit(toy, size=1.0, base="0" * 64), facts[0], controls=strangers)
