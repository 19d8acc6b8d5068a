"""Rank-one edits: the key gets its value, facts follow one another, a seed is its edit, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from sweeping import FAR

from edits import Neutral, RankOne, Replace, Statistics, ValueSearch
from edits.values import find_values
from surgery import Edit, Fact, Model, Site, SurgeryError

SITE = Site("L1.mlp")
CONTEXTS = ("{}", "It rained. {}")


def small(statistics: Statistics, **settings: Any) -> RankOne:
    settings = {"contexts": CONTEXTS, "search": ValueSearch(steps=3), "progress": False, "limits": FAR, **settings}
    return RankOne(statistics=statistics, **settings)


def test_the_edited_matrix_gives_the_key_its_new_value(
    tiny: Model, tiny_statistics: Statistics, tiny_fact: Fact
) -> None:
    method = small(tiny_statistics)
    edit = method(tiny, tiny_fact, [SITE])
    (value,) = method.find(tiny, tiny_fact, [SITE])
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
    method = small(gpt2_statistics, names=0.0)  # what names weigh depends on how many facts there are
    both = method(gpt2, [tiny_fact, other_fact], [SITE]).deltas[0]
    first = method(gpt2, tiny_fact, [SITE])
    alone = method(gpt2, other_fact, [SITE]).deltas[0]
    assert both.rank == 2
    assert torch.equal(both.left[:, :1], first.deltas[0].left)
    assert not torch.equal(both.left[:, 1:], alone.left)
    with first.applied(gpt2):
        moment = gpt2_statistics.layers[SITE.layer]
        (second,) = find_values(gpt2, [other_fact], SITE, Replace(), CONTEXTS, ValueSearch(steps=3), moment=moment)
    torch.testing.assert_close(both.left[:, 1], second.shift, rtol=1e-4, atol=1e-6)


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


def test_a_seed_is_its_edit(gpt2: Model, gpt2_statistics: Statistics, tiny_fact: Fact) -> None:
    def made(seed: int) -> Edit:
        search = ValueSearch(steps=3)
        method = RankOne(
            statistics=gpt2_statistics, count=3, length=4, search=search, limits=FAR, seed=seed, progress=False
        )
        return method(gpt2, tiny_fact, [SITE])

    first, again, other = made(1), made(1), made(2)
    assert first.settings["contexts"] == again.settings["contexts"] != other.settings["contexts"]
    assert len(first.settings["contexts"]) == 4
    for side in ("left", "right"):
        assert torch.equal(getattr(first.deltas[0], side), getattr(again.deltas[0], side))
        assert not torch.equal(getattr(first.deltas[0], side), getattr(other.deltas[0], side))


def test_the_claim_follows_from_the_facts(gpt2: Model, gpt2_statistics: Statistics, tiny_fact: Fact) -> None:
    removal = small(gpt2_statistics)(gpt2, tiny_fact.replace(new_target=None), [SITE])
    rewrite = small(gpt2_statistics)(gpt2, tiny_fact, [SITE])
    assert (removal.claim, removal.settings["objective"]) == ("removed", "neutral")
    assert (rewrite.claim, rewrite.settings["objective"]) == ("rewritten", "replace")
    assert small(gpt2_statistics, objective=Neutral())(gpt2, tiny_fact, [SITE]).claim == "removed"


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
