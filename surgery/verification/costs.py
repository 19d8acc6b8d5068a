"""What a verification costs: seconds by part, token positions the model computed, memory of the process.

1. Every part runs within `Meter.part`, which adds up its wall-clock time.
2. A hook in front of the model's stack counts the positions it is given, padding included. Runs that begin in the
   middle of the stack (`surgery.replay`) do not pass it and are not counted.
3. Memory is the largest the process has held since it began, the model itself included.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from torch import nn

from surgery.model import Model


@dataclass(frozen=True)
class Costs:
    """What a verification took.

    Attributes:
        seconds: by part.
        tokens: positions the model computed from its first layer on, padding included.
        peak_memory: most bytes the process has held since it began; None where the system does not tell.
    """

    seconds: Mapping[str, float] = field(default_factory=dict)
    tokens: int = 0
    peak_memory: int | None = None


class Meter:
    """Adds up what parts take, while a model is asked within `measuring`."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._tokens = 0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time that passes within counts for this part."""
        clock = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - clock

    @contextmanager
    def measuring(self, model: Model) -> Iterator[None]:
        """Positions a model computes within are counted."""
        hook = model.hf.base_model.register_forward_pre_hook(self._read, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()

    def _read(self, _: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        rows = given.get("input_ids", args[0] if args else None)
        rows = given.get("inputs_embeds") if rows is None else rows
        if rows is not None:
            self._tokens += rows.shape[0] * rows.shape[1]

    @property
    def costs(self) -> Costs:
        """What it came to so far."""
        return Costs(dict(self._seconds), self._tokens, peak_memory())


def peak_memory() -> int | None:
    """Most bytes this process has held since it began; None where the system does not tell."""
    if find_spec("resource") is None:
        return None
    import resource  # which Windows does not have

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
