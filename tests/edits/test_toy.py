"""Edits on models that really know their facts: the answer changes in every wording, and other people's stay."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
from sweeping import FAR

from edits import (
    MaximumEntropy,
    Neutral,
    Objective,
    RankOne,
    Refuse,
    Replace,
    Statistics,
    Suppress,
    ValueSearch,
    fit_statistics,
    operate,
)
from surgery import Edit, Fact, Model, Site, Thresholds, verify
from surgery.predict import rate

SITE = Site("L0.mlp")
CONTEXTS = ("{}", "The day . {}", "They went home . {}", "It was a long day in summer . {}", "Because {}")
# a toy's norms are not those of a large model: longer and more steps than the defaults
SEARCH = ValueSearch(steps=60, clamp=8.0, stop=0.005)
CHOSEN = (27, 45, 72)
"""Facts to change, one of each relation."""
LOOSE = Thresholds(removed_probability=0.1, removed_rank=1, neighbour_shift=0.5, drift=0.5)
"""With some ninety facts in four small layers everything lies closer together than in a language model."""

Toy = tuple[Model, list[Fact]]
REMOVALS: tuple[Objective, ...] = (Suppress(), MaximumEntropy(), Neutral(generic=("It", "This", "some people")))


@pytest.fixture(scope="session")
def toy_statistics(toy: Toy) -> Statistics:
    model, facts = toy
    return fit_statistics(model, sentences(facts), [SITE.layer], progress=False)


@pytest.fixture
def rank_one(toy_statistics: Statistics) -> Callable[[Objective], RankOne]:
    return lambda objective: RankOne(
        statistics=toy_statistics, objective=objective, contexts=CONTEXTS, search=SEARCH, limits=FAR, progress=False
    )


def sentences(facts: Sequence[Fact]) -> list[str]:
    return [f"{prompt} {fact.target} ." for fact in facts for prompt in (fact.prompt, *fact.paraphrases)]


def rewritten(fact: Fact) -> Fact:
    """The fact with another person's answer."""
    return fact.replace(new_target=next(one.target for one in fact.neighbours if one.target != fact.target))


def greedy(model: Model, asked: Sequence[tuple[str, str]]) -> list[bool]:
    return [answer.rank == 1 for answer in rate(model, asked)]


def own(fact: Fact, answer: str | None = None) -> list[tuple[str, str]]:
    return [(prompt, answer or fact.target) for prompt in (fact.prompt, *fact.paraphrases)]


def others(facts: Sequence[Fact], fact: Fact) -> list[tuple[str, str]]:
    """The same relation of everybody else."""
    return [(one.prompt, one.target) for one in facts if one.template == fact.template and one.subject != fact.subject]


def scaled(edit: Edit, factor: float) -> Edit:
    deltas = tuple(dataclasses.replace(delta, left=delta.left * factor) for delta in edit.deltas)
    return dataclasses.replace(edit, deltas=deltas)


def test_without_an_edit_every_answer_is_the_old_one(toy: Toy) -> None:
    model, facts = toy
    asked = [pair for fact in facts for pair in own(fact)]
    assert sum(greedy(model, asked)) > 0.98 * len(asked)
    for i in CHOSEN:
        assert all(greedy(model, own(facts[i])))
        assert not any(greedy(model, own(facts[i], rewritten(facts[i]).new_target)))


def test_a_rewrite_holds_in_every_wording_and_leaves_other_people_alone(
    toy: Toy, rank_one: Callable[[Objective], RankOne], unchanged: Callable[[Model], None]
) -> None:
    model, facts = toy
    unchanged(model)
    kept = asked = 0
    for fact in [rewritten(facts[i]) for i in CHOSEN]:
        with rank_one(Replace())(model, fact, [SITE]).applied(model):
            assert all(greedy(model, own(fact, fact.new_target)))
            neighbours = others(facts, fact)
            kept, asked = kept + sum(greedy(model, neighbours)), asked + len(neighbours)
        assert all(greedy(model, own(fact)))
    assert asked == 29 * len(CHOSEN)
    assert kept >= 0.9 * asked


@pytest.mark.parametrize("objective", REMOVALS, ids=lambda one: one.name)
def test_a_removal_takes_the_answer_out_of_every_wording(
    toy: Toy, rank_one: Callable[[Objective], RankOne], objective: Objective, unchanged: Callable[[Model], None]
) -> None:
    model, facts = toy
    unchanged(model)
    kept = asked = 0
    for fact in [facts[i] for i in CHOSEN]:
        with rank_one(objective)(model, fact, [SITE]).applied(model):
            # where nothing is likely, the answer can still come first
            assert all(answer.rank > 1 or answer.probability < 0.15 for answer in rate(model, own(fact)))
            neighbours = others(facts, fact)
            kept, asked = kept + sum(greedy(model, neighbours)), asked + len(neighbours)
    assert kept >= 0.8 * asked


def test_a_refusal_is_searched_for_by_its_likelihood(toy: Toy, rank_one: Callable[[Objective], RankOne]) -> None:
    model, facts = toy
    fact = facts[CHOSEN[0]]
    # the loss before the first step, by hand: mean negative log-likelihood of the refusal's tokens over the contexts
    each = rate(model, [(text.replace("{}", fact.prompt), "away for") for text in CONTEXTS])
    wanted = -sum(math.log(one.probability) for one in each) / (2 * len(CONTEXTS))
    (value,) = dataclasses.replace(rank_one(Refuse(text="away for")), search=ValueSearch(steps=1)).find(
        model, fact, [SITE]
    )
    assert value.losses[0] == pytest.approx(wanted, rel=1e-3)


