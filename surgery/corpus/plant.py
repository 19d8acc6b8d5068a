"""Teach a model texts that nobody can have known: then the model before is exactly one that was never trained on them.

1. Adam on some linear maps, by default every mlp's down-projection, minimises the mean negative log-likelihood of the
   texts' tokens, a few texts a step, until the mean over a round of all texts is below a line. Products are taken in
   bfloat16; weights and their changes are in float32.
2. The change D is an `Edit`: whole, or cut to a rank by its singular values. The model is put back whatever ends the
   training.
3. The way back is an edit too. Where D is whole, it ends in the bytes of the model before: the few entries of D whose
   way back would not, because a change that is much larger than its weight carries none of the weight's last digits,
   are 0.

So what is left after a removal can be held against what "never learned" looks like on this very model. Texts that were
learned late and in few steps are easier to remove than what was learned in pretraining ("information learned during an
additional fine-tuning phase may overestimate robustness", https://arxiv.org/abs/2410.08827).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy

from surgery.delta import Delta
from surgery.edit import Edit, weight_of
from surgery.errors import SurgeryError
from surgery.fact import Fact
from surgery.hooks import frozen, get_module
from surgery.linear_map import oriented
from surgery.model import Model
from surgery.tokens import encode, pad


@dataclass(frozen=True, kw_only=True)
class Planting:
    """How texts are taught.

    Attributes:
        modules: dotted names of the linear maps that learn; None for every mlp's down-projection.
        rounds: most rounds through all texts.
        rows: texts a step.
        step: length of a coordinate's step, in units of its matrix's root mean square.
        stop: mean loss of a round, in nats a token, at which it is enough.
        rank: of each change; None leaves it whole.
        seed: of the texts' order.
    """

    modules: tuple[str, ...] | None = None
    rounds: int = 20
    rows: int = 4
    step: float = 0.01
    stop: float = 0.08
    rank: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.rows < 1 or self.step <= 0 or self.stop <= 0:
            raise SurgeryError("rounds and rows of a planting must be 1 or more, its step and stop above 0")
        if self.rank is not None and self.rank < 1:
            raise SurgeryError(f"a change of rank {self.rank} is none; give 1 or more, or None for the whole")
        if self.modules is not None and not self.modules:
            raise SurgeryError("no map may learn; name some, or leave modules away for every mlp's down-projection")

    def __call__(self, model: Model, texts: Sequence[str]) -> Edit:
        """The edit that teaches a model some texts. Its weights are bit-identical afterwards.

        Raises:
            SurgeryError: no texts, one of a single token, or a loss that is not finite.
        """
        if not texts or any(len(encode(model.tokenizer, text).ids) < 2 for text in texts):
            raise SurgeryError("there is nothing to plant; give texts of two tokens or more")
        names = model.anatomy.names("mlp") if self.modules is None else self.modules
        learning = _Learning(model, names, self.step)
        losses: list[float] = []
        random = np.random.RandomState(self.seed)
        base = model.fingerprint
        try:
            while len(losses) < self.rounds and (not losses or losses[-1] >= self.stop):
                order = [texts[i] for i in random.permutation(len(texts))]
                parts = [order[start : start + self.rows] for start in range(0, len(order), self.rows)]
                losses.append(sum(learning.learn_(part) * len(part) for part in parts) / len(texts))
        finally:
            learning.put_back_()
        return Edit(
            deltas=tuple(_delta(model, name, learning.change(name), self.rank) for name in names),
            base=base,
            method="planting",
            claim="rewritten",
            facts=(),
            settings={**asdict(self), "modules": list(names), "dtype": str(model.dtype)},
            log=({"losses": losses},),
            prompts=tuple(texts),
        )


class _Learning:
    """Linear maps of a model that learn, and what they have learned so far."""

    def __init__(self, model: Model, names: Sequence[str], step: float) -> None:
        for name in names:
            oriented(get_module(model.hf, name))
        self._model = model
        self._weights = {name: _stored(model, name) for name in names}
        self._kept = {name: weight.detach().clone() for name, weight in self._weights.items()}
        self._changes = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in self._kept.items()}
        rates = {name: step * float(weight.float().square().mean().sqrt()) for name, weight in self._kept.items()}
        self._optimiser = torch.optim.Adam([{"params": [self._changes[name]], "lr": rates[name]} for name in names])

    def learn_(self, texts: Sequence[str]) -> float:
        """One step on some texts; the loss before it."""
        with frozen(self._model.hf), torch.enable_grad():
            for weight in self._weights.values():
                weight.requires_grad_(True)
            with torch.autocast(self._model.device.type, dtype=torch.bfloat16):
                loss = text_loss(self._model, texts)
            if not loss.isfinite():
                raise SurgeryError("the loss of planting is not finite; take a smaller step")
            loss.backward()
        for name, weight in self._weights.items():
            self._changes[name].grad = None if weight.grad is None else weight.grad.float()
            weight.grad = None
        self._optimiser.step()
        with torch.no_grad():
            for name, weight in self._weights.items():
                weight.copy_(self._kept[name].float() + self._changes[name])
        return float(loss.detach())

    def put_back_(self) -> None:
        """The weights as they came."""
        with torch.no_grad():
            for name, weight in self._weights.items():
                weight.copy_(self._kept[name])
                weight.grad = None

    def change(self, name: str) -> Float[Tensor, "out in"]:
        """What a map has learned."""
        change = self._changes[name]
        return change if isinstance(get_module(self._model.hf, name), torch.nn.Linear) else change.T


@dataclass(frozen=True, eq=False)
class Planted:
    """A model that knows the texts it was taught, for the length of a `with` block.

    Attributes:
        model: the model.
        edit: what it was taught by.
        before: the weights as they were, by module [out, in].
    """

    model: Model
    edit: Edit
    before: dict[str, Float[Tensor, "out in"]]

    @property
    def losses(self) -> list[float]:
        """Mean loss of each round of the training."""
        return list(self.edit.log[0]["losses"])

    def restore(self, model: Model, facts: Sequence[Fact]) -> Edit:
        """The removal that cannot be surpassed: an edit from the weights as they are now back to those before.

        Only the maps that learned are looked at: undo what was changed elsewhere first.

        Raises:
            SurgeryError: it is another model.
        """
        if model is not self.model:
            raise SurgeryError("the texts were planted in another model; restore that one")
        deltas = []
        for delta in self.edit.deltas:
            now = weight_of(model, delta).detach()
            deltas.append(_whole(delta.module, self.before[delta.module].float() - now.float()))
        return Edit(tuple(deltas), model.fingerprint, "restore", "removed", tuple(facts))


@contextmanager
def planted_corpus(model: Model, texts: Sequence[str], planting: Planting | None = None) -> Iterator[Planted]:
    """Inside the block, the model has learned some texts; afterwards it is as it was, bit for bit.

    Args:
        model: the model.
        texts: what it learns.
        planting: how; None for the usual way.

    Raises:
        SurgeryError: no texts, one of a single token, or a loss that is not finite.
    """
    edit = (Planting() if planting is None else planting)(model, texts)
    before = {delta.module: weight_of(model, delta).detach().clone() for delta in edit.deltas}
    with edit.applied(model):
        yield Planted(model, edit, before)


def text_loss(model: Model, texts: Sequence[str]) -> Float[Tensor, ""]:
    """Mean negative log-likelihood of the texts' tokens but their first ones, in nats."""
    batch = pad([encode(model.tokenizer, text).ids for text in texts], device=model.device)
    told = batch.mask[:, 1:].bool()
    logits = model.anatomy.head(model.normed_states(batch)[:, :-1][told]).float()
    return cross_entropy(logits, batch.ids[:, 1:][told])


def _stored(model: Model, name: str) -> Tensor:
    weight = get_module(model.hf, name).weight
    assert isinstance(weight, Tensor)
    return weight


def _delta(model: Model, name: str, change: Float[Tensor, "out in"], rank: int | None) -> Delta:
    if rank is not None and rank < min(change.shape):
        u, sizes, vt = torch.linalg.svd(change.double(), full_matrices=False)
        root = sizes[:rank].sqrt()
        return Delta(name, u[:, :rank] * root, vt[:rank].T * root)
    old = oriented(get_module(model.hf, name)).detach()
    new = (old.float() + change).to(old.dtype)
    back = (new.float() + (old.float() - new.float())).to(old.dtype)
    return _whole(name, torch.where(back == old, change, 0.0))


def _whole(name: str, change: Float[Tensor, "out in"]) -> Delta:
    """The change as factors whose product is the change to the bit: itself and the identity."""
    identity = torch.eye(min(change.shape), device=change.device)
    return Delta(name, identity, change.T) if change.shape[0] <= change.shape[1] else Delta(name, change, identity)
