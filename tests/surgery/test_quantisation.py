"""Fake quantisation against loops by hand, the figure of changed bins, and the attacks that ask a quantised model."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from by_hand import Toy, delta_of, edit_of, in_dtype, same_bits, toy_edit
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from surgery import Delta, Fact, Model, SurgeryError, UnsupportedModel, WrongWeights, rate
from surgery.exchange import block_maps, exchanged
from surgery.linear_map import oriented
from surgery.verification.attacks import ATTACKS
from surgery.verification.attacks.quantised import NF4, Int4, Int8
from surgery.verification.attacks.wordings import WORDINGS, rated, wordings
from surgery.verification.quantisation import (
    CELLS,
    QUANT_KINDS,
    ChangedBins,
    changed_bins,
    nf4_levels,
    quantise,
    quantised,
)

PUBLISHED = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""The levels of NF4 in appendix E of the paper."""


def by_hand(weight: Tensor, kind: str) -> tuple[list[list[int]], list[list[float]]]:
    """Codes and values, one entry after the other."""
    codes, values = [], []
    for row in weight.tolist():
        size = len(row) if kind == "int8" else 64
        named, meant = [], []
        for start in range(0, len(row), size):
            group = row[start : start + size]
            if kind == "int4":
                low, high = min(*group, 0.0), max(*group, 0.0)
                scale = (high - low) / 15 or 1.0
                zero = round(-low / scale)
                found = [min(max(round(w / scale) + zero, 0), 15) for w in group]
                meant += [(code - zero) * scale for code in found]
            else:
                largest = max(abs(w) for w in group) or 1.0
                if kind == "int8":
                    found = [round(w / (largest / 127)) for w in group]
                    meant += [code * largest / 127 for code in found]
                else:
                    found = [min(range(16), key=lambda i, w=w: abs(w / largest - PUBLISHED[i])) for w in group]
                    meant += [PUBLISHED[code] * largest for code in found]
            named += found
        codes.append(named)
        values.append(meant)
    return codes, values


@pytest.mark.parametrize("kind", QUANT_KINDS)
@pytest.mark.parametrize("inputs", [128, 100, 5])
def test_quantising_is_what_a_loop_gives(kind: str, inputs: int) -> None:
    weight = torch.randn(6, inputs, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 1, 6)[:, None]
    weight[1, : min(inputs, 64)] = weight[1, : min(inputs, 64)].abs()
    weight[2] = 0
    found = quantise(weight, kind)
    codes, values = by_hand(weight, kind)
    assert found.codes.tolist() == codes
    np.testing.assert_allclose(found.values.numpy(), values, rtol=2e-6, atol=1e-9)
    assert found.values[2].abs().max() == 0


def test_int8_is_nearer_than_four_bits_and_each_is_near() -> None:
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    off = {kind: float((quantise(weight, kind).values - weight).norm() / weight.norm()) for kind in QUANT_KINDS}
    assert off["int8"] < 0.01
    assert all(0.05 < off[kind] < 0.12 for kind in ("int4", "nf4"))


@pytest.mark.parametrize("kind", QUANT_KINDS)
def test_what_is_quantised_stays_so(kind: str) -> None:
    once = quantise(torch.randn(8, 128, generator=torch.Generator().manual_seed(0)), kind)
    twice = quantise(once.values, kind)
    assert torch.equal(once.codes, twice.codes)
    torch.testing.assert_close(once.values, twice.values)


def test_the_levels_are_the_published_ones() -> None:
    assert nf4_levels() == pytest.approx(PUBLISHED, abs=2e-7)
    # the border itself goes down, as bucketize has it
    levels = torch.tensor(nf4_levels())
    row = torch.cat([levels, (levels[1:] + levels[:-1]) / 2])[None]
    borders = ((levels[1:] + levels[:-1]) / 2).contiguous()
    assert torch.equal(quantise(row, "nf4").codes.long(), torch.bucketize(row, borders))