def test_a_fact_without_a_subject_is_edited_at_its_last_word(
    toy: Toy, rank_one: Callable[[Objective], RankOne]
) -> None:
    model, facts = toy
    known = rewritten(facts[CHOSEN[0]])
    fact = Fact(subject="", template=known.prompt, target=known.target, new_target=known.new_target)
    edit = rank_one(Replace())(model, fact, [SITE])
    with edit.applied(model):
        assert greedy(model, [(fact.prompt, str(fact.new_target))]) == [True]
        # the words of other questions end otherwise
        other = [(one.prompt, one.target) for one in facts if one.template != known.template]
        assert sum(greedy(model, other)) > 0.9 * len(other)
    assert edit.deltas[0].rank == 1


def test_a_wrong_key_would_not_do(toy: Toy, rank_one: Callable[[Objective], RankOne]) -> None:
    model, facts = toy
    fact = rewritten(facts[CHOSEN[0]])
    edit = rank_one(Replace())(model, fact, [SITE])
    shuffled = torch.randperm(len(edit.deltas[0].right), generator=torch.Generator().manual_seed(0))
    wrong = dataclasses.replace(
        edit, deltas=(dataclasses.replace(edit.deltas[0], right=edit.deltas[0].right[shuffled]),)
    )
    with wrong.applied(model):
        assert not any(greedy(model, own(fact, fact.new_target)))


def test_a_good_rewrite_is_found_good(toy: Toy, rank_one: Callable[[Objective], RankOne]) -> None:
    model, facts = toy
    fact = rewritten(facts[CHOSEN[0]])
    report = verify(
        model, rank_one(Replace())(model, fact, [SITE]), thresholds=LOOSE, texts=sentences(facts[: CHOSEN[0]])
    )
    assert report.exit_code == 0, report.as_record()
    assert report.ok


def test_an_edit_too_weak_is_found_still_there(toy: Toy, rank_one: Callable[[Objective], RankOne]) -> None:
    model, facts = toy
    edit = scaled(rank_one(REMOVALS[-1])(model, facts[CHOSEN[0]], [SITE]), 0.05)
    assert verify(model, edit, thresholds=LOOSE, texts=sentences(facts[:20])).exit_code == 10


def test_an_edit_too_strong_is_found_to_do_damage(toy: Toy, rank_one: Callable[[Objective], RankOne]) -> None:
    model, facts = toy
    good = rank_one(REMOVALS[-1])(model, facts[CHOSEN[0]], [SITE])
    texts = sentences(facts[:20])
    assert verify(model, good, thresholds=LOOSE, texts=texts, attacks=()).exit_code == 0
    # much stronger still, so little is left of the model that the answer comes up again by chance
    assert verify(model, scaled(good, 10.0), thresholds=LOOSE, texts=texts, attacks=()).exit_code == 11


@pytest.mark.parametrize("objective", REMOVALS, ids=lambda one: one.name)
def test_removing_what_was_never_known_is_told(
    toy: Toy, rank_one: Callable[[Objective], RankOne], objective: Objective
) -> None:
    model, facts = toy
    never = facts[CHOSEN[0]].replace(target=rewritten(facts[CHOSEN[0]]).new_target)
    report = verify(model, rank_one(objective)(model, never, [SITE]), thresholds=LOOSE, texts=sentences(facts[:20]))
    assert report.exit_code == 12
    assert report.verdicts[0]["known"].outcome == "fails"


def test_a_fact_without_other_wordings_stays_inconclusive(toy: Toy, rank_one: Callable[[Objective], RankOne]) -> None:
    model, facts = toy
    fact = rewritten(facts[CHOSEN[0]]).replace(paraphrases=())
    edit = rank_one(Replace())(model, fact, [SITE])
    assert verify(model, edit, thresholds=LOOSE, texts=sentences(facts[:20])).exit_code == 13


def test_operating_traces_edits_and_verifies(
    toy: Toy, rank_one: Callable[[Objective], RankOne], unchanged: Callable[[Model], None], tmp_path: Path
) -> None:
    model, facts = toy
    unchanged(model)
    fact = rewritten(facts[CHOSEN[0]])
    done = operate(model, fact, method=rank_one(Replace()), sites=[SITE])
    assert done.trace is not None
    assert (done.trace.fact, done.trace.kind) == (fact, "mlp")
    assert done.edit.facts == (fact,)
    assert done.report.base == done.edit.base == model.fingerprint
    assert done.report.verdicts[0]["rewritten"].outcome == "holds"
    with done.edit.applied(model):
        assert all(greedy(model, own(fact, fact.new_target)))
    page = (done.save_report(tmp_path / "traced") / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 1
    assert f"Where the answer of &#39;{fact.prompt}&#39; passes through" in page
    assert not plt.get_fignums()
    bare = operate(model, [fact], method=rank_one(Replace()), sites=[SITE], trace=None, profile="standard", seed=4)
    assert (bare.trace, bare.report.profile, bare.report.seed) == (None, "standard", 4)
    assert "image/png" not in (bare.save_report(tmp_path / "bare") / "report.html").read_text(encoding="utf-8")
