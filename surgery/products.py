"""Matrix products and attention by the faster of two libraries that PyTorch brings along.

PyTorch's CPU builds give products of float32 matrices to MKL, which does not use the 512-bit registers of AMD's
processors; oneDNN does. It has an operator for linear maps that PyTorch's compiler plans its products with, and no
gradient; where one is wanted, a product x W^T is a 1 x 1 convolution of an image with a pixel a row of x, in
channels-last order without a copy, which goes to oneDNN as well. On such a processor it takes half to nine tenths of
the time, the less the fewer rows there are. The sums are added up in another order, so numbers agree to rounding.

On NVIDIA's newest GPUs, PyTorch gives attention to cuDNN, which draws up a plan for every new shape. Here nearly every
batch has a shape of its own, and the plans took nine of twenty seconds where key statistics were fitted; other kernels
of PyTorch's need none.

Whether this helps is a matter of the machine alone, so that it gives the same numbers every time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import conv2d, linear
from torch.overrides import TorchFunctionMode

FEWEST_ROWS = 64


def fast_products(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """A block in which linear maps of many rows, or attention, are computed the faster way, where there is one."""
    if device.type == "cuda":
        return _without_plans()
    if device.type == "cpu" and dtype == torch.float32 and slow_products():
        return _ByOneDNN()
    return nullcontext()


def by_onednn(rows: Float[Tensor, "*rows inputs"], weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b by oneDNN's own operator, without a gradient; a weight [outputs, inputs] in either order, or packed."""
    made: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return made


def by_convolution(
    rows: Float[Tensor, "*rows inputs"], weight: Float[Tensor, "outputs inputs"], bias: Tensor | None = None
) -> Float[Tensor, "*rows outputs"]:
    """x W^T + b as a 1 x 1 convolution."""
    flat = rows.reshape(-1, rows.shape[-1]).contiguous()
    count, inputs = flat.shape
    # strides that no other order of the four axes could have: only then is nothing copied
    image = flat.as_strided((1, inputs, count, 1), (count * inputs, 1, inputs, inputs))
    out = conv2d(image, weight[:, :, None, None], bias)
    return out.permute(0, 2, 3, 1).reshape(*rows.shape[:-1], len(weight))


@contextmanager
def _without_plans() -> Iterator[None]:
    """A block in which attention does not go to cuDNN."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


class _ByOneDNN(TorchFunctionMode):
    """Hands products to oneDNN: those of linear modules, and of Conv1D, which calls addmm."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is linear and not kwargs and (way := _way(*args)):
            return way(*args)
        if func is torch.addmm and not kwargs and (way := _way(args[1], args[2], args[0])):
            return way(args[1], args[2].T, args[0])
        return func(*args, **(kwargs or {}))


def _way(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Callable[..., Tensor] | None:
    """How to multiply; None for PyTorch's own choice."""
    given = [one for one in (rows, weight, bias) if one is not None]
    if any(one.dtype != torch.float32 for one in given) or weight.ndim != 2 or not rows.numel():
        return None
    wanted = torch.is_grad_enabled()
    if wanted and weight.requires_grad:
        return None  # what is trained
    if has_onednn() and not (wanted and any(one.requires_grad for one in given)):
        return by_onednn
    return by_convolution if rows.numel() >= FEWEST_ROWS * rows.shape[-1] else None


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
