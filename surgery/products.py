"""Matrix products and attention by the faster of two libraries that PyTorch brings along.

PyTorch's CPU builds give products of float32 matrices to MKL, which does not use the 512-bit registers of AMD's
processors; convolutions go to oneDNN, which does. A product x W^T is a 1 x 1 convolution of an image with a pixel a row
of x, in channels-last order without a copy: on such a processor it takes half the time. The sums are added up in
another order, so numbers agree to rounding.

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
        return _ByConvolution()
    return nullcontext()


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


class _ByConvolution(TorchFunctionMode):
    """Hands products of many rows to oneDNN: those of linear modules, and of Conv1D, which calls addmm."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is linear and not kwargs and _is_large(args[0]):
            return by_convolution(*args)
        if func is torch.addmm and not kwargs and _is_large(args[1]):
            return by_convolution(args[1], args[2].T, args[0])
        return func(*args, **(kwargs or {}))


def _is_large(rows: Tensor) -> bool:
    return rows.dtype == torch.float32 and rows.numel() >= FEWEST_ROWS * rows.shape[-1]


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
