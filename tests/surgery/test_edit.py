"""Applying edits: what they change, that they are undone bit for bit, and what they refuse."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from by_hand import delta_of, edit_of, in_dtype, same_bits
from torch import Tensor

from surgery import Delta, Edit, Model, SurgeryError, WrongWeights
from surgery import edit as edit_module
from surgery.edit import Undo

IDS = torch.tensor([[5, 60, 7, 300, 9]])


def weights(model: Model) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in model.hf.named_parameters()}


def test_applying_adds_exactly_the_rounded_delta_and_undoing_restores_every_bit(model: Model) -> None:
    mlp, attention = model.anatomy.names("mlp")[1], model.anatomy.names("attention")[2]
    deltas = delta_of(model, mlp), delta_of(model, attention, rank=1, seed=1)
    before, fingerprint = weights(model), model.fingerprint
    with torch.no_grad():
        logits = model.hf(IDS).logits
        undo = edit_of(model, *deltas).apply(model)
        changed_logits = model.hf(IDS).logits
    changed = 0
    for name, old in before.items():
        new = model.hf.get_parameter(name)
        delta = next((one for one in deltas if name == f"{one.module}.weight"), None)
        if delta is None:
            assert same_bits(new, old)
            continue
        dense = (delta.left.double() @ delta.right.double().T).float()
        if type(model.hf.get_submodule(delta.module)).__name__ == "Conv1D":
            dense = dense.T
        assert torch.equal(new, (old.float() + dense).to(old.dtype))
        changed += int((new != old).sum())
    assert undo.changed == changed > 0.9 * sum(one.left.shape[0] * one.right.shape[0] for one in deltas)
    assert (changed_logits - logits).abs().max() > 0.05
    assert model.fingerprint != fingerprint
    undo()
    assert model.fingerprint == fingerprint
    assert all(same_bits(model.hf.get_parameter(name), old) for name, old in before.items())
    undo()  # a second call does nothing
    assert model.fingerprint == fingerprint


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_applied_restores_after_an_exception(small: Model, error: type[BaseException]) -> None:
    fingerprint = small.fingerprint
    made = edit_of(small, delta_of(small, "transformer.h.1.mlp.c_proj"))

    def fail() -> None:
        with made.applied(small) as same:
            assert same is small
            assert small.fingerprint != fingerprint
            raise error

    with pytest.raises(error):
        fail()
    assert small.fingerprint == fingerprint


def test_an_interruption_while_applying_restores_what_was_done(small: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    fingerprint = small.fingerprint
    made = edit_of(small, *(delta_of(small, f"transformer.h.{i}.mlp.c_proj") for i in range(3)))
    add, calls = edit_module.add_, []

    def interrupted(weight: Tensor, delta: Delta) -> None:
        add(weight, delta)
        calls.append(delta.module)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(edit_module, "add_", interrupted)
    with pytest.raises(KeyboardInterrupt):
        made.apply(small)
    assert len(calls) == 2
    assert small.fingerprint == fingerprint


def test_edits_of_one_weight_are_undone_in_reverse_order_only(small: Model) -> None:
    fingerprint = small.fingerprint
    first = edit_of(small, delta_of(small, "transformer.h.1.mlp.c_proj")).apply(small)
    between = small.fingerprint
    second = edit_of(small, delta_of(small, "transformer.h.1.mlp.c_proj", seed=1)).apply(small)
    with pytest.raises(WrongWeights, match=r"h.1.mlp.c_proj was changed again .* undo the later change first"):
        first()
    second()
    assert small.fingerprint == between
    first()
    assert small.fingerprint == fingerprint


def test_edits_of_two_weights_are_undone_in_any_order(small: Model) -> None:
    fingerprint = small.fingerprint
    undos = [edit_of(small, delta_of(small, f"transformer.h.{i}.mlp.c_proj")).apply(small) for i in (0, 1)]
    for undo in undos:
        undo()
    assert small.fingerprint == fingerprint


def test_an_edit_is_refused_on_other_weights(small: Model) -> None:
    made = edit_of(small, delta_of(small, "transformer.h.1.mlp.c_proj"))
    half = in_dtype(small, torch.bfloat16)
    with made.applied(small):
        edited = small.fingerprint
        with pytest.raises(
            WrongWeights, match=f"made for other weights \\({made.base[:12]}\\) than these \\({edited[:12]}"
        ):
            made.apply(small)
        assert small.fingerprint == edited
    with pytest.raises(WrongWeights, match="in the same dtype"):
        made.apply(half)
    made.apply(small)()


def test_a_delta_of_another_size_or_place_is_refused(small: Model) -> None:
    fingerprint = small.fingerprint
    good = delta_of(small, "transformer.h.0.mlp.c_proj")
    turned = Delta("transformer.h.1.mlp.c_proj", torch.ones(80, 1), torch.ones(32, 1))
    with pytest.raises(WrongWeights, match=r"is \(32, 80\) here, but the edit was made for another size"):
        edit_of(small, good, turned).apply(small)
    with pytest.raises(SurgeryError, match="Embedding holds no plain weight"):
        edit_of(small, good, Delta("transformer.wte", torch.ones(1, 1), torch.ones(1, 1))).apply(small)
    assert small.fingerprint == fingerprint


def test_a_change_too_small_for_the_dtype_is_refused(small: Model) -> None:
    half = in_dtype(small, torch.bfloat16)
    fingerprint = half.fingerprint
    tiny_delta = delta_of(small, "transformer.h.1.mlp.c_proj", size=1e-11)
    with pytest.raises(SurgeryError, match=r"too small to change a single torch.bfloat16 weight; .* in float32"):
        edit_of(half, tiny_delta).apply(half)
    assert half.fingerprint == fingerprint
    assert Undo(small, (tiny_delta,)).changed > 0  # in float32 it shows


def test_a_digest_is_of_the_factors_alone(small: Model, tmp_path: Path) -> None:
    names = small.anatomy.names("mlp")
    edit = edit_of(small, delta_of(small, names[0]), delta_of(small, names[1], seed=1))
    assert Edit.load(edit.save(tmp_path / "edit")).digest == edit.digest
    assert dataclasses.replace(edit, facts=(), method="another", settings={"a": 1}).digest == edit.digest
    other = dataclasses.replace(edit.deltas[0], left=edit.deltas[0].left.nextafter(torch.tensor(9.0)))
    moved = dataclasses.replace(edit.deltas[0], module=names[1])
    for deltas in ((other, edit.deltas[1]), edit.deltas[:1], (moved,)):
        assert dataclasses.replace(edit, deltas=deltas).digest != edit.digest
