"""Linear maps whose weights are used again and again as they are.

oneDNN, which PyTorch brings along, can bring a weight into blocks in the order its kernels read them. That costs about
as much as one product, and products of 16 to 130 rows then take a third to a half of the time. The two operators are
those that PyTorch's own compiler plans its products with. Sums are added up in another order, so numbers agree to
rounding. The modules' own `forward` is replaced while the block lasts: nothing stands between it and PyTorch's other
functions, of which a transformer's block calls a hundred.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from surgery.products import fast_products, slow_products

MOST_BYTES = 4 * 2**30
"""Most memory that packed weights may take; maps that are met later are computed as they are."""


def packed_products(roots: Sequence[nn.Module]) -> AbstractContextManager[Any]:
    """A block to be entered again and again, in which these modules' linear maps use packed weights, where they can.

    For weights that stay as they are between the first entry and the last.
    """
    weight = next(parameter for root in roots for parameter in root.parameters())
    if weight.device.type == "cpu" and weight.dtype == torch.float32 and _can_pack():
        return PackedProducts(roots)
    return _Again(weight.device, weight.dtype)


class PackedProducts(AbstractContextManager[None]):
    """A block in which linear maps whose weights are not learned use packed copies of them, forwards and backwards.

    It can be entered again and again, and keeps its copies. Nobody may change the weights in the meantime: one that is
    seen to have been changed is refused, and `weight.data` must be left alone.
    """

    def __init__(self, roots: Sequence[nn.Module]) -> None:
        self._kept: dict[int, _Packed] = {}
        self._bytes = 0
        found = dict.fromkeys(module for root in roots for module in root.modules())
        # one whose forward somebody else replaced is left to them
        self._maps = [one for one in found if type(one) in (nn.Linear, Conv1D) and "forward" not in vars(one)]

    def __enter__(self) -> None:
        # made anew each time: kept, they would be a circle that holds the copies until somebody collects garbage
        for module in self._maps:
            vars(module)["forward"] = partial(self._forward, module)

    def __exit__(self, *raised: object) -> None:
        for module in self._maps:
            del vars(module)["forward"]

    def _forward(self, module: Any, rows: Tensor) -> Tensor:
        """A module's output by its packed weight, where it is one to be packed."""
        packed = self._packed(module.weight, rows, transposed=type(module) is Conv1D)
        return type(module).forward(module, rows) if packed is None else _product(rows, packed, module.bias)

    def _packed(self, weight: Tensor, rows: Tensor, *, transposed: bool) -> _Packed | None:
        """The weight's packed copies; None where it has none and is given none."""
        single = weight.dtype == rows.dtype == torch.float32
        # what is no parameter was worked out for this one product
        if not single or weight.ndim != 2 or not isinstance(weight, nn.Parameter):
            return None
        if weight.requires_grad and torch.is_grad_enabled():
            return None
        found = self._kept.get(id(weight))
        if found is None:
            needed = 2 * weight.numel() * weight.itemsize
            if self._bytes + needed > MOST_BYTES:
                return None
            self._bytes += needed
            found = self._kept[id(weight)] = _Packed(weight, transposed=transposed)
        found.check()
        return found


class _Packed:
    """A map x -> x W^T and the map back, each packed when it is first needed, if that makes it quicker."""

    def __init__(self, weight: Tensor, *, transposed: bool) -> None:
        # kept, so that no other weight can take its place in memory
        self._weight, self._version = weight, weight._version
        self._matrix = weight.detach().T if transposed else weight.detach()
        self._transposed = transposed
        self._ways: dict[bool, Tensor] = {}

    def check(self) -> None:
        if self._weight._version != self._version:
            raise RuntimeError("a weight was changed while its packed copy was in use")

    def __call__(self, rows: Tensor, bias: Tensor | None, *, back: bool) -> Tensor:
        matrix = self._matrix.T if back else self._matrix
        if back != self._transposed and not slow_products():
            # rows times the weight as it is stored: what MKL is as quick at without a copy, on its own processors
            made: Tensor = rows @ matrix.T
            return made if bias is None else made + bias
        if back not in self._ways:
            self._ways[back] = torch.ops.mkldnn._reorder_linear_weight(matrix.contiguous(), None)
        made = torch.ops.mkldnn._linear_pointwise(rows, self._ways[back], bias, "none", [], "")
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

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._given, self._inside = (device, dtype), ExitStack()

    def __enter__(self) -> None:
        self._inside.enter_context(fast_products(*self._given))

    def __exit__(self, *raised: object) -> None:
        self._inside.close()


@cache
def _can_pack() -> bool:
    """Whether this build of PyTorch has the operators; one product on trial tells."""
    if not torch.backends.mkldnn.is_available():
        return False
    draw = torch.Generator().manual_seed(0)
    weight, rows = torch.randn(24, 16, generator=draw), torch.randn(3, 16, generator=draw)
    try:
        return torch.allclose(_Packed(weight, transposed=False)(rows, None, back=False), rows @ weight.T, atol=1e-4)
    except (RuntimeError, AttributeError):  # no such operator, or none for this processor
        return False
