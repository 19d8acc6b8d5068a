"""A model whose linear maps hold only numbers that a few bits can name, and which of an edit's numbers get other bits.

Small changes vanish when a model is quantised, and what was unlearned comes back (https://arxiv.org/abs/2410.16454).
The weights are rounded and stay in their own type ("fake quantisation"), so nothing but PyTorch is needed:
1. int8: one scale for each output, its largest |w| / 127; the code is w / scale, rounded.
2. int4, asymmetric: groups of 64 inputs; scale = (max - min) / 15 with 0 between them, a zero point rounded to a code;
   the code is w / scale + zero point, rounded, 0 to 15.
3. NF4 (QLoRA, https://arxiv.org/abs/2305.14314, section 3): blocks of 64 inputs; w / its block's largest |w| goes to
   the nearest of 16 levels: quantiles of the normal distribution, 8 up from 0 and 7 down, brought to -1 ... 1.
Scales stay in float32, activations are not quantised, embedding and head are left as they are. Blocks end with the row,
whichever way the weight is stored; where inputs are no multiple of 64, the last one is shorter.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float, Int8
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers.pytorch_utils import Conv1D

from surgery.edit import Edit, add_, weight_of
from surgery.errors import NothingToTry, SurgeryError, check_choice
from surgery.exchange import block_maps, exchanged
from surgery.linear_map import oriented
from surgery.model import Model

QUANT_KINDS = ("int8", "int4", "nf4")
GROUP = 64
CELLS = 64
"""To each side of 0, of the table that finds NF4 codes; borders between levels are further apart than one."""


@dataclass(frozen=True, eq=False)
class Quantised:
    """A weight in few bits.

    Attributes:
        codes: which of the numbers that can be named each entry is, int8 in every kind.
        values: that number, float32.
    """

    codes: Int8[Tensor, "out in"]
    values: Float[Tensor, "out in"]


@torch.no_grad()
def quantise(weight: Float[Tensor, "out in"], kind: str) -> Quantised:
    """The nearest numbers that a kind of quantisation can name.

    Raises:
        SurgeryError: there is no such kind.
    """
    check_choice("kind of quantisation", kind, QUANT_KINDS)
    weight = weight.detach().float()
    if kind == "int8":
        scale = _or_one(_largest(weight) / 127)
        rounded = (weight / scale).round_()
        return Quantised(rounded.to(torch.int8), rounded.mul_(scale))
    inputs = weight.shape[1]
    # zeros at the end change neither an absolute maximum nor a range that holds 0
    groups = pad(weight, (0, -inputs % GROUP)).unflatten(1, (-1, GROUP))
    codes, values = _int4(groups) if kind == "int4" else _nf4(groups)
    return Quantised(codes.flatten(1)[:, :inputs], values.flatten(1)[:, :inputs])


@cache
def nf4_levels() -> tuple[float, ...]:
    """The 16 levels of NF4, from the lowest."""
    edge = 1 - (1 / 32 + 1 / 30) / 2
    up = torch.special.ndtri(torch.linspace(0.5, edge, 9, dtype=torch.float64))
    down = -torch.special.ndtri(torch.linspace(0.5, edge, 8, dtype=torch.float64))
    levels = torch.cat([down[1:].flip(0), up])
    return tuple((levels / levels[-1]).tolist())


@contextmanager
def quantised(model: Model, kind: str) -> Iterator[Model]:
    """The model with every linear map of its blocks quantised, for the length of a `with` block.

    Raises:
        SurgeryError: there is no such kind, or the model's maps hold no plain weights.
    """
    maps = {id(module.weight): module for module in block_maps(model)}

    def made() -> Iterator[tuple[nn.Parameter, Tensor]]:
        for module in maps.values():
            weight = module.weight
            assert isinstance(weight, nn.Parameter)
            values = quantise(oriented(module), kind).values.to(weight.dtype)
            yield weight, (values.T if isinstance(module, Conv1D) else values).contiguous()

    with exchanged(made()):
        yield model


@dataclass(frozen=True)
class ChangedBins:
    """How much of an edit is left when the model is quantised after it.

    Attributes:
        kind: how it is quantised.
        modules: the edited maps.
        changed: of each, how many entries have another code with the edit than without.
        entries: of each, how many it has.
        kept: the share of the edit that is left: how far the quantised weights move along it, over all maps. 1 where
            nothing is lost on average, 0 where the edit is undone.
    """

    kind: str
    modules: tuple[str, ...]
    changed: tuple[int, ...]
    entries: tuple[int, ...]
    kept: float

    def __post_init__(self) -> None:
        if not len(self.modules) == len(self.changed) == len(self.entries) > 0:
            raise SurgeryError("changed bins need one count for each edited map, and at least one map")
        if any(not 0 <= part <= whole or not whole for part, whole in zip(self.changed, self.entries, strict=True)):
            raise SurgeryError(f"{self.changed} changed entries of {self.entries} cannot be")

    @property
    def shares(self) -> dict[str, float]:
        """The share of changed codes of each map, 0 to 1."""
        return {name: part / whole for name, part, whole in zip(self.modules, self.changed, self.entries, strict=True)}

    @property
    def share(self) -> float:
        """The share of changed codes over all edited maps, 0 to 1."""
        return sum(self.changed) / sum(self.entries)

    @property
    def told(self) -> str:
        """In words."""
        maps = "1 edited map" if len(self.modules) == 1 else f"{len(self.modules)} edited maps"
        return (
            f"{self.kind}: {self.share:.2%} of the entries of {maps} get another code, scales taken anew with and "
            f"without the edit; {self.kept:.0%} of the change is left"
        )


@torch.no_grad()
def changed_bins(model: Model, edit: Edit, kind: str) -> ChangedBins:
    """Which entries of the edited weights are quantised to other codes than without the edit. The model stays as it is.

    Scales are taken anew with and without it, as quantising each model would, so that a code may also differ because
    its group's scale does; `kept` tells what is left of the change itself.

    Args:
        model: the base model.
        edit: the edit, which must change something.
        kind: of quantisation.

    Raises:
        WrongWeights: the edit was made for other weights.
        NothingToTry: the edit changes nothing.
        SurgeryError: there is no such kind.
    """
    check_choice("kind of quantisation", kind, QUANT_KINDS)
    edit.check_base(model)
    changed, entries, along, whole = [], [], 0.0, 0.0
    for delta in edit.deltas:
        old = weight_of(model, delta).detach()
        new = old.clone()
        add_(new, delta)
        change = (new.float() - old.float()).double()
        one, other = quantise(old, kind), quantise(new, kind)
        changed.append(int((one.codes != other.codes).sum()))
        entries.append(old.numel())
        along += float(((other.values - one.values).double() * change).sum())
        whole += float(change.square().sum())
    if not whole:
        reason = "the edit changes no weight"
        raise NothingToTry(f"{reason}, so quantising can undo nothing; give one that does", reason)
    return ChangedBins(kind, tuple(one.module for one in edit.deltas), tuple(changed), tuple(entries), along / whole)


def _int4(groups: Float[Tensor, "out groups size"]) -> tuple[Tensor, Tensor]:
    low = groups.amin(-1, keepdim=True).clamp_(max=0)
    high = groups.amax(-1, keepdim=True).clamp_(min=0)
    scale = _or_one((high - low) / 15)
    zero = (-low / scale).round_()
    codes = (groups / scale).round_().add_(zero).clamp_(0, 15)
    return codes.to(torch.int8), (codes - zero).mul_(scale)


def _nf4(groups: Float[Tensor, "out groups size"]) -> tuple[Tensor, Tensor]:
    scale = _or_one(_largest(groups))
    share = groups / scale
    levels = torch.tensor(nf4_levels(), device=groups.device)
    codes = _nearest(share.flatten(), levels)
    values = levels.index_select(0, codes.int()).view(groups.shape)
    return codes.view(groups.shape), values.mul_(scale)


def _nearest(shares: Float[Tensor, " n"], levels: Float[Tensor, " levels"]) -> Int8[Tensor, " n"]:
    """Which level is nearest to each share, -1 to 1, of two the lower: as `bucketize`, but several times faster.

    -1 to 1 is cut into cells with at most one border between two levels in each: a look at the cell's table and one
    comparison tell on which side of it a share is.
    """
    borders = (levels[1:] + levels[:-1]) / 2
    edges = torch.arange(2 * CELLS + 1, device=levels.device) / CELLS - 1
    start = torch.bucketize(edges, borders)
    border = torch.cat([borders, borders.new_full((1,), torch.inf)])[start]
    # what is no number has a place too, and stays none
    cell = shares.add(1).mul_(CELLS).int().clamp_(0, 2 * CELLS)
    codes = start.to(torch.int8).index_select(0, cell)
    codes += shares > border.index_select(0, cell)
    return codes


def _largest(rows: Float[Tensor, "*rows size"]) -> Float[Tensor, "*rows 1"]:
    # two passes over the numbers as they are take a tenth of the time of one over their absolute values
    return torch.maximum(rows.amax(-1, keepdim=True), -rows.amin(-1, keepdim=True))


def _or_one(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, 1.0, scale)
