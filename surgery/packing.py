"""Linear maps whose weights are used again and again as they are.

Products of 16 to 130 rows are where oneDNN, which PyTorch brings along, is ahead of MKL: on AMD's processors always, on
others where a weight is read against its order, as gradients do.

1. A weight is handed to oneDNN as it is stored, either way.
2. It can bring a weight into blocks in the order its kernels read them (packing), which makes later products quicker by
   up to two fifths. That pays after some five uses, or fifteen where the weight has to be copied into another order
   first; so a weight is packed after so many, or at once where as many are sure to come.

The two operators are those that PyTorch's own compiler plans its products with. Sums are added up in another order, so
numbers agree to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from surgery.fingerprint import stamp
from surgery.products import ByOneDNN, OtherForwards, by_onednn, fast_products, has_onednn, slow_products

MOST_BYTES = 4 * 2**30
"""Most memory that packed weights may take; maps that are met later are never packed."""
OFTEN, OFTEN_AGAINST = 5, 15
"""Uses that packing pays for itself by; of a weight that is read against its order."""


def packed_products(roots: Sequence[nn.Module], *, sure: int = 1) -> AbstractContextManager[Any]:
    """A block to be entered again and again, in which these modules' linear maps use packed weights, where they can.

    For weights that stay as they are between the first entry and the last, and are used `sure` times at least.
    """
    weight = next(parameter for root in roots for parameter in root.parameters())
    if weight.device.type == "cpu" and weight.dtype == torch.float32 and has_onednn():
        return PackedProducts(roots, sure)
    return _Again(roots)


def steady_products(root: nn.Module) -> AbstractContextManager[Any]:
    """`fast_products`, packed, for a block in which nobody writes to weights past PyTorch, as by `weight.data += 1`.

    Weights may be written to, or given other memory; then they are multiplied as they are.
    """
    made = fast_products(root)
    return SteadyProducts([root]) if isinstance(made, ByOneDNN) else made


class SteadyProducts(ByOneDNN):
    """A block in which weights are packed that are as they were when it was entered."""

    rank = 2

    def __enter__(self) -> None:
        # the memory is kept, so that no other weight's can take its place
        weights: list[Any] = [one.weight for one in self._maps]
        self._found = {one: (one.detach(), stamp(one)) for one in weights}
        self._packed: dict[Tensor, Tensor] = {}
        self._room = _Room(MOST_BYTES)
        super().__enter__()

    def __exit__(self, *raised: object) -> None:
        super().__exit__(*raised)
        del self._found, self._packed

    def _matrix(self, module: Any) -> Tensor:
        weight = module.weight
        if weight not in self._found or self._found[weight][1] != stamp(weight):
            return super()._matrix(module)
        if weight not in self._packed:
            plain = super()._matrix(module)
            self._packed[weight] = _reordered(plain) if self._room.taken(weight.nbytes) else plain
        return self._packed[weight]


class PackedProducts(OtherForwards):
    """A block in which oneDNN computes linear maps whose weights are not learned, forwards and backwards.

    It can be entered again and again, and keeps its packed copies. Nobody may change the weights in the meantime: one
    that is seen to have been changed is refused, and `weight.data` must be left alone.
    """

    rank = 1

    def __init__(self, roots: Sequence[nn.Module], sure: int = 1) -> None:
        super().__init__(roots)
        self._kept: dict[int, _Packed] = {}
        self._room, self._sure = _Room(MOST_BYTES), sure

    def _forward(self, module: Any, rows: Tensor) -> Tensor:
        """A module's output, by oneDNN where its weight is one to be packed."""
        packed = self._packed(module.weight, rows, transposed=type(module) is Conv1D)
        return type(module).forward(module, rows) if packed is None else _product(rows, packed, module.bias)

    def _packed(self, weight: Tensor, rows: Tensor, *, transposed: bool) -> _Packed | None:
        """What products with the weight are asked of; None where it is none to be packed."""
        single = weight.dtype == rows.dtype == torch.float32
        # what is no parameter was worked out for this one product
        if not single or weight.ndim != 2 or not isinstance(weight, nn.Parameter):
            return None
        if weight.requires_grad and torch.is_grad_enabled():
            return None
        found = self._kept.get(id(weight))
        if found is None:
            found = self._kept[id(weight)] = _Packed(weight, self._room, self._sure, transposed=transposed)
        found.check()
        return found


class _Room:
    """Bytes that packed weights may still take."""

    def __init__(self, left: int) -> None:
        self._left = left

    def taken(self, needed: int) -> bool:
        """Whether there were so many, which are taken then."""
        fits = needed <= self._left
        self._left -= needed if fits else 0
        return fits


class _Packed:
    """A map x -> x W^T and the map back."""

    def __init__(self, weight: Tensor, room: _Room, sure: int, *, transposed: bool) -> None:
        # kept, so that no other weight can take its place in memory
        self._weight, self._version = weight, weight._version
        matrix = weight.detach().T if transposed else weight.detach()
        self._matrix, self._transposed = matrix, transposed
        self._ways = {False: _Way(matrix, room, sure), True: _Way(matrix.T, room, sure)}

    def check(self) -> None:
        if self._weight._version != self._version:
            raise RuntimeError("a weight was changed while its packed copy was in use")

    def __call__(self, rows: Tensor, bias: Tensor | None, *, back: bool) -> Tensor:
        if back != self._transposed and not slow_products():
            # rows times the weight as it is stored: what MKL is as quick at, on its own processors
            made: Tensor = rows @ (self._matrix if back else self._matrix.T)
            return made if bias is None else made + bias
        return self._ways[back](rows, bias)


class _Way:
    """Products of one matrix, packed once it has been used often, or at once if it surely will be."""

    def __init__(self, matrix: Tensor, room: _Room, sure: int) -> None:
        self._matrix, self._room = matrix, room
        self._waits = max((OFTEN if matrix.is_contiguous() else OFTEN_AGAINST) - sure, 0)

    def __call__(self, rows: Tensor, bias: Tensor | None) -> Tensor:
        if self._waits == 0 and self._room.taken(self._matrix.nbytes):
            self._matrix = _reordered(self._matrix)
        self._waits -= 1
        made: Tensor = by_onednn(rows, self._matrix, bias)
        return made


def _reordered(matrix: Float[Tensor, "outputs inputs"]) -> Tensor:
    """A copy in the blocks that oneDNN's kernels read."""
    made: Tensor = torch.ops.mkldnn._reorder_linear_weight(matrix.contiguous(), None)
    return made


class _Product(torch.autograd.Function):
    """x W^T + b with gradients for x alone."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, packed: _Packed, bias: Tensor | None) -> Tensor:
        ctx.packed = packed
        return packed(rows, bias, back=False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return ctx.packed(gradients[0], None, back=True), None, None


def _product(rows: Tensor, packed: _Packed, bias: Tensor | None) -> Tensor:
    made: Tensor = _Product.apply(rows, packed, bias)
    return made


class _Again:
    """`fast_products`, to be entered again and again."""

    def __init__(self, roots: Sequence[nn.Module]) -> None:
        self._roots, self._inside = roots, ExitStack()

    def __enter__(self) -> None:
        for root in self._roots:
            self._inside.enter_context(fast_products(root))

    def __exit__(self, *raised: object) -> None:
        self._inside.close()
