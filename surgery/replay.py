"""Run a model again from any layer and any position on, without repeating what cannot have changed.

No architecture is written twice: the model's own blocks are called with the very arguments they got in a full run.

1. Recording. One full run of the prompt notes the arguments of every block (masks, positions, rotary embeddings). A
   second row with its first token masked makes the model build its masks explicitly.
2. Two more runs, with one more row and with one more token, show which axes of each argument are rows and which are
   positions; where two axes are positions, the first belongs to queries and the second to keys.
3. Replaying. A block is called on new states of positions p, p + 1, ... of any number of rows: arguments are cut to
   these queries and spread over the rows, and a cache in front of the block's attention supplies the keys and values of
   positions before p.
4. Where only the last positions' outputs are wanted, the block is stopped as soon as it has put the others' keys and
   values into the cache, and called again for the last ones.
5. The check: replaying the recorded run from its start, from its middle and for its last position alone must give the
   model's own states.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache

from surgery.errors import SurgeryError
from surgery.hooks import StopForward, hidden
from surgery.model import Model
from surgery.tokens import pad

CACHE_NAMES = ("past_key_values", "layer_past", "past_key_value")


class CannotReplay(SurgeryError):
    """The model's blocks cannot be run one by one; the message says why."""


@dataclass(frozen=True, eq=False)
class KeysValues:
    """Keys and values of one layer's attention, [rows, heads, positions, head_dim] as the model has them."""

    keys: Tensor
    values: Tensor

    def before(self, position: int, rows: Int[Tensor, " rows"] | None = None) -> KeysValues | None:
        """Those of positions before one, of all rows or of chosen ones; None where there are none."""
        if position == 0:
            return None
        keys, values = self.keys[..., :position, :], self.values[..., :position, :]
        return KeysValues(keys, values) if rows is None else KeysValues(keys[rows], values[rows])


class Past(DynamicCache):
    """Puts earlier keys and values in front of a block's own, and keeps the result; `stop` ends the block there."""

    def __init__(self, past: KeysValues | None, *, stop: bool) -> None:
        super().__init__()
        self._past, self._stop = past, stop
        self.seen: KeysValues | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keys and values of all positions, from a block's own of the live ones."""
        if self._past is not None:
            key_states = torch.cat([self._past.keys, key_states], -2)
            value_states = torch.cat([self._past.values, value_states], -2)
        self.seen = KeysValues(key_states, value_states)
        if self._stop:
            raise StopForward
        return key_states, value_states

    def get_seq_length(self, *args: Any, **kwargs: Any) -> int:
        """How many positions come before the live ones."""
        return 0 if self._past is None else self._past.keys.shape[-2]


