"""What can be judged: whatever makes another model of a model, for the length of a `with` block.

A change of weights is one (`surgery.Edit`). A guard is another: it stands before, within or behind the model, leaves
its weights alone and answers nothing to some prompts. `verify` asks both the same, since a fact that a guard holds back
is still in the model; so its removal is "suppressed" at best. What is read off an edit's numbers (its leak, its bins,
its certificate) needs an `Edit`.

A guard meets what the attacks do. It has to work on padded batches, and on prompts that are read in parts with a cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol, runtime_checkable

from surgery.fact import Fact
from surgery.model import Model


@runtime_checkable
class Intervention(Protocol):
    """A change of a model that claims something about facts."""

    @property
    def base(self) -> str:
        """Fingerprint of the weights it is for."""

    @property
    def claim(self) -> Literal["removed", "rewritten"]:
        """What it is meant to achieve."""

    @property
    def facts(self) -> tuple[Fact, ...]:
        """The facts it is about."""

    @property
    def prompts(self) -> tuple[str, ...]:
        """Every text it was made from; none of these judges it."""

    def applied(self, model: Model) -> AbstractContextManager[Model]:
        """The model with the change inside a `with` block, and as it was after it, whatever happens in between.

        Raises:
            WrongWeights: the model's weights are not those of `base`.
        """
        ...

    def summary(self) -> Mapping[str, Any]:
        """What it is, for reports, as JSON values with the keys of `Edit.summary`; `weights` of a guard is empty."""
