"""Edits as values: what they change, that they are undone bit for bit, and what they refuse."""

from __future__ import annotations

import copy
import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from surgery import Delta, Edit, Fact, Model, Neighbour, SurgeryError, WrongWeights
from surgery import edit as edit_module
from surgery.edit import Undo

IDS = torch.tensor([[5, 60, 7, 300, 9]])
FACT = Fact(
    subject="The {old} tower\u2028",
    template="{} is in",
    target="Paris",
    new_target='"Rome"',
    neighbours=(Neighbour("The river is in", "Rome"),),
)


def in_dtype(model: Model, dtype: torch.dtype) -> Model:
    """A copy one may change."""
    hf = copy.deepcopy(model.hf).to(dtype)
    return dataclasses.replace(model, hf=hf, anatomy=dataclasses.replace(model.anatomy, hf=hf))


def delta_of(model: Model, module: str, *, size: float = 0.1, rank: int = 2, seed: int = 0) -> Delta:
    draw = torch.Generator().manual_seed(seed)
    weight = model.hf.get_submodule(module).weight
    d_out, d_in = weight.shape if isinstance(model.hf.get_submodule(module), torch.nn.Linear) else weight.shape[::-1]
    left, right = torch.randn(d_out, rank, generator=draw), torch.randn(d_in, rank, generator=draw)
    return Delta(module, size * left, right)


def edit_of(model: Model, *deltas: Delta, **changes: Any) -> Edit:
    values = {"base": model.fingerprint, "method": "by hand", "claim": "rewritten", "facts": (FACT,), **changes}
    return Edit(deltas=deltas, **values)


def weights(model: Model) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in model.hf.named_parameters()}


def same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def model(tiny: Model, request: pytest.FixtureRequest) -> Model:
    return in_dtype(tiny, request.param)


@pytest.fixture(scope="module")
def gpt2(request: pytest.FixtureRequest) -> Model:
    from tiny import ARCHITECTURES, tiny_tokenizer

    from surgery import load

    return load((ARCHITECTURES["gpt2"](), tiny_tokenizer()))


@pytest.fixture
def small(gpt2: Model) -> Model:
    return in_dtype(gpt2, torch.float32)


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


def test_a_saved_edit_gives_the_same_logits(model: Model, tmp_path: Path) -> None:
    made = edit_of(model, delta_of(model, model.anatomy.names("mlp")[0]))
    loaded = Edit.load(made.save(tmp_path / "an.edit"))
    with torch.no_grad():
        with made.applied(model):
            expected = model.hf(IDS).logits
        before = model.hf(IDS).logits
        with loaded.applied(model):
            assert torch.equal(model.hf(IDS).logits, expected)
    assert not torch.equal(before, expected)


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


@pytest.mark.parametrize("rank", [1, 3, 40])
def test_the_norm_is_that_of_the_dense_matrix(gpt2: Model, rank: int) -> None:
    delta = delta_of(gpt2, "transformer.h.1.mlp.c_proj", rank=rank, seed=rank)
    dense = delta.left.numpy().astype("float64") @ delta.right.numpy().astype("float64").T
    assert torch.allclose(delta.dense().double(), torch.from_numpy(dense), atol=1e-5)
    assert delta.norm == pytest.approx(float((dense**2).sum() ** 0.5), rel=1e-9)
    assert (delta.rank, f"rank={rank}" in repr(delta)) == (rank, True)


def test_deltas_of_one_weight_add_up(gpt2: Model) -> None:
    one, other = (delta_of(gpt2, "transformer.h.1.mlp.c_proj", seed=seed, rank=seed) for seed in (1, 2))
    assert torch.allclose((one + other).dense(), one.dense() + other.dense(), atol=1e-5)
    assert (one + other).rank == 3
    with pytest.raises(SurgeryError, match="do not add up"):
        _ = one + delta_of(gpt2, "transformer.h.2.mlp.c_proj")


