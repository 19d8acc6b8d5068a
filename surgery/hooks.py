"""Watch and change what a module puts out, for the length of a `with` block.

The interface is baukit's: `Trace` for one module, `TraceDict` for several. Differences on purpose: hooks are set when
the block is entered and are gone after any exit; a module is given by name or as itself; asking for the output of a
module that never ran is an error; `stop=True` ends the model's run quietly, and only that.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, cast

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from surgery.errors import SurgeryError

EditOutput = Callable[[Any, str], Any]


class StopForward(BaseException):
    """Ends a forward pass inside `Trace(..., stop=True)`. Not an Exception, so no `except Exception` keeps it."""


def get_module(model: nn.Module, name: str) -> nn.Module:
    """The submodule of that dotted name.

    Raises:
        SurgeryError: there is none; the message names the nearest.
    """
    try:
        return model.get_submodule(name)
    except AttributeError:
        near = difflib.get_close_matches(name, [n for n, _ in model.named_modules()], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise SurgeryError(f"{type(model).__name__} has no module {name!r}{hint}") from None


def hidden(output: Any, batch: int) -> Float[Tensor, "batch width features"]:
    """The hidden states in what a module returned or was given: the tensor itself, or the first of a tuple.

    OPT puts all rows of a batch into one before its mlp; they are taken apart again.
    """
    first = _first(output)
    return rearrange(first, "(batch width) features -> batch width features", batch=batch) if first.ndim == 2 else first


def _first(output: Any) -> Tensor:
    first = output[0] if isinstance(output, (tuple, list)) else output
    if not isinstance(first, Tensor):
        raise SurgeryError(f"a module returned {type(first).__name__} where hidden states were expected")
    return first


def with_hidden(output: Any, states: Tensor) -> Any:
    """`output` with its hidden states exchanged, whichever form it has."""
    states = states.reshape(_first(output).shape)
    if isinstance(output, tuple):
        return (states, *output[1:])
    return [states, *output[1:]] if isinstance(output, list) else states


class Trace:
    """Hold on to one module's output, or input, while the block runs; or change its output.

    You want a hidden state: `with Trace(hf, "model.layers.4") as t: hf(ids)`, then `t.output`. You want to change it:
    pass `edit_output`, which is given the output and the module's name and returns the new output.

    Args:
        model: the model to look in.
        layer: the module, or its dotted name.
        retain_output: keep what the module returned last in `.output`.
        retain_input: keep its first argument in `.input`.
        clone: copy what is kept, for when later code changes it in place.
        detach: cut what is kept from the gradient's graph.
        retain_grad: let the kept tensor collect its gradient.
        edit_output: change the output; what is kept is the changed one.
        stop: end the model's run after this module.
    """

    def __init__(
        self,
        model: nn.Module,
        layer: str | nn.Module,
        *,
        retain_output: bool = True,
        retain_input: bool = False,
        clone: bool = False,
        detach: bool = False,
        retain_grad: bool = False,
        edit_output: EditOutput | None = None,
        stop: bool = False,
    ) -> None:
        self.module = get_module(model, layer) if isinstance(layer, str) else layer
        self.name = layer if isinstance(layer, str) else _name_in(model, layer)
        self._keep_output, self._keep_input = retain_output, retain_input
        self._clone, self._detach, self._retain_grad = clone, detach, retain_grad
        self._edit, self._stop = edit_output, stop
        self._kept: dict[str, Any] = {}
        self._handle: torch.utils.hooks.RemovableHandle | None = None

    @property
    def output(self) -> Any:
        """What the module returned last, as it returned it (a tensor or a tuple)."""
        return self._get("output", self._keep_output)

    @property
    def input(self) -> Any:
        """The module's first argument in its last run."""
        return self._get("input", self._keep_input)

    def _get(self, what: str, kept: bool) -> Any:
        if not kept:
            raise SurgeryError(f"the {what} of {self.name!r} was not kept; ask for it with retain_{what}=True")
        if what not in self._kept:
            raise SurgeryError(f"{self.name!r} has not run inside the block; run the model there first")
        return self._kept[what]

    def _hook(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if self._keep_input:
            given = args[0] if args else next(iter(kwargs.values()), None)
            self._kept["input"] = self._prepared(given)
        if self._edit is not None:
            output = self._edit(output, self.name)
        if self._keep_output:
            self._kept["output"] = self._prepared(output)
        if self._stop:
            raise StopForward
        return output

    def _prepared(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            if self._retain_grad:
                value.retain_grad()
            value = value.detach() if self._detach else value
            return value.clone() if self._clone else value
        if isinstance(value, (tuple, list)):
            return type(value)(self._prepared(one) for one in value)
        return value

    def __enter__(self) -> Trace:
        if self._handle is not None:
            raise SurgeryError(f"this trace of {self.name!r} is running already; make a second one")
        self._kept.clear()
        self._handle = self.module.register_forward_hook(self._hook, with_kwargs=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        return self._stop and kind is not None and issubclass(kind, StopForward)


class TraceDict(Mapping[str, Trace]):
    """`Trace` for several modules at once: `with TraceDict(hf, names) as t: hf(ids)`, then `t[name].output`.

    `stop=True` ends the run once the last of them, in running order, has run. The other options are those of `Trace`.
    """

    def __init__(
        self, model: nn.Module, layers: Iterable[str | nn.Module], *, stop: bool = False, **options: Any
    ) -> None:
        self._stop = stop
        self._traces: dict[str, Trace] = {}
        self._waiting: set[str] = set()
        for layer in layers:
            one = Trace(model, layer, **options)
            self._traces[one.name] = one
        if stop and self._traces:
            for one in self._traces.values():
                one._edit = self._counting(one._edit)

    def _counting(self, edit: EditOutput | None) -> EditOutput:
        def count(output: Any, name: str) -> Any:
            output = edit(output, name) if edit is not None else output
            self._waiting.discard(name)
            if not self._waiting:
                self._traces[name]._stop = True
            return output

        return count

    def __getitem__(self, name: str) -> Trace:
        return self._traces[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._traces)

    def __len__(self) -> int:
        return len(self._traces)

    def __enter__(self) -> TraceDict:
        self._waiting = set(self._traces)
        try:
            for one in self._traces.values():
                one._stop = False
                one.__enter__()
        except BaseException:
            self._leave()
            raise
        return self

    def _leave(self) -> None:
        for one in self._traces.values():
            one.__exit__(None, None, None)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._leave()
        return self._stop and kind is not None and issubclass(kind, StopForward)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter collects gradients inside the block, so only what one optimises does; flags come back after it."""
    flags = [(weight, weight.requires_grad) for weight in model.parameters()]
    try:
        model.requires_grad_(False)
        yield
    finally:
        for weight, flag in flags:
            weight.requires_grad_(flag)


def _name_in(model: nn.Module, module: nn.Module) -> str:
    for name, one in model.named_modules():
        if one is module:
            return cast(str, name)
    raise SurgeryError(f"{type(module).__name__} is no part of this {type(model).__name__}; give one of its modules")
