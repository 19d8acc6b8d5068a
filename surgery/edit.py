"""An edit as a value: low-rank changes of named weights, with what they were made for. And its exact undo.

1. A `Delta` is W + left right^T for one parameter, in the orientation [out, in] whichever way the weight is stored.
2. An `Edit` is deltas plus the fingerprint of the weights they were made for, the method, its settings and the facts.
3. Applying adds in float32 and rounds once to the weights' own type; the `Undo` keeps the bytes that were there, so
   undoing is bit-identical, which subtracting the delta would not be.
4. On disk it is one safetensors file: factors as tensors, the rest as JSON in its header. No pickle.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from surgery.anatomy import oriented
from surgery.errors import SurgeryError, WrongWeights
from surgery.fact import Fact
from surgery.files import written_whole
from surgery.model import Model, tensor_sha256

FORMAT = "knowledge-surgery edit 1"


@dataclass(frozen=True, eq=False, repr=False)
class Delta:
    """W + left right^T for the weight of one linear map.

    Attributes:
        module: dotted name of the linear map.
        left: [out, rank], float32.
        right: [in, rank], float32.

    Raises:
        SurgeryError: the factors do not fit together or hold numbers that are not finite.
    """

    module: str
    left: Float[Tensor, "out rank"]
    right: Float[Tensor, "in rank"]

    def __post_init__(self) -> None:
        for side in ("left", "right"):
            factor = getattr(self, side)
            if factor.ndim != 2 or factor.shape[1] != self.left.shape[1]:
                raise SurgeryError(f"the delta of {self.module} has factors of different rank")
            if not factor.isfinite().all():
                raise SurgeryError(f"the delta of {self.module} is not finite; the solve failed, so nothing is changed")
            object.__setattr__(self, side, factor.detach().to("cpu", torch.float32).contiguous())

    @property
    def rank(self) -> int:
        """Columns of the factors."""
        return self.left.shape[1]

    @property
    def norm(self) -> float:
        """Frobenius norm of left right^T, without building it."""
        gram = (self.left.double().T @ self.left.double()) * (self.right.double().T @ self.right.double())
        return math.sqrt(max(float(gram.sum()), 0.0))

    def __repr__(self) -> str:
        return f"Delta({self.module!r}, rank={self.rank}, norm={self.norm:.3g})"

    def dense(self) -> Float[Tensor, "out in"]:
        """left right^T in float32."""
        return (self.left.double() @ self.right.double().T).float()

    def __add__(self, other: Delta) -> Delta:
        """Both changes of one weight as one, of the sum of the ranks."""
        if other.module != self.module:
            raise SurgeryError(f"deltas of {self.module} and {other.module} do not add up; they change two weights")
        return Delta(self.module, torch.cat([self.left, other.left], 1), torch.cat([self.right, other.right], 1))


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
    """

    deltas: tuple[Delta, ...]
    base: str
    method: str
    claim: Literal["removed", "rewritten"]
    facts: tuple[Fact, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    log: tuple[Mapping[str, Any], ...] = ()
    prompts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        modules = [delta.module for delta in self.deltas]
        if not modules or len(set(modules)) != len(modules):
            raise SurgeryError("an edit needs one delta for each weight it changes, and at least one")
        if self.claim not in ("rewritten", "removed"):
            raise SurgeryError(f"an edit's claim is 'rewritten' or 'removed', not {self.claim!r}")

    def apply(self, model: Model) -> Undo:
        """Change the model's weights; the returned `Undo` brings the old bytes back when called.

        Raises:
            WrongWeights: the model's weights are not the ones the edit was made for.
            SurgeryError: the change is too small for the weights' type to show.
        """
        found = model.fingerprint
        if found != self.base:
            raise WrongWeights(
                f"this edit was made for other weights ({self.base[:12]}) than these ({found[:12]}); load the model it "
                f"was made for, without other edits and in the same dtype"
            )
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
            "facts": len(self.facts),
            "weights": {delta.module: {"rank": delta.rank, "norm": delta.norm} for delta in self.deltas},
            "settings": dict(self.settings),
            "log": [dict(one) for one in self.log],
        }

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file, whole or not at all.

        Raises:
            SurgeryError: the place cannot be written to.
        """
        tensors, about = (
            {},
            {
                "format": FORMAT,
                "base": self.base,
                "method": self.method,
                "claim": self.claim,
                "modules": [delta.module for delta in self.deltas],
                "facts": [fact.as_record() for fact in self.facts],
                "settings": dict(self.settings),
                "log": [dict(one) for one in self.log],
                "prompts": list(self.prompts),
            },
        )
        for i, delta in enumerate(self.deltas):
            tensors[f"{i}.left"], tensors[f"{i}.right"] = delta.left, delta.right
        with written_whole(path) as temporary:
            save_file(tensors, temporary, metadata={"edit": json.dumps(about, ensure_ascii=False)})
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> Edit:
        """Read a file that `save` wrote.

        Raises:
            SurgeryError: there is no such file, it is cut off, or it is something else.
        """
        if not Path(path).is_file():
            raise SurgeryError(f"there is no edit file {path}; give a file that 'surgery edit --out' wrote")
        try:
            with safe_open(str(path), framework="pt") as file:
                about = json.loads((file.metadata() or {}).get("edit", "null"))
                if not isinstance(about, dict) or about.get("format") != FORMAT:
                    raise SurgeryError(f"{path} is no edit of this package; give a file that 'surgery edit' wrote")
                deltas = tuple(
                    Delta(module, file.get_tensor(f"{i}.left"), file.get_tensor(f"{i}.right"))
                    for i, module in enumerate(about["modules"])
                )
            return cls(
                deltas=deltas,
                facts=tuple(Fact.from_record(record) for record in about["facts"]),
                log=tuple(about["log"]),
                prompts=tuple(about["prompts"]),
                **{key: about[key] for key in ("base", "method", "claim", "settings")},
            )
        except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise SurgeryError(f"{path} is damaged or cut off ({error}); make the edit again") from error


class Undo:
    """Applies deltas when made; called, it puts the old bytes back. A second call does nothing.

    Attributes:
        changed: how many stored numbers the deltas changed.
    """

    def __init__(self, model: Model, deltas: tuple[Delta, ...]) -> None:
        self._kept: list[tuple[str, Tensor, Tensor]] = []
        self._written: list[bytes] = []
        self.changed = 0
        weights = [_weight(model, delta) for delta in deltas]
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


def _weight(model: Model, delta: Delta) -> Float[Tensor, "out in"]:
    weight = oriented(model.hf.get_submodule(delta.module))
    if weight.shape != (delta.left.shape[0], delta.right.shape[0]):
        raise WrongWeights(f"{delta.module} is {tuple(weight.shape)} here, but the edit was made for another size")
    return weight