def test_opposite_deltas_have_norm_zero() -> None:
    one = Delta("m", torch.ones(3, 1), torch.ones(4, 1))
    assert (one + Delta("m", -torch.ones(3, 1), torch.ones(4, 1))).norm == 0
    assert one.norm == pytest.approx(12**0.5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("side", [0, 1])
def test_a_delta_that_is_not_finite_is_refused(bad: float, side: int) -> None:
    factors = [torch.ones(3, 1), torch.ones(4, 1)]
    factors[side][2] = bad
    with pytest.raises(
        SurgeryError, match=r"the delta of some\.mlp is not finite; the solve failed, so nothing is changed"
    ):
        Delta("some.mlp", *factors)


def test_an_edit_has_one_delta_a_weight(gpt2: Model) -> None:
    delta = delta_of(gpt2, "transformer.h.1.mlp.c_proj")
    for deltas in ((), (delta, delta)):
        with pytest.raises(SurgeryError, match="one delta for each weight it changes, and at least one"):
            edit_of(gpt2, *deltas)


def test_a_file_keeps_everything(gpt2: Model, tmp_path: Path) -> None:
    made = edit_of(
        gpt2,
        *(delta_of(gpt2, f"transformer.h.{i}.mlp.c_proj", seed=i, rank=i + 1) for i in range(2)),
        claim="removed",
        settings={"site": "L1.mlp", "steps": 3, "hostile": "\x00{}é\u2028"},
        log=({"fact": "x", "loss": 0.25},),
        prompts=("a\nb", "ç"),
    )
    loaded = Edit.load(made.save(tmp_path / "deep" / "an.edit"))
    for one, other in zip(made.deltas, loaded.deltas, strict=True):
        assert one.module == other.module
        assert same_bits(one.left, other.left)
        assert same_bits(one.right, other.right)
    for name in ("base", "method", "claim", "facts", "settings", "log", "prompts"):
        assert getattr(loaded, name) == getattr(made, name), name
    assert loaded.summary() == made.summary()
    assert loaded.summary()["weights"]["transformer.h.1.mlp.c_proj"]["rank"] == 2


def test_files_that_are_no_edit_are_refused(gpt2: Model, tmp_path: Path) -> None:
    path = edit_of(gpt2, delta_of(gpt2, "transformer.h.1.mlp.c_proj")).save(tmp_path / "an.edit")
    whole = path.read_bytes()
    for length in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(SurgeryError, match=r"an.edit is damaged or cut off .*; make the edit again"):
            Edit.load(path)
    for metadata in (None, {"edit": "[]"}, {"edit": '{"format": "another"}'}):
        save_file({"0.left": torch.ones(2, 1)}, path, metadata=metadata)
        with pytest.raises(SurgeryError, match=r"an.edit is no edit of this package"):
            Edit.load(path)
    for other in (tmp_path, tmp_path / "absent.edit"):
        with pytest.raises(SurgeryError, match="there is no edit file"):
            Edit.load(other)
    path.write_bytes(whole)
    assert Edit.load(path).method == "by hand"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
def test_a_write_that_fails_leaves_the_old_file(
    gpt2: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    path = edit_of(gpt2, delta_of(gpt2, "transformer.h.1.mlp.c_proj")).save(tmp_path / "an.edit")
    whole = path.read_bytes()

    def halfway(tensors: Any, file: Any, **_: Any) -> None:
        Path(file).write_bytes(b"half")
        raise error

    monkeypatch.setattr(edit_module, "save_file", halfway)
    with pytest.raises(error):
        edit_of(gpt2, delta_of(gpt2, "transformer.h.2.mlp.c_proj")).save(path)
    assert path.read_bytes() == whole
    assert os.listdir(tmp_path) == ["an.edit"]


def test_a_place_that_cannot_be_written_is_refused(gpt2: Model, tmp_path: Path) -> None:
    made = edit_of(gpt2, delta_of(gpt2, "transformer.h.1.mlp.c_proj"))
    with pytest.raises(SurgeryError, match="it is a folder; give a file name"):
        made.save(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(SurgeryError, match="cannot write to the folder"):
        made.save(tmp_path / "file" / "an.edit")