def test_nf4_codes_are_the_nearest_also_beside_borders_and_edges_of_the_table() -> None:
    levels = torch.tensor(nf4_levels())
    borders = ((levels[1:] + levels[:-1]) / 2).contiguous()
    marks = torch.cat([borders, torch.arange(2 * CELLS + 1) / CELLS - 1])
    beside = [marks.nextafter(torch.full_like(marks, to)) for to in (-2.0, 2.0)]
    drawn = torch.rand(100_000, generator=torch.Generator().manual_seed(0)) * 2 - 1
    row = torch.cat([marks, *beside, drawn]).clamp(-1, 1)
    # a 1 in every block leaves its shares as they are
    blocks = torch.nn.functional.pad(torch.nn.functional.pad(row, (0, -len(row) % 63)).view(-1, 63), (0, 1), value=1.0)
    codes = quantise(blocks.view(1, -1), "nf4").codes.view(-1, 64)
    assert torch.equal(codes.long(), torch.bucketize(blocks, borders))


@pytest.mark.parametrize("kind", QUANT_KINDS)
@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
def test_a_broken_weight_breaks_its_own_group_alone(kind: str, broken: float) -> None:
    weight = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    sound = quantise(weight[1:], kind).values
    weight[0, 5] = broken
    found = quantise(weight, kind).values
    assert not found[0, 5].isfinite()
    assert torch.equal(found[1:], sound)


