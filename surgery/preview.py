"""An edit that acts without a weight being touched: each changed map adds its change to what it puts out.

x W^T becomes x W^T + (x right) left^T, by a hook, for the length of a `with` block. The base stays whatever it is,
quantised included: nothing is dequantised, nothing is rounded again. In float32 the answers are those of the applied
edit to rounding; in bfloat16 they are closer to the edit as it was computed, which applying rounds to the weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import Tensor, nn

from surgery.delta import Delta
from surgery.edit import Edit
from surgery.errors import SurgeryError, WrongWeights
from surgery.fingerprint import fingerprint
from surgery.hooks import TraceDict, get_module
from surgery.linear_map import map_size, shared_weight
from surgery.model import Model

M = TypeVar("M", Model, nn.Module)


@contextmanager
def preview(model: M, edit: Edit, check_base: bool = True) -> Iterator[M]:
    """The model with the edit acting through hooks, for the length of a `with` block.

    Args:
        model: a model, or a transformers model as it is, such as one that was loaded quantised.
        edit: the edit.
        check_base: refuse other weights than those the edit was made for. False for a quantised copy of them, whose
            fingerprint is another.

    Raises:
        WrongWeights: the weights are not the ones the edit was made for, or a map is of another size.
        SurgeryError: there is no such map, or its weight also serves elsewhere, where a hook would not act.
    """
    hf: Any = model.hf if isinstance(model, Model) else model
    if check_base and (found := fingerprint(hf)) != edit.base:
        raise WrongWeights(
            f"this edit was made for other weights ({edit.base[:12]}) than these ({found[:12]}); load the model it was "
            f"made for, or, if this is a quantised copy of that, preview with check_base=False"
        )
    for delta in edit.deltas:
        _check(hf, delta)

    factors = {delta.module: (delta.left, delta.right) for delta in edit.deltas}

    def add(output: Tensor, name: str) -> Tensor:
        x = traces[name].input.float()
        left, right = factors[name]
        if left.device != x.device:
            factors[name] = left, right = left.to(x.device), right.to(x.device)
        return (output.float() + (x @ right) @ left.T).to(output.dtype)

    traces: TraceDict = TraceDict(hf, factors, retain_output=False, retain_input=True, edit_output=add)
    with traces:
        yield model


def _check(hf: nn.Module, delta: Delta) -> None:
    module = get_module(hf, delta.module)
    if (size := map_size(module)) is None:
        raise SurgeryError(f"{delta.module} is no linear map but {type(module).__name__}; load the edit's model")
    if size != (delta.left.shape[0], delta.right.shape[0]):
        raise WrongWeights(f"{delta.module} is {size} here, but the edit was made for another size")
    if (other := shared_weight(hf, delta.module)) is not None:
        raise SurgeryError(f"{delta.module} shares its weight with {other}, where a hook would not act; apply the edit")
