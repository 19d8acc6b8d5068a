"""Merging edits of one base, and stacking edits made on top of one another."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from by_hand import FACT, delta_of, edit_of

from surgery import Edit, Model, Stack, SurgeryError, WrongWeights, merge, redact, stack

IDS = torch.tensor([[5, 60, 7, 300, 9]])
MLP = "transformer.h.{}.mlp.c_proj"


def about(subject: str, made: Edit) -> Edit:
    return dataclasses.replace(made, facts=(FACT.replace(subject=subject),))


def three_on_top(model: Model) -> list[Edit]:
    """Edits each made on the model with those before it, two of them of one weight."""
    made, undos = [], []
    for seed, layer in enumerate((1, 2, 1)):
        made.append(about(f"Number {seed}", edit_of(model, delta_of(model, MLP.format(layer), seed=seed))))
        undos.append(made[-1].apply(model))
    for undo in reversed(undos):
        undo()
    return made


def test_merged_edits_change_what_both_change(small: Model) -> None:
    one = about("A", edit_of(small, delta_of(small, MLP.format(1)), prompts=("p", "q"), log=({"loss": 1.0},)))
    changes = {"method": "other", "settings": {"steps": 2}, "prompts": ("q", "r")}
    deltas = delta_of(small, MLP.format(1), seed=1), delta_of(small, MLP.format(2), seed=2)
    other = about("B", edit_of(small, *deltas, **changes))
    both = merge([one, other])
    assert [(delta.module, delta.rank) for delta in both.deltas] == [(MLP.format(1), 4), (MLP.format(2), 2)]
    assert torch.allclose(both.deltas[0].dense(), one.deltas[0].dense() + other.deltas[0].dense(), atol=1e-6)
    assert torch.equal(both.deltas[1].dense(), other.deltas[1].dense())
    assert both.method == "by hand + other"
    assert [fact.subject for fact in both.facts] == ["A", "B"]
    assert both.prompts == ("p", "q", "r")
    assert both.settings == {
        "merged": [{"method": "by hand", "settings": {}}, {"method": "other", "settings": {"steps": 2}}]
    }
    fingerprint = small.fingerprint
    with both.applied(small):
        merged = small.hf(IDS).logits
    undos = dataclasses.replace(one).apply(small), dataclasses.replace(other, base=small.fingerprint)
    with undos[1].applied(small):
        assert torch.allclose(small.hf(IDS).logits, merged, atol=1e-4)
    undos[0]()
    assert small.fingerprint == fingerprint


def test_a_merged_edit_has_no_more_columns_than_it_needs(small: Model) -> None:
    delta = delta_of(small, MLP.format(1), rank=3)
    assert merge([about("A", edit_of(small, delta)), about("B", edit_of(small, delta))]).deltas[0].rank == 3
    full = [about(str(i), edit_of(small, delta_of(small, MLP.format(1), rank=20, seed=i))) for i in range(3)]
    assert merge(full).deltas[0].rank == 32


def test_what_does_not_merge_is_refused(small: Model) -> None:
    one, other = (about(name, edit_of(small, delta_of(small, MLP.format(1)))) for name in "AB")
    with pytest.raises(SurgeryError, match="no edit to merge"):
        merge([])
    with pytest.raises(SurgeryError, match=r"different weights .* use surgery.stack"):
        merge([one, dataclasses.replace(other, base="0" * 64)])
    with pytest.raises(SurgeryError, match="edits 0 and 1 are both about 'A is in'; leave one of them away"):
        merge([one, about("A", other)])
    with pytest.raises(SurgeryError, match="merge first, then redact"):
        merge([one, redact(other, "none")])
    removing = dataclasses.replace(other, claim="removed")
    with pytest.raises(SurgeryError, match=r"say which with merge\(edits, claim=\)"):
        merge([one, removing])
    assert merge([one, removing], claim="removed").claim == "removed"


def test_a_stack_is_applied_in_order_and_undone_in_reverse(small: Model) -> None:
    edits, fingerprint = three_on_top(small), small.fingerprint
    assert len({edit.base for edit in edits}) == 3
    with edits[0].applied(small), edits[1].applied(small), edits[2].applied(small):
        expected = small.fingerprint
    with stack(small, edits) as same:
        assert same is small
        assert small.fingerprint == expected
    assert small.fingerprint == fingerprint
    made = Stack((edits[0],)).then(edits[1]).then(edits[2])
    assert (len(made), [fact.subject for fact in made.facts]) == (3, ["Number 0", "Number 1", "Number 2"])
    with made.applied(small):
        assert small.fingerprint == expected
    assert small.fingerprint == fingerprint


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_stack_is_undone_however_it_ends(small: Model, error: type[BaseException]) -> None:
    edits, fingerprint = three_on_top(small), small.fingerprint

    def fail() -> None:
        with stack(small, edits):
            raise error

    with pytest.raises(error):
        fail()
    assert small.fingerprint == fingerprint


def test_a_stack_in_another_order_is_refused_and_nothing_stays(small: Model) -> None:
    edits, fingerprint = three_on_top(small), small.fingerprint
    for wrong in ((edits[1], edits[0]), (edits[0], edits[2]), (edits[0], edits[1], edits[1])):
        with pytest.raises(WrongWeights, match="made for other weights"):
            with stack(small, wrong):
                raise AssertionError
        assert small.fingerprint == fingerprint
    with pytest.raises(SurgeryError, match="no edit to stack"):
        Stack(())