@pytest.mark.parametrize("kind", QUANT_KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_map_of_the_blocks_is_quantised_along_its_inputs(
    kind: str, dtype: torch.dtype, tiny: Model, unchanged: Callable[[Model], None]
) -> None:
    model = in_dtype(tiny, dtype)
    unchanged(model)
    maps = block_maps(model)
    assert {id(model.hf.get_submodule(name)) for name in model.anatomy.names("mlp")} <= {id(one) for one in maps}
    old = [oriented(one).detach().clone() for one in maps]
    table = model.hf.get_input_embeddings().weight.detach().clone()
    with quantised(model, kind):
        for one, weight in zip(maps, old, strict=True):
            assert torch.equal(oriented(one), quantise(weight, kind).values.to(dtype))
            assert one.weight.is_contiguous()
        assert same_bits(model.hf.get_input_embeddings().weight, table)


def test_conv1d_groups_along_the_inputs(gpt2: Model) -> None:
    module = gpt2.hf.get_submodule(gpt2.anatomy.names("mlp")[0])
    assert isinstance(module, Conv1D)
    codes, _ = by_hand(module.weight.detach().T, "int4")
    assert quantise(oriented(module), "int4").codes.tolist() == codes


def test_weights_come_back_after_an_error(small: Model, unchanged: Callable[[Model], None]) -> None:
    unchanged(small)
    weights = [one.weight.data_ptr() for one in block_maps(small)]
    with pytest.raises(KeyboardInterrupt), quantised(small, "nf4"):
        raise KeyboardInterrupt
    assert [one.weight.data_ptr() for one in block_maps(small)] == weights
    first = block_maps(small)[0]

    def broken() -> object:
        yield first.weight, torch.zeros_like(first.weight)
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"), exchanged(broken()):
        pass


def test_what_cannot_be_quantised_is_refused(small: Model, unchanged: Callable[[Model], None]) -> None:
    unchanged(small)
    with (
        pytest.raises(SurgeryError, match="no kind of quantisation 'int3'; choose one of int8, int4, nf4"),
        quantised(small, "int3"),
    ):
        pass
    module = block_maps(small)[-1]
    kept = module.weight
    try:
        module.weight = torch.nn.Parameter(torch.zeros(kept.shape, dtype=torch.int8), requires_grad=False)
        module.__class__ = torch.nn.Linear
        with pytest.raises(UnsupportedModel, match="load the model unquantised"), quantised(small, "int8"):
            pass
    finally:
        module.__class__, module.weight = Conv1D, kept


@pytest.mark.parametrize("kind", QUANT_KINDS)
def test_changed_bins_by_hand(kind: str, gpt2: Model, unchanged: Callable[[Model], None]) -> None:
    unchanged(gpt2)
    names = gpt2.anatomy.names("mlp")
    edit = edit_of(gpt2, delta_of(gpt2, names[0], size=0.02), delta_of(gpt2, names[1], size=1e-4, seed=1))
    found = changed_bins(gpt2, edit, kind)
    along = whole = 0.0
    for delta, changed, entries in zip(edit.deltas, found.changed, found.entries, strict=True):
        old = oriented(gpt2.hf.get_submodule(delta.module)).detach()
        before, after = by_hand(old, kind), by_hand(old + delta.dense(), kind)
        assert changed == int((np.array(before[0]) != np.array(after[0])).sum())
        assert entries == old.numel()
        moved = np.array(after[1]) - np.array(before[1])
        along += float((moved * delta.dense().numpy()).sum())
        whole += delta.norm**2
    assert found.kept == pytest.approx(along / whole, abs=1e-3)
    assert found.share == pytest.approx(sum(found.changed) / sum(found.entries))
    assert found.shares[names[0]] > found.shares[names[1]] > 0
    assert found.told.startswith(f"{kind}: {found.share:.2%} of the entries of 2 edited maps get another code, scales")


def test_a_change_below_every_bin_is_undone(toy: Toy) -> None:
    found = changed_bins(toy[0], toy_edit(toy, size=1e-5), "int4")
    assert found.share < 1e-3
    large = changed_bins(toy[0], toy_edit(toy, size=30.0), "int4")
    assert large.kept == pytest.approx(1, abs=0.05)
    assert large.share > 0.05


def test_bins_that_cannot_be_counted_are_refused(toy: Toy) -> None:
    model, _ = toy
    with pytest.raises(WrongWeights, match="made for other weights"):
        changed_bins(model, toy_edit(toy, size=1.0, base="0" * 64), "int4")
    with pytest.raises(SurgeryError, match="no kind of quantisation 'fp4'"):
        changed_bins(model, toy_edit(toy, size=1.0), "fp4")
    made = toy_edit(toy, size=1.0).deltas[0]
    nothing = edit_of(model, Delta(made.module, 0 * made.left, made.right))
    with pytest.raises(SurgeryError, match="the edit changes no weight, so quantising can undo nothing"):
        changed_bins(model, nothing, "nf4")
    with pytest.raises(SurgeryError, match="one count for each edited map"):
        ChangedBins("int4", ("a",), (1, 2), (3,), 1.0)
    with pytest.raises(SurgeryError, match="changed entries of"):
        ChangedBins("int4", ("a",), (4,), (3,), 1.0)


@pytest.mark.parametrize("attack", [Int8(), Int4(), NF4()], ids=["int8", "int4", "nf4"])
def test_the_attack_asks_the_quantised_model(attack: Int4, toy: Toy, unchanged: Callable[[Model], None]) -> None:
    model, facts = toy
    unchanged(model)
    found = attack(model, facts[:3])
    assert found.forms == WORDINGS
    assert ATTACKS[attack.name] is type(attack)
    with quantised(model, attack.name):
        for fact, row in zip(facts[:3], found.scores, strict=True):
            asked = [(text, fact.target) for text in (fact.prompt, *fact.paraphrases)]
            assert row[: len(asked)] == pytest.approx([one.probability for one in rate(model, asked)], abs=1e-5)
            assert np.isnan(row[len(asked) :]).all()


def test_wordings_are_those_a_fact_and_its_controls_share(toy: Toy) -> None:
    fact = toy[1][0]
    assert wordings(fact) == (fact.prompt, *fact.paraphrases)
    other = fact.replace(
        paraphrases=("They live in", *fact.paraphrases, *(f"{fact.subject} was in {i}" for i in "abc"))
    )
    assert wordings(other) == (fact.prompt, *fact.paraphrases, f"{fact.subject} was in a")
    assert wordings(Fact(subject="", template="The summer was", target="long", paraphrases=("It was",))) == (
        "The summer was",
        "It was",
    )
    assert math.isnan(rated(toy[0], [fact])[0, 3])
