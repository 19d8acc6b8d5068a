"""The grid of closed forms against plain loops: shared changes, sequences, anchors, values kept for later."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from sweeping import CONTEXTS, FAR, SEARCH, Toy

from edits import (
    AlphaEdit,
    ClosedForm,
    Constrained,
    Emmet,
    LeastSquares,
    Mass,
    MassSequence,
    NormAnchored,
    Pmet,
    RankOne,
    Replace,
    Statistics,
    ValueSearch,
    find_values,
)
from edits.keys import in_batches
from surgery import Fact, Model, Site, load
from surgery.hooks import TraceDict, hidden
from surgery.predict import rate
from surgery.tokens import ask_fact

SITES = [Site.at(layer, "mlp") for layer in range(3)]
PUBLISHED: dict[str, Any] = {"key": "mean", "names": 0.0}
SAME: dict[str, Any] = {
    "passes": 1,
    "contexts": CONTEXTS,
    "search": SEARCH,
    "progress": False,
    "limits": FAR,
    **PUBLISHED,
}


@torch.no_grad()
def read(model: Model, facts: Sequence[Fact], site: Site) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean keys at a site and mean states above the highest one, in columns, by a run a row."""
    names = model.anatomy.name(site), model.anatomy.names("state")[SITES[-1].layer]
    keys, states = [], []
    for fact in facts:
        each = []
        for context in CONTEXTS:
            question, span = ask_fact(model.tokenizer, fact, str(fact.new_target), context)
            with TraceDict(model.hf, names, retain_input=True) as trace:
                model.hf(torch.tensor([question.ids]))
            each.append([hidden(one, 1)[0, span.last] for one in (trace[names[0]].input, trace[names[1]].output)])
        keys.append(torch.stack([one for one, _ in each]).mean(0))
        states.append(torch.stack([one for _, one in each]).mean(0))
    return torch.stack(keys, 1).double(), torch.stack(states, 1).double()


def memit(model: Model, facts: Sequence[Fact], statistics: Statistics, share: Callable[[int], float]) -> Model:
    """The published loop on a copy of the model, with dense matrices and lambda in units of the keys."""
    values = find_values(model, facts, SITES[-1], Replace(), CONTEXTS, SEARCH)
    copied = load((copy.deepcopy(model.hf), model.tokenizer))
    _, above = read(copied, facts, SITES[-1])
    wanted = above + torch.stack([value.shift for value in values], 1).double()
    for i, site in enumerate(SITES):
        keys, states = read(copied, facts, site)
        c = statistics.layers[site.layer].dense()
        scale = LeastSquares().balance * float(torch.diag(keys.T @ torch.linalg.solve(c, keys)).mean())
        residual = share(len(SITES) - i) * (wanted - states)
        change = residual @ keys.T @ torch.linalg.inv(scale * c + keys @ keys.T)
        with torch.no_grad():
            copied.anatomy.matrix(site).add_(change.float())
    return copied


@pytest.mark.parametrize(("method", "share"), [(Mass, lambda n: 1 / n), (Pmet, lambda n: n**-0.5)])
def test_layers_share_a_change_as_in_the_published_loop(
    toy: Toy, facts: list[Fact], statistics: Statistics, method: type[ClosedForm], share: Callable[[int], float]
) -> None:
    model, _ = toy
    edit = method(statistics=statistics, **SAME)(model, facts, SITES)
    wanted = memit(model, facts, statistics, share)
    for delta, site in zip(edit.deltas, SITES, strict=True):
        change = (wanted.anatomy.matrix(site) - model.anatomy.matrix(site)).detach()
        assert delta.rank == len(facts)
        assert change.norm() > 1e-2 * model.anatomy.matrix(site).norm()
        assert (delta.dense() - change).norm() < 1e-3 * change.norm()


def test_the_highest_layer_brings_what_the_others_left(toy: Toy, facts: list[Fact], statistics: Statistics) -> None:
    model, _ = toy
    edit = Mass(statistics=statistics, solver=LeastSquares(balance=1e-6), **SAME)(model, facts, SITES)
    values = find_values(model, facts, SITES[-1], Replace(), CONTEXTS, SEARCH)
    _, before = read(model, facts, SITES[-1])
    with edit.applied(model):
        _, after = read(model, facts, SITES[-1])
    wanted = torch.stack([value.shift for value in values], 1).double()
    assert (after - before - wanted).norm() < 0.02 * wanted.norm()


