"""Run many different rows again from one layer and one column on.

`surgery.replay` repeats one prompt. Here every row is a prompt of its own:

1. The rows are padded so that the place where something changes is the same column of all (`surgery.tokens.align`).
2. One run of them all notes the arguments of every block from the first wanted layer up (masks and positions differ
   from row to row), the states that enter it, and each block's keys and values before the column.
3. What the axes of these arguments mean is known of the model (`Model.block_axes`), whose blocks have passed the check
   that they can be called again.
4. Rows that are done with are left out of what follows.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from surgery.hooks import hidden
from surgery.model import Model
from surgery.replay import (
    CannotReplay,
    KeysValues,
    Past,
    by_name,
    cache_name,
    each_tensor,
    first_argument,
)
from surgery.tokens import Batch


class RowReplay:
    """Rows whose blocks can be run again from a layer and a column on.

    Attributes:
        states: what enters the first of these layers, from the column on: [rows, live, d_model].
        layers: the layers that can be run again.

    Raises:
        CannotReplay: the model's blocks cannot be run one by one.
    """

    def __init__(self, model: Model, batch: Batch, column: int, layer: int) -> None:
        """Record the rows of `batch`."""
        self.states: Float[Tensor, "rows live d_model"]
        self._blocks = [model.hf.get_submodule(name) for name in model.anatomy.names("state")]
        self._axes = model.block_axes
        self._names = [(first_argument(block), cache_name(block)) for block in self._blocks]
        self.layers = range(layer, len(self._blocks))
        self._given: dict[int, dict[str, Any]] = {}
        self._past: dict[int, KeysValues | None] = {}
        count = len(batch.ids)
        every = torch.arange(count, device=model.device)
        # one more row with its first token masked makes the model build its masks explicitly
        first = batch.ids.new_zeros(1, batch.ids.shape[1])
        mask = torch.ones_like(first)
        mask[:, 0] = 0
        more = Batch(
            torch.cat([batch.ids, first]),
            torch.cat([batch.mask, mask]),
            torch.cat([batch.positions, torch.arange(first.shape[1], device=model.device)[None]]),
            torch.cat([batch.starts, batch.starts.new_zeros(1)]),
        )
        caches: dict[int, Past] = {}

        def note(index: int) -> Any:
            def hook(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
                named = by_name(block, args, kwargs)
                first, cache = self._names[index]
                states = named.pop(first)
                if index == layer:
                    self.states = states[:count, column:].clone()
                named.pop(cache, None)
                self._given[index] = self._taken(index, named, column, every)
                caches[index] = Past(None, stop=False)
                return (), {**named, first: states, cache: caches[index]}

            return hook

        handles = [
            block.register_forward_pre_hook(note(index), with_kwargs=True)
            for index, block in enumerate(self._blocks)
            if index >= layer
        ]
        try:
            with torch.no_grad():
                model.hf.base_model(**model.inputs(more))
        finally:
            for handle in handles:
                handle.remove()
        for index in self.layers:
            seen = caches[index].seen if index in caches else None
            if seen is None:
                raise CannotReplay(f"{type(self._blocks[index]).__name__} does not read its cache")
            self._past[index] = seen.before(column, every)

    def block(self, layer: int, states: Float[Tensor, "rows live d_model"]) -> Float[Tensor, "rows live d_model"]:
        """Run one block on states of the columns from the recorded one on, of all rows that are kept."""
        first, cache = self._names[layer]
        given = {**self._given[layer], first: states, cache: Past(self._past[layer], stop=False)}
        output = self._blocks[layer](**given)
        return hidden(output, len(states))

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        """Go on with these rows only."""
        self.states = self.states[rows]
        for layer in self.layers:
            self._given[layer] = self._taken(layer, self._given[layer], 0, rows)
            past = self._past[layer]
            self._past[layer] = None if past is None else KeysValues(past.keys[rows], past.values[rows])

    def _taken(self, layer: int, given: dict[str, Any], start: int, rows: Int[Tensor, " kept"]) -> dict[str, Any]:
        """A block's arguments for queries from `start` on and some rows."""

        def take(path: str, value: Tensor) -> Tensor:
            return self._axes[layer][path].take(value, start, rows)

        return {name: each_tensor(value, take, name) for name, value in given.items()}
