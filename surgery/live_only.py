"""Maps of one token at a time, without the padding of a batch.

Rows of one batch are as wide as the longest, and in a replay, whose rows begin at a subject's last token, a third of
the places may hold nothing. An mlp looks at each token alone:

1. On the way in, the tokens that are read are put side by side, as one row.
2. On the way out they are put back to where they were; padding, which nobody looks at, gets zeros.

Attention goes on to see rows. The numbers are the same to rounding.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from surgery.gpu_queue import sent
from surgery.model import Model


class LiveOnly(AbstractContextManager[None]):
    """A block, to be entered again and again, in which modules are given the first so many tokens of each row.

    Modules that want more than states are left as they are, and so is a batch without padding.
    """

    def __init__(self, modules: Sequence[nn.Module], lengths: Sequence[int], width: int, device: torch.device) -> None:
        """Rows of these lengths are padded to `width` on the right."""
        self._modules = [one for one in modules if len(inspect.signature(one.forward).parameters) == 1]
        self._lengths, self._width, self._device = list(lengths), width, device
        self._handles: list[RemovableHandle] = []
        self.keep(range(len(lengths)))

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows."""
        self._lengths = [self._lengths[row] for row in rows]
        places = [row * self._width + at for row, length in enumerate(self._lengths) for at in range(length)]
        self._padded = len(places) < len(self._lengths) * self._width
        self._places: Int[Tensor, " live"] = sent(places, self._device)

    def __enter__(self) -> None:
        for module in self._modules if self._padded else ():
            self._handles.append(module.register_forward_pre_hook(self._given))
            self._handles.append(module.register_forward_hook(self._put_back))

    def __exit__(self, *raised: object) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _given(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Float[Tensor, "1 live d"]] | None:
        """The tokens that are read; None to leave what has another shape."""
        if not args or args[0].shape[:-1] != (len(self._lengths), self._width):
            return None
        return (args[0].flatten(0, 1).index_select(0, self._places)[None],)

    def _put_back(
        self, module: nn.Module, args: tuple[Any, ...], output: Tensor
    ) -> Float[Tensor, "rows width d"] | None:
        if not args or args[0].shape[:-1] != (1, len(self._places)):
            return None
        made = output.new_zeros(len(self._lengths) * self._width, output.shape[-1])
        return made.index_copy(0, self._places, output[0]).unflatten(0, (-1, self._width))


def mlps(model: Model) -> list[nn.Module]:
    """The mlp of each block; where a block holds its maps itself, the last of them."""
    found = []
    for block, last in zip(model.anatomy.names("state"), model.anatomy.names("mlp"), strict=True):
        whole = last.rpartition(".")[0]
        found.append(model.hf.get_submodule(last if whole == block else whole))
    return found