def test_a_batch_after_another_weighs_the_keys_of_the_first(
    toy: Toy, facts: list[Fact], statistics: Statistics
) -> None:
    model, _ = toy
    site, moment = SITES[1], statistics.layers[1].dense()
    edit = MassSequence(statistics=statistics, layers=1, **SAME)(model, facts[:2], [site])
    first = MassSequence(statistics=statistics, layers=1, **SAME)(model, facts[0], [site])
    (one,) = find_values(model, facts[:1], site, Replace(), CONTEXTS, SEARCH)
    with first.applied(model):
        (two,) = find_values(model, facts[1:2], site, Replace(), CONTEXTS, SEARCH)
    a, b = one.key.double()[:, None], two.key.double()[:, None]
    scale = LeastSquares().balance * float(b.T @ torch.linalg.solve(moment, b))
    change = two.shift.double()[:, None] @ b.T @ torch.linalg.inv(scale * moment + a @ a.T + b @ b.T)
    found = edit.deltas[0].dense() - first.deltas[0].dense()
    assert (found - change).norm() < 1e-3 * change.norm()
    forgetful = dataclasses.replace(MassSequence(statistics=statistics, layers=1, **SAME), remember=False)
    other = forgetful(model, facts[:2], [site]).deltas[0].dense() - first.deltas[0].dense()
    assert (other - change).norm() > 1e-2 * change.norm()


@pytest.mark.parametrize("made", [Mass, Emmet, AlphaEdit, RankOne])
def test_values_that_are_kept_are_solved_for_again(
    toy: Toy, facts: list[Fact], statistics: Statistics, made: type[ClosedForm]
) -> None:
    model, _ = toy
    method = made(statistics=statistics, **SAME, **({} if made is RankOne else {"batch": None}))
    sites = SITES if method.layers > 1 else SITES[:1]
    chosen = facts[:1] if made is RankOne else facts
    whole = method(model, chosen, sites)
    values = method.find(model, chosen, sites)
    again = method.solve(model, values, sites)
    assert again.summary() == whole.summary()
    for delta, same in zip(whole.deltas, again.deltas, strict=True):
        assert torch.equal(delta.left, same.left)
        assert torch.equal(delta.right, same.right)
    if len(facts) == len(chosen):
        fewer = method.solve(model, values[:1], sites)
        assert fewer.facts == values[0].facts
        assert fewer.deltas[0].rank == 1


def test_facts_of_one_subject_are_all_installed(toy: Toy, statistics: Statistics) -> None:
    model, known = toy
    subject = known[0].subject
    own = [fact for fact in known if fact.subject == subject]
    assert len(own) > 1
    wanted = [next(one.target for one in fact.neighbours if one.target != fact.target) for fact in own]
    new = [fact.replace(new_target=target) for fact, target in zip(own, wanted, strict=True)]
    # where each toy has room for three answers in one value
    site = SITES[{"gpt2": 0, "llama": 1}[model.hf.config.model_type]]
    search = ValueSearch(steps=60, clamp=8.0)
    method = Mass(statistics=statistics, layers=1, **{**SAME, "search": search})
    shared = method(model, new, [site])
    # as published: a value each for the key they share, of which least squares takes the mean
    apart = method.solve(model, [value for fact in new for value in method.find(model, fact, [site])], [site])
    assert shared.deltas[0].rank == 1
    for edit, all_of_them in ((shared, True), (apart, False)):
        with edit.applied(model):
            ranks = [answer.rank for answer in rate(model, [(fact.prompt, str(fact.new_target)) for fact in new])]
        assert (max(ranks) == 1) == all_of_them


@pytest.mark.parametrize("method", [RankOne, MassSequence, NormAnchored])
def test_one_after_the_other_they_still_share_their_key(
    toy: Toy, statistics: Statistics, method: type[ClosedForm]
) -> None:
    model, known = toy
    own = [fact for fact in known if fact.subject == known[0].subject]
    other = next(fact for fact in known if fact.subject != known[0].subject)
    wanted = [next(one.target for one in fact.neighbours if one.target != fact.target) for fact in (*own, other)]
    new = [fact.replace(new_target=target) for fact, target in zip((*own, other), wanted, strict=True)]
    given = [new[0], new[-1], *new[1:-1]]
    site = SITES[{"gpt2": 0, "llama": 1}[model.hf.config.model_type]]
    search = ValueSearch(steps=60, clamp=8.0)
    one_by_one = method(statistics=statistics, layers=1, **{**SAME, "search": search})
    edit = one_by_one(model, given, [site])
    assert edit.facts == (*new[:-1], new[-1])
    assert edit.deltas[0].rank == 2
    with edit.applied(model):
        ranks = [answer.rank for answer in rate(model, [(fact.prompt, str(fact.new_target)) for fact in new[:-1]])]
    assert max(ranks) == 1


