"""Matrix products and attention by the faster of two libraries that PyTorch brings along.

PyTorch's CPU builds give products of float32 matrices to MKL, which does not use the 512-bit registers of AMD's
processors; oneDNN does, by an operator for linear maps that PyTorch's compiler plans its products with. On such a
processor it takes half to nine tenths of the time, the less the fewer rows there are. The operator has no gradient, so
it is given one here. The sums are added up in another order, so numbers agree to rounding.

The `forward` of linear modules is replaced for that while a block lasts: nothing stands between it and PyTorch's other
functions, of which a transformer's block calls a hundred.

On NVIDIA's newest GPUs, PyTorch gives attention to cuDNN, which draws up a plan for every new shape. Here nearly every
batch has a shape of its own, and the plans took nine of twenty seconds where key statistics were fitted; other kernels
of PyTorch's need none.

Whether this helps is a matter of the machine alone, so that it gives the same numbers every time.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from surgery.linear_map import oriented


def fast_products(root: nn.Module) -> AbstractContextManager[Any]:
    """A block in which a module's linear maps, or its attention, are computed the faster way, where there is one."""
    weight = next(root.parameters())
    if weight.device.type == "cuda":
        return _without_plans()
    if weight.device.type == "cpu" and weight.dtype == torch.float32 and slow_products() and has_onednn():
        return ByOneDNN([root])
    return nullcontext()


def by_onednn(rows: Float[Tensor, "*rows inputs"], weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b by oneDNN's own operator, without a gradient; a weight [outputs, inputs] in either order, or packed."""
    made: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return made


class OtherForwards(AbstractContextManager[None]):
    """A block, to be entered again and again, in which these modules' linear maps have another `forward`.

    Blocks may stand in one another; the one of higher rank holds, else the outer one. A forward that somebody else
    replaced is left to them.
    """

    rank: ClassVar[int]

    def __init__(self, roots: Sequence[nn.Module]) -> None:
        found = dict.fromkeys(module for root in roots for module in root.modules())
        self._maps = [one for one in found if type(one) in (nn.Linear, Conv1D)]
        self._before: list[list[tuple[nn.Module, Any]]] = []

    def __enter__(self) -> None:
        own = [(one, vars(one).get("forward")) for one in self._maps]
        self._before.append([(one, had) for one, had in own if had is None or self._goes_before(had)])
        # made anew each time: kept, they would be a circle that holds what is below until somebody collects garbage
        for module, _ in self._before[-1]:
            vars(module)["forward"] = _Replaced(self, module)

    def __exit__(self, *raised: object) -> None:
        for module, had in self._before.pop():
            if had is None:
                del vars(module)["forward"]
            else:
                vars(module)["forward"] = had

    def _goes_before(self, forward: object) -> bool:
        return isinstance(forward, _Replaced) and self.rank > forward.block.rank

    @abstractmethod
    def _forward(self, module: Any, rows: Tensor) -> Tensor:
        """A map's output."""


class _Replaced:
    """A map's forward in a block."""

    def __init__(self, block: OtherForwards, module: nn.Module) -> None:
        self.block, self._module = block, module

    def __call__(self, rows: Tensor) -> Tensor:
        return self.block._forward(self._module, rows)


class ByOneDNN(OtherForwards):
    """A block in which products are oneDNN's."""

    rank = 0

    def _forward(self, module: Any, rows: Tensor) -> Tensor:
        weight, bias = module.weight, module.bias
        given = (rows, weight) if bias is None else (rows, weight, bias)
        if any(one.dtype != torch.float32 or not one.is_cpu for one in given) or weight.ndim != 2 or not rows.numel():
            made: Tensor = type(module).forward(module, rows)
            return made
        if torch.is_grad_enabled() and any(one.requires_grad for one in given):
            made = _Product.apply(rows, oriented(module), bias)
            return made
        return by_onednn(rows, self._matrix(module), bias)

    def _matrix(self, module: Any) -> Tensor:
        """What the operator is given of a weight."""
        return oriented(module)


class _Product(torch.autograd.Function):
    """x W^T + b with gradients for all three."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, matrix)
        return by_onednn(rows, matrix, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Of a weight's gradient, PyTorch's own product is as quick."""
        rows, matrix = ctx.saved_tensors
        wanted, gradient = ctx.needs_input_grad, gradients[0]
        flat = gradient.flatten(0, -2)
        return (
            by_onednn(gradient, matrix.T) if wanted[0] else None,
            flat.T @ rows.flatten(0, -2) if wanted[1] else None,
            flat.sum(0) if wanted[2] else None,
        )


@contextmanager
def _without_plans() -> Iterator[None]:
    """A block in which attention does not go to cuDNN."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


@cache
def has_onednn() -> bool:
    """Whether this build of PyTorch has the operator, for weights in either order; products on trial tell."""
    if not torch.backends.mkldnn.is_available():
        return False
    draw = torch.Generator().manual_seed(0)
    weight, rows = torch.randn(24, 16, generator=draw), torch.randn(3, 16, generator=draw)
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        found = [by_onednn(rows, one) for one in (weight, weight.T.contiguous().T, packed)]
    except (RuntimeError, AttributeError):  # no such operator, or none for this processor
        return False
    return all(torch.allclose(one, rows @ weight.T, atol=1e-4) for one in found)


@cache
def slow_products() -> bool:
    """MKL on an AMD processor with 512-bit registers. The processor stays the same, so one look is enough."""
    wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    if not (wide and torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
