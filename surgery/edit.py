"""An edit as a value: low-rank changes of named weights, with what they were made for. And its exact undo.

1. A `Delta` (`surgery.delta`) is W + left right^T for one parameter, in the orientation [out, in] whichever way the
   weight is stored.
2. An `Edit` is deltas plus the fingerprint of the weights they were made for, the method, its settings and the facts.
3. Applying adds in float32 and rounds once to the weights' own type; the `Undo` keeps the bytes that were there, so
   undoing is bit-identical, which subtracting the delta would not be.
4. On disk it is one safetensors file (`surgery.edit_files`), with the facts in plain or without (`surgery.privacy`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from surgery import edit_files
from surgery.delta import Delta
from surgery.errors import SurgeryError, WrongWeights
from surgery.fact import Fact
from surgery.fingerprint import tensor_sha256
from surgery.hooks import get_module
from surgery.linear_map import oriented
from surgery.model import Model
from surgery.privacy import Hidden, mentions

__all__ = ["Delta", "Edit", "Undo", "add_", "weight_of"]


@dataclass(frozen=True, eq=False)
class Edit:
    """Changes of a model's weights, as a value; the model is not touched until `apply`.

    Attributes:
        deltas: one for each changed weight.
        base: fingerprint of the weights it was made for.
        method: name of the method that made it.
        claim: what it is meant to achieve, `"rewritten"` or `"removed"`.
        facts: the facts it is about.
        settings: the method's settings, JSON values.
        log: what happened for each fact (norms, denominators, steps), JSON values.
        prompts: every text the method looked at; verification does not judge by these.
        hidden: what is left of facts whose words were taken out (`surgery.redact`), None where they are in plain.
    """

    deltas: tuple[Delta, ...]
    base: str
    method: str
    claim: Literal["removed", "rewritten"]
    facts: tuple[Fact, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    log: tuple[Mapping[str, Any], ...] = ()
    prompts: tuple[str, ...] = ()
    hidden: Hidden | None = None

    def __post_init__(self) -> None:
        modules = [delta.module for delta in self.deltas]
        if not modules or len(set(modules)) != len(modules):
            raise SurgeryError("an edit needs one delta for each weight it changes, and at least one")
        if self.claim not in ("rewritten", "removed"):
            raise SurgeryError(f"an edit's claim is 'rewritten' or 'removed', not {self.claim!r}")
        if self.hidden is not None and (self.facts or self.prompts):
            raise SurgeryError("an edit whose facts are hidden cannot hold them as well; take it from surgery.redact")

    @property
    def digest(self) -> str:
        """SHA-256 of which weights change and by which factors, to the last bit; of nothing else in a file."""
        digest = hashlib.sha256()
        for delta in self.deltas:
            digest.update(f"{delta.module} {tuple(delta.left.shape)} {tuple(delta.right.shape)}\n".encode())
            for factor in (delta.left, delta.right):
                digest.update(factor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def mentions(self, fact: Fact | str) -> bool:
        """Whether the edit was made from this fact (same prompt and answer), or from one about this subject.

        Letters' case and spaces do not matter. Works on hashed facts too.

        Raises:
            SurgeryError: the edit keeps nothing of its facts.
        """
        if self.hidden is not None:
            return self.hidden.mentions(fact)
        return mentions(self.facts, fact)

    def check_base(self, model: Model) -> None:
        """Refuse other weights than those the edit was made for.

        Raises:
            WrongWeights: the model's are others.
        """
        found = model.fingerprint
        if found != self.base:
            raise WrongWeights(
                f"this edit was made for other weights ({self.base[:12]}) than these ({found[:12]}); load the model it "
                f"was made for, without other edits and in the same dtype"
            )

    def apply(self, model: Model) -> Undo:
        """Change the model's weights; the returned `Undo` brings the old bytes back when called.

        Raises:
            WrongWeights: the model's weights are not the ones the edit was made for.
            SurgeryError: the change is too small for the weights' type to show.
        """
        self.check_base(model)
        undo = Undo(model, self.deltas)
        if not undo.changed and any(delta.norm > 0 for delta in self.deltas):
            undo()
            raise SurgeryError(
                f"the edit is too small to change a single {model.dtype} weight; apply it to the model in float32"
            )
        return undo

    @contextmanager
    def applied(self, model: Model) -> Iterator[Model]:
        """The model with the edit, for the length of a `with` block."""
        undo = self.apply(model)
        try:
            yield model
        finally:
            undo()

    def summary(self) -> dict[str, Any]:
        """What the edit is, without its numbers and facts, as JSON values."""
        return {
            "method": self.method,
            "claim": self.claim,
            "facts": len(self.facts) if self.hidden is None else self.hidden.count,
            "weights": {delta.module: {"rank": delta.rank, "norm": delta.norm} for delta in self.deltas},
            "settings": dict(self.settings),
            "log": [dict(one) for one in self.log],
        }

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file, whole or not at all.

        Raises:
            SurgeryError: the place cannot be written to.
        """
        return edit_files.write(self, path)

    @classmethod
    def load(cls, path: str | Path) -> Edit:
        """Read a file that `save` wrote.

        Raises:
            SurgeryError: there is no such file, it is cut off, or it is something else.
        """
        return cls(**edit_files.read(path))


class Undo:
    """Applies deltas when made; called, it puts the old bytes back. A second call does nothing.

    Attributes:
        changed: how many stored numbers the deltas changed.
    """

    def __init__(self, model: Model, deltas: tuple[Delta, ...]) -> None:
        self._kept: list[tuple[str, Tensor, Tensor]] = []
        self._written: list[bytes] = []
        self.changed = 0
        weights = [weight_of(model, delta) for delta in deltas]
        try:
            for delta, weight in zip(deltas, weights, strict=True):
                old = weight.detach().clone()
                self._kept.append((delta.module, weight, old))
                add_(weight, delta)
                self.changed += int((weight != old).sum())
                self._written.append(tensor_sha256(weight))
        except BaseException:
            self._restore()
            raise

    def __call__(self) -> None:
        """Put the old bytes back.

        Raises:
            WrongWeights: the weights have been changed again since; undo the later change first.
        """
        for (module, weight, _), written in zip(self._kept, self._written, strict=True):
            if tensor_sha256(weight) != written:
                raise WrongWeights(f"{module} was changed again after this edit; undo the later change first")
        self._restore()

    def _restore(self) -> None:
        with torch.no_grad():
            for _, weight, old in self._kept:
                weight.copy_(old)
        self._kept, self._written = [], []


@torch.no_grad()
def add_(weight: Float[Tensor, "out in"], delta: Delta) -> None:
    """Add a delta to a weight in float32 and round once to the weight's own type."""
    weight.copy_((weight.float() + delta.dense().to(weight.device)).to(weight.dtype))


def weight_of(model: Model, delta: Delta) -> Float[Tensor, "out in"]:
    """The weight a delta changes, as [out, in].

    Raises:
        WrongWeights: it is of another size.
        SurgeryError: there is none of that name, or it is no plain weight.
    """
    weight = oriented(get_module(model.hf, delta.module))
    if weight.shape != (delta.left.shape[0], delta.right.shape[0]):
        raise WrongWeights(f"{delta.module} is {tuple(weight.shape)} here, but the edit was made for another size")
    return weight
