"""A GPU that is none: its tensors lie in the processor's memory, and refuse what a real one's would refuse.

Tensors of the pretended device say that they are on it. Whatever is computed with them is computed on the
processor; but an operation that mixes them with tensors of the processor raises as on a GPU, where PyTorch allows only
numbers without axes and indices to be elsewhere. So a test without a GPU finds what was left on the wrong device.

1. A dispatch mode sees every operation below autograd. It takes the devices of all tensors among the arguments, those
   of a list included, and refuses a mixture.
2. It computes on what the tensors hold, and wraps what comes out; in-place operations and views give what they were
   given, or share its memory.
3. What PyTorch does with numbers below its modes (tensors made of them, lists as indices) is done before them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.optim import optimizer
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

AWAY = torch.device("lazy", 0)
"""One that every build of PyTorch knows, and that asks for no driver."""
_aten = torch.ops.aten
COPYING = {_aten.copy_.default, _aten._to_copy.default}
"""These may mix devices."""
INDEXING = {
    _aten.index.Tensor,
    _aten.index_put.default,
    _aten.index_put_.default,
    _aten._index_put_impl_.default,
    _aten._unsafe_index.Tensor,
}
"""Of these a GPU takes indices from the processor, but a processor none from a GPU."""


class Away(Tensor):
    """A tensor that says it is on the pretended device."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Away:
        return Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=AWAY,
        )

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Watch(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Made(TorchFunctionMode):
    """Numbers go over from the processor, and come back to it: tensors made of them, lists, lists as indices."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        if func is Tensor.tolist and isinstance(args[0], Away):
            return args[0].cpu().tolist()
        if func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[0], Away):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            index = tuple(
                torch.tensor(one, dtype=None if one else torch.long) if isinstance(one, list) else one for one in index
            )
            return func(args[0], index, *args[2:])
        return func(*args, **kwargs)


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = list(_tensors((*args, *kwargs.values())))
    there = Away in map(type, tensors)
    if there and func not in COPYING:
        _check(func, args, tensors)
    given = kwargs
    if (asked := kwargs.get("device")) is not None:
        there = torch.device(asked).type == AWAY.type
        given = {**kwargs, "device": torch.device("cpu")} if there else kwargs
    elif func is _aten.copy_.default:
        there = isinstance(args[0], Away)
    out = func(*_held(args), **{name: _held(one) for name, one in given.items()})
    if not there:
        return out
    return return_and_correct_aliasing(func, args, kwargs, _wrapped(out)) if _shares(func) else _wrapped(out)


def _check(func: Any, args: Any, tensors: Sequence[Tensor]) -> None:
    """Refuse a mixture of devices."""
    if func in INDEXING and isinstance(args[0], Away):
        tensors = [one for one in args[2:] if isinstance(one, Tensor)]
    if any(type(one) is not Away and one.ndim for one in tensors):
        raise RuntimeError(f"{func} needs all tensors on the same device, but got some on {AWAY} and some on the CPU")


@cache
def _shares(func: Any) -> bool:
    """Whether what an operation gives is what it was given, or shares its memory."""
    return any(one.alias_info is not None for one in func._schema.returns)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for one in values:
        if isinstance(one, Tensor):
            yield one
        elif isinstance(one, list | tuple):
            yield from _tensors(one)


def _held(one: Any) -> Any:
    if isinstance(one, list | tuple):
        return type(one)(map(_held, one))
    return one.inner if isinstance(one, Away) else one


def _wrapped(one: Any) -> Any:
    if isinstance(one, list | tuple):
        return type(one)(map(_wrapped, one))
    return Away(one) if isinstance(one, Tensor) else one


@contextmanager
def pretended() -> Iterator[None]:
    """A block in which there is the pretended device."""
    able = [*optimizer._get_fused_kernels_supported_devices(), AWAY.type]
    with mock.patch.object(optimizer, "_get_fused_kernels_supported_devices", return_value=able), _Made(), _Watch():
        yield


def moved(hf: nn.Module) -> nn.Module:
    """A copy of a model on the pretended device."""
    hf = copy.deepcopy(hf)
    tied: dict[nn.Parameter, nn.Parameter] = {}
    for module in hf.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                new = nn.Parameter(Away(weight.detach()), weight.requires_grad)
                module._parameters[name] = tied.setdefault(weight, new)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = Away(buffer)
    return hf
