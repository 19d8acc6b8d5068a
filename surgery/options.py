"""Options every command of the command line takes, and how a function becomes a command."""

from __future__ import annotations

import functools
import inspect
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, get_type_hints

import typer
from rich.console import Console

from surgery.model import Model, load


@dataclass(frozen=True)
class Run:
    """The options every command takes."""

    model: Annotated[str | None, typer.Option(help="Hub id, folder or .gguf file; default: SmolLM2-135M-Instruct.")] = (
        None
    )
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; default: a GPU if there is one.")] = None
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16; default: float32 on the CPU.")] = None
    seed: Annotated[int, typer.Option(help="Of every random draw.")] = 1
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False

    def load(self) -> Model:
        """The model the options name."""
        started = time.perf_counter()
        model = load(self.model, device=self.device, dtype=self.dtype)
        self.say(f"{model.source} on {model.device} in {model.dtype}, {time.perf_counter() - started:.1f} s", dim=True)
        return model

    @property
    def talks(self) -> bool:
        """Somebody reads along."""
        return not (self.quiet or self.json)

    def say(self, what: Any, *, dim: bool = False) -> None:
        """Print for somebody who reads along."""
        if self.talks:
            Console(soft_wrap=isinstance(what, str)).print(
                what, style="dim" if dim else None, markup=not isinstance(what, str), highlight=False
            )

    def result(self, record: dict[str, Any]) -> None:
        """Print for a program."""
        if self.json and not self.quiet:
            print(json.dumps(record, ensure_ascii=False))


def command(app: typer.Typer, function: Callable[..., int | None]) -> None:
    """Make a function of `run: Run` and its own options a command that takes the common options too."""
    hints = get_type_hints(function, include_extras=True)
    common = get_type_hints(Run, include_extras=True)
    own = [one for one in inspect.signature(function).parameters.values() if one.name != "run"]
    defaults = {name: getattr(Run, name) for name in common}

    @functools.wraps(function)
    def called(**given: Any) -> None:
        run = Run(**{name: given.pop(name) for name in common})
        logging.basicConfig(level=logging.ERROR if run.quiet or run.json else logging.WARNING, format="%(message)s")
        raise typer.Exit(function(run, **given) or 0)

    keyword = inspect.Parameter.KEYWORD_ONLY
    kept = [one.replace(kind=keyword, annotation=hints[one.name]) for one in own]
    added = [inspect.Parameter(n, keyword, default=defaults[n], annotation=kind) for n, kind in common.items()]
    called.__signature__ = inspect.Signature(kept + added)  # type: ignore[attr-defined]
    app.command(name=function.__name__.removesuffix("_"))(called)
