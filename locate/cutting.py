"""Cut attention edges inside a running model: from chosen positions to the last one, by layer and row.

No architecture is named, and no mask has to be understood:

1. While a block runs, the softmax over attention scores, or the fused attention that contains it, is intercepted as the
   function call it is. These two are what every attention of transformers ends in.
2. In an explicit softmax the last query's scores of forbidden keys become -inf before it (renormalised: the other
   weights grow to fill the sum), or its weights become 0 after it (not renormalised: what these keys gave is missing).
3. Of a fused attention the last query's row is computed anew, with the model's own queries, keys, values, scale, mask.
4. The check: with every edge to the last position cut in one layer at a time, other states in front of it must not move
   that block's output there.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from surgery.errors import UnsupportedModel
from surgery.hooks import hidden
from surgery.model import Model
from surgery.tokens import pad

SOFTMAX = frozenset({nn.functional.softmax, torch.softmax, torch.special.softmax, Tensor.softmax})
FUSED = nn.functional.scaled_dot_product_attention


class Cuts(TorchFunctionMode):
    """Cuts edges to the last position while it is active.

    Args:
        forbidden: whether the last position may not attend to a position, by layer and row.
        renormalise: whether what remains of its attention still sums to 1.

    Attributes:
        layer: the block that is running, None between blocks.
        calls: how often each block attended.
    """

    def __init__(self, forbidden: Bool[Tensor, "layers rows width"], *, renormalise: bool) -> None:
        super().__init__()
        self._forbidden, self._renormalise = forbidden, renormalise
        self._touched = forbidden.flatten(1).any(1).tolist()
        self.layer: int | None = None
        self.calls = [0] * len(forbidden)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Let a call through, or cut edges in it."""
        kwargs = kwargs or {}
        if self.layer is not None and func is FUSED:
            return self._fused(self.layer, *args, **kwargs)
        if self.layer is not None and func in SOFTMAX:
            return self._softmax(self.layer, func, *args, **kwargs)
        return func(*args, **kwargs)

    def _softmax(self, layer: int, func: Callable[..., Any], scores: Tensor, *args: Any, **kwargs: Any) -> Any:
        forbidden = self._forbidden[layer]
        rows, width = forbidden.shape
        dim = args[0] if args else kwargs.get("dim")
        if scores.ndim != 4 or scores.shape[0] != rows or scores.shape[2:] != (width, width) or dim not in (-1, 3):
            return func(scores, *args, **kwargs)
        self.calls[layer] += 1
        if not self._touched[layer]:
            return func(scores, *args, **kwargs)
        if self._renormalise:
            return func(_last_filled(scores, forbidden, -torch.inf), *args, **kwargs)
        return _last_filled(func(scores, *args, **kwargs), forbidden, 0.0)

    def _fused(
        self,
        layer: int,
        query: Float[Tensor, "rows heads width d_head"],
        key: Float[Tensor, "rows groups width d_head"],
        value: Float[Tensor, "rows groups width d_value"],
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        output = FUSED(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
        forbidden = self._forbidden[layer]
        if (query.shape[0], query.shape[2], key.shape[2]) != (len(forbidden), *forbidden.shape[1:] * 2):
            return output
        self.calls[layer] += 1
        if not self._touched[layer]:
            return output
        rows = forbidden.any(1)
        groups = query.shape[1] // key.shape[1]
        keys, values = (one[rows].repeat_interleave(groups, dim=1).float() for one in (key, value))
        # the last position may see all before it, so a causal mask says nothing here
        scores = torch.einsum("rhd,rhkd->rhk", query[rows, :, -1].float(), keys)
        scores = scores * (query.shape[-1] ** -0.5 if scale is None else scale)
        if attn_mask is not None:
            mask = attn_mask.expand(*output.shape[:2], *attn_mask.shape[-2:])[rows, :, -1]
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        cut = forbidden[rows, None]
        weights = scores.masked_fill(cut, -torch.inf).softmax(-1) if self._renormalise else scores.softmax(-1)
        output = output.clone()
        output[rows, :, -1] = torch.einsum("rhk,rhkd->rhd", weights.masked_fill(cut, 0.0), values).to(output)
        return output


def _last_filled(
    grid: Float[Tensor, "rows heads width width"], forbidden: Bool[Tensor, "rows width"], value: float
) -> Float[Tensor, "rows heads width width"]:
    grid = grid.clone()
    grid[:, :, -1] = grid[:, :, -1].masked_fill(forbidden[:, None], value)
    return grid


@contextmanager
def cut(model: Model, forbidden: Bool[Tensor, "layers rows width"], *, renormalise: bool = True) -> Iterator[Cuts]:
    """Cut edges to the last position in every run within the block; each run has these rows and this width.

    Args:
        model: the model.
        forbidden: whether the last position may not attend to a position, by layer and row.
        renormalise: whether what remains of its attention still sums to 1.
    """
    cuts = Cuts(forbidden, renormalise=renormalise)

    def enter(layer: int, *_: Any) -> None:
        cuts.layer = layer

    def leave(*_: Any) -> None:
        cuts.layer = None

    handles = []
    try:
        for layer, name in enumerate(model.anatomy.names("state")):
            block = model.hf.get_submodule(name)
            handles.append(block.register_forward_pre_hook(partial(enter, layer)))
            handles.append(block.register_forward_hook(leave))
        with cuts:
            yield cuts
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def check_cuts(model: Model, ids: tuple[int, ...], *, renormalise: bool = True) -> None:
    """See by one run whether edges are really cut, in each layer by itself.

    Every block gets the clean states in row 0 and, in row 1, other ones in front of the last position. With all edges
    to that position cut, both rows must give the same there. Its edge to itself is left where weights are renormalised,
    for there must be one, and cut where they are not, for that weight shrinks as the scores of others grow.

    Raises:
        UnsupportedModel: they do not, or a block's attention cannot be intercepted; names the block's class.
    """
    names, width = model.anatomy.names("state"), len(ids)
    forbidden = torch.ones(len(names), 2, width, dtype=torch.bool, device=model.device)
    forbidden[..., -1] = not renormalise
    moved: list[float] = []

    def push(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        bound = inspect.signature(block.forward).bind(*args, **kwargs)
        name, states = next(iter(bound.arguments.items()))
        states = states[:1].repeat(2, *[1] * (states.ndim - 1))
        # features in another order: unlike a multiple or a constant, no norm takes that out
        states[1, :-1] = states[1, :-1].flip(-1)
        return ((states, *args[1:]), kwargs) if args else (args, {**kwargs, name: states})

    def compare(block: nn.Module, args: Any, output: Any) -> None:
        last = hidden(output, 2)[:, -1].float()
        moved.append(float((last[1] - last[0]).abs().max() / last[0].abs().max()))

    handles = []
    try:
        for name in names:
            block = model.hf.get_submodule(name)
            handles.append(block.register_forward_pre_hook(push, with_kwargs=True))
            handles.append(block.register_forward_hook(compare))
        with cut(model, forbidden, renormalise=renormalise) as cuts:
            model.normed_states(pad([ids] * 2, device=model.device))
    finally:
        for handle in handles:
            handle.remove()
    tolerance = 1e-4 if model.dtype == torch.float32 else 3e-2
    for layer, (name, off) in enumerate(zip(names, moved, strict=True)):
        who = type(model.hf.get_submodule(name)).__name__
        if cuts.calls[layer] != 1:
            raise UnsupportedModel(
                f"{who} of layer {layer} attended {cuts.calls[layer]} times in a way that can be cut, not once; "
                "load the model with attn_implementation='sdpa' or 'eager'"
            )
        if not off <= tolerance:
            raise UnsupportedModel(
                f"{who} of layer {layer} still reads positions whose edges are cut (off by {off:.1e}), "
                "so knocking them out would say nothing"
            )