@dataclass(frozen=True)
class Axes:
    """What the axes of one recorded argument mean: -1 where there is no such axis."""

    row: int
    query: int
    per_row: int

    def fit(self, value: Tensor, start: int, rows: int) -> Tensor:
        """The argument for queries from `start` on and so many rows."""
        if self.query >= 0:
            value = value.narrow(self.query, start, value.shape[self.query] - start)
        if self.row < 0:
            return value
        value = value.narrow(self.row, 0, self.per_row)
        if self.per_row == 1:
            return value.expand(*(rows if i == self.row else n for i, n in enumerate(value.shape)))
        return value.repeat(*(rows if i == self.row else 1 for i in range(value.ndim)))

    def take(self, value: Tensor, start: int, rows: Int[Tensor, " rows"]) -> Tensor:
        """The argument, recorded of several rows, for queries from `start` on and some of these rows."""
        if self.query >= 0:
            value = value.narrow(self.query, start, value.shape[self.query] - start)
        if self.row < 0:
            return value
        by_row = value.unflatten(self.row, (value.shape[self.row] // self.per_row, self.per_row))
        return by_row.index_select(self.row, rows).flatten(self.row, self.row + 1)


class Replay:
    """A recorded prompt of a model, whose blocks can be run again.

    Attributes:
        model: the model.
        width: tokens of the prompt.
        states: clean input of each block and, last, the output of the last, each [width, d_model].
        keys_values: clean keys and values of each layer, of one row.
        axes: of each block's arguments, by their name.

    Raises:
        CannotReplay: the check failed, or the blocks' arguments cannot be understood.
    """

    def __init__(self, model: Model, ids: tuple[int, ...]) -> None:
        self.model, self.width = model, len(ids)
        self._blocks = [model.hf.get_submodule(name) for name in model.anatomy.names("state")]
        more = (*ids, ids[-1])
        with torch.no_grad():
            self._given, inputs, output = self._record(ids, 2)
            by_row, by_position = self._record(ids, 3)[0], self._record(more, 2)[0]
            self.axes = [_axes(*three) for three in zip(self._given, by_row, by_position, strict=True)]
            self.states = [*(one[0] for one in inputs), output[0]]
            self.keys_values: list[KeysValues] = []
            self._check()

    def block(
        self,
        layer: int,
        states: Float[Tensor, "rows live d_model"],
        past: KeysValues | None = None,
        queries: int | None = None,
    ) -> tuple[Float[Tensor, "rows queries d_model"], KeysValues]:
        """Run one block on states of the last positions.

        Args:
            layer: which.
            states: its input at the prompt's last positions.
            past: keys and values of the positions before, for as many rows.
            queries: of how many positions, the last ones, the output is wanted; None for all of `states`.

        Returns:
            its output, and the keys and values of all positions.
        """
        if queries is not None and queries < states.shape[1]:
            keys_values = self._run(layer, states, past, stop=True)[1]
            states, past = states[:, -queries:], keys_values.before(self.width - queries)
        output, seen = self._run(layer, states, past)
        return hidden(output, len(states)), seen

    def _run(
        self, layer: int, states: Float[Tensor, "rows live d_model"], past: KeysValues | None, *, stop: bool = False
    ) -> tuple[Any, KeysValues]:
        """A block's output, None if it was stopped at its keys and values, and these."""
        rows, start = len(states), self.width - states.shape[1]
        block, cache, output = self._blocks[layer], Past(past, stop=stop), None
        given = {
            name: each_tensor(value, lambda path, one: self.axes[layer][path].fit(one, start, rows), name)
            for name, value in self._given[layer].items()
        }
        first = first_argument(block)
        with suppress(StopForward):
            output = block(**{**given, first: states, cache_name(block): cache})
        if cache.seen is None:
            raise CannotReplay(f"{type(block).__name__} does not read its cache, so it cannot start in the middle")
        return output, cache.seen

    def _record(
        self, ids: tuple[int, ...], rows: int
    ) -> tuple[list[dict[str, Any]], list[Float[Tensor, "rows width d_model"]], Float[Tensor, "rows width d_model"]]:
        """Each block's arguments by name without its states and cache, its states, and the last block's output."""
        given: list[dict[str, Any]] = []
        inputs: list[Tensor] = []
        outputs: list[Tensor] = []

        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            named = by_name(module, args, kwargs)
            inputs.append(named.pop(first_argument(module)))
            named.pop(cache_name(module), None)
            given.append(named)

        batch = pad([ids] * rows, device=self.model.device)
        batch.mask[1:, 0] = 0
        handles = [block.register_forward_pre_hook(note, with_kwargs=True) for block in self._blocks]
        handles.append(self._blocks[-1].register_forward_hook(lambda *seen: outputs.append(hidden(seen[-1], rows))))
        try:
            self.model.hf.base_model(**self.model.inputs(batch))
        finally:
            for handle in handles:
                handle.remove()
        if len(given) != len(self._blocks):
            raise CannotReplay(f"{self.model.anatomy.architecture} ran {len(given)} of {len(self._blocks)} blocks")
        return given, inputs, outputs[0]

    def _check(self) -> None:
        """Replay the clean row as a whole, which also fills `keys_values`, and again from its middle on."""
        whole, middle = self.states[0][None], self.width // 2
        part = whole[:, middle:]
        for layer in range(len(self._blocks)):
            try:
                whole, seen = self.block(layer, whole)
                self.keys_values.append(seen)
                part, _ = self.block(layer, part, seen.before(middle))
                last, _ = self.block(layer, self.states[layer][None], None, 1)
            except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                raise CannotReplay(f"{type(self._blocks[layer]).__name__} cannot be called again: {reason}") from error
            wanted = self.states[layer + 1]
            tolerance = (2e-4 if wanted.dtype == torch.float32 else 5e-2) * float(wanted.abs().max())
            for found in (whole[0], part[0], last[0]):
                off = float((found - wanted[-len(found) :]).abs().max())
                if not off <= tolerance:
                    raise CannotReplay(f"{type(self._blocks[layer]).__name__} replays layer {layer} off by {off:.1e}")
            # go on from the model's own states, so that rounding does not add up over the check
            whole, part = wanted[None], wanted[None, middle:]


def by_name(block: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A block's arguments by name, those of its `**kwargs` among them."""
    bound = inspect.signature(block.forward).bind(*args, **kwargs).arguments
    return {**{name: value for name, value in bound.items() if name != "kwargs"}, **bound.get("kwargs", {})}


def first_argument(block: nn.Module) -> str:
    """The name under which a block takes its states."""
    return next(iter(inspect.signature(block.forward).parameters))


def cache_name(block: nn.Module) -> str:
    """The name under which a block takes its cache.

    Raises:
        CannotReplay: it takes none.
    """
    names = inspect.signature(block.forward).parameters
    for name in CACHE_NAMES:
        if name in names:
            return name
    raise CannotReplay(f"{type(block).__name__} takes no cache of keys and values")


def each_tensor(value: Any, change: Callable[[str, Tensor], Any], path: str) -> Any:
    """`value` with every tensor in it, however nested, changed; `path` names where each one is."""
    if isinstance(value, Tensor):
        return change(path, value)
    if isinstance(value, (tuple, list)):
        return type(value)(each_tensor(one, change, f"{path}.{i}") for i, one in enumerate(value))
    if isinstance(value, Mapping):
        return {key: each_tensor(one, change, f"{path}.{key}") for key, one in value.items()}
    return value


def _note_shape(found: dict[str, tuple[int, ...]], path: str, value: Tensor) -> None:
    found[path] = tuple(value.shape)


def _axes(given: dict[str, Any], by_row: dict[str, Any], by_position: dict[str, Any]) -> dict[str, Axes]:
    """The axes of every tensor, from how shapes differ between 2 and 3 rows, and with one more token."""
    shapes: list[dict[str, tuple[int, ...]]] = []
    for arguments in (given, by_row, by_position):
        found: dict[str, tuple[int, ...]] = {}
        for name, value in arguments.items():
            each_tensor(value, partial(_note_shape, found), name)
        shapes.append(found)
    axes = {}
    for path, shape in shapes[0].items():
        rows = [i for i, n in enumerate(shape) if shapes[1][path][i] != n]
        positions = [i for i, n in enumerate(shape) if shapes[2][path][i] != n]
        # [..., 1, keys]: a bias over keys alone, as alibi is
        keys_only = len(positions) == 1 and len(shape) >= 3 and positions[0] == len(shape) - 1 and shape[-2] == 1
        row = rows[0] if rows else -1
        axes[path] = Axes(row, positions[0] if positions and not keys_only else -1, shape[row] // 2 if rows else 0)
    return axes
