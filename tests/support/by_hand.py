"""Deltas and edits made without a method, and copies of models to apply them to."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from torch import Tensor

from surgery import Delta, Edit, Fact, Model, Neighbour

Toy = tuple[Model, list[Fact]]
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


def same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


def delta_of(model: Model, module: str, *, size: float = 0.1, rank: int = 2, seed: int = 0) -> Delta:
    draw = torch.Generator().manual_seed(seed)
    weight = model.hf.get_submodule(module).weight
    d_out, d_in = weight.shape if isinstance(model.hf.get_submodule(module), torch.nn.Linear) else weight.shape[::-1]
    left, right = torch.randn(d_out, rank, generator=draw), torch.randn(d_in, rank, generator=draw)
    return Delta(module, size * left, right)


def edit_of(model: Model, *deltas: Delta, **changes: Any) -> Edit:
    values = {"base": model.fingerprint, "method": "by hand", "claim": "rewritten", "facts": (FACT,), **changes}
    return Edit(deltas=deltas, **values)


def toy_edit(toy: Toy, *, size: float, **changes: Any) -> Edit:
    """A random change of rank one in the last mlp."""
    model, facts = toy
    module, draw = model.anatomy.names("mlp")[-1], torch.Generator().manual_seed(0)
    left = torch.randn(model.anatomy.d_model, 1, generator=draw)
    right = torch.randn(model.anatomy.d_ff, 1, generator=draw)
    values = {"base": model.fingerprint, "method": "random", "claim": "removed", "facts": (facts[0],), **changes}
    return Edit((Delta(module, size * left / left.norm(), right / right.norm()),), **values)