def test_batches_keep_facts_of_one_key_together(toy: Toy) -> None:
    known = toy[1]
    own = [fact for fact in known if fact.subject == known[0].subject]
    others = [fact for fact in known if fact.subject != known[0].subject][:3]
    assert in_batches([own[0], *others, *own[1:]], 1) == [own, *([one] for one in others)]
    assert in_batches([*others, *own], 2) == [others[:2], others[2:], own]
    assert in_batches([*others, *own], None) == [[*others, *own]]


def test_anchored_values_have_the_first_ones_mean_length(toy: Toy, facts: list[Fact], statistics: Statistics) -> None:
    model, _ = toy
    method = NormAnchored(statistics=statistics, anchor=2, layers=1, **SAME)
    values = find_values(model, facts[:2], SITES[0], Replace(), CONTEXTS, SEARCH)
    pilot = sum(float((value.old + value.shift).norm()) for value in values) / 2
    edit = method(model, facts, SITES[:1])
    assert [one["norm_to_pilot"] for one in edit.log] == pytest.approx([1.0] * 3)
    first = edit.log[0]
    new = values[0].old + values[0].shift
    shift = pilot / new.norm() * new - values[0].old
    assert first["shift_norm"] == pytest.approx(float(shift.norm()), rel=1e-4)
    loose = dataclasses.replace(method, anchor=0)(model, facts, SITES[:1])
    assert max(abs(one["norm_to_pilot"] - 1) for one in loose.log) > 0.01


def test_a_value_is_measured_by_the_mean_of_the_first_ones(
    toy: Toy, facts: list[Fact], statistics: Statistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edits.batch.PILOTS", 2)
    edit = RankOne(statistics=statistics, **SAME)(toy[0], facts, SITES[:1])
    ratios = [one["norm_to_pilot"] for one in edit.log]
    first = find_values(toy[0], facts[:1], SITES[0], Replace(), CONTEXTS, SEARCH)[0]
    own = float((first.old + first.shift).norm())
    assert ratios[0] == pytest.approx(1.0)
    # |v_2| / mean(|v_1|, |v_2|), by which the third is measured too
    second = ratios[1] * own / (2 - ratios[1])
    with RankOne(statistics=statistics, **SAME)(toy[0], facts[:2], SITES[:1]).applied(toy[0]):
        third = find_values(toy[0], facts[2:], SITES[0], Replace(), CONTEXTS, SEARCH)[0]
    assert ratios[2] == pytest.approx(2 * float((third.old + third.shift).norm()) / (own + second), rel=1e-3)


def test_the_log_tells_of_every_fact(toy: Toy, facts: list[Fact], statistics: Statistics) -> None:
    model, _ = toy
    edit = RankOne(statistics=statistics, **SAME)(model, facts, SITES[:1])
    weight = float(model.anatomy.matrix(SITES[0]).detach().norm())
    assert [one["fact"] for one in edit.log] == [fact.label for fact in facts]
    for i, one in enumerate(edit.log):
        left, right = edit.deltas[0].left[:, i], edit.deltas[0].right[:, i]
        assert one["relative_change"] == pytest.approx(float(left.norm() * right.norm()) / weight, rel=1e-4)
    assert edit.log[-1]["total_change"] == pytest.approx(edit.deltas[0].norm / weight, rel=1e-4)
    value = find_values(model, facts[:1], SITES[0], Replace(), CONTEXTS, SEARCH)[0]
    moment = statistics.layers[0].dense()
    key = value.key.double()
    assert edit.log[0]["denominator"] == pytest.approx(float(key @ torch.linalg.solve(moment, key)), rel=1e-4)
    assert edit.log[0]["norm_to_pilot"] == pytest.approx(1.0)


def test_one_exact_fact_is_the_same_by_rome_and_emmet(toy: Toy, facts: list[Fact], statistics: Statistics) -> None:
    model, _ = toy
    rome = RankOne(statistics=statistics, **SAME)(model, facts[0], SITES[:1]).deltas[0].dense()
    emmet = Emmet(statistics=statistics, solver=Constrained(), **SAME)(model, facts[0], SITES[:1]).deltas[0].dense()
    torch.testing.assert_close(rome, emmet)
