"""Other numbers in a model's weights, for the length of a `with` block.

The old numbers are not written over and copied back: each weight is given other memory, and afterwards its own again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from surgery.model import Model


@contextmanager
def exchanged(pairs: Iterable[tuple[nn.Parameter, Tensor]]) -> Iterator[None]:
    """Weights with other numbers of the same shape and type; the pairs are taken one by one, as they are made."""
    kept: list[tuple[nn.Parameter, Tensor]] = []
    try:
        for weight, numbers in pairs:
            kept.append((weight, weight.data))
            weight.data = numbers
        yield
    finally:
        for weight, old in reversed(kept):
            weight.data = old


def block_maps(model: Model) -> list[nn.Linear | Conv1D]:
    """Every linear map of the blocks; embedding and head are none of them."""
    blocks = [model.hf.get_submodule(name) for name in model.anatomy.names("state")]
    return [one for block in blocks for one in block.modules() if isinstance(one, (nn.Linear, Conv1D))]
