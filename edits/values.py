"""The value an edited matrix should give for a key, found by gradient descent on a shift of it.

Meng et al. 2022, eq. 4 (https://arxiv.org/abs/2202.05262):

1. The prompt is read in every context; k* is the mean key at the subject's last token, v = W k* the old value.
2. A shift delta is added to the down-projection's output at that token, in every context and in an essence prompt.
3. Adam minimises the objective's loss
   + kl KL(p_before || p_after) of the next token after "{subject} is a" (the subject stays what it is)
   + decay |delta|^2 / |v|^2,
   with steps in proportion to |v| and delta projected back to |delta| <= clamp |v|.
4. The new value is v* = v + delta, of the same k*.

The rows are read by replay from the edited block on (`edits.reading`), or by full runs as published.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from edits.keys import keys_at
from edits.objectives import Loss, Objective
from edits.reading import FullRuns, Reader, Replayed, Rows
from surgery.errors import SurgeryError
from surgery.fact import SLOT, Fact
from surgery.hooks import frozen
from surgery.model import Model
from surgery.progress import bar
from surgery.replay import CannotReplay
from surgery.site import Site
from surgery.tokens import pad

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ValueSearch:
    """How to look for a value.

    Attributes:
        steps: of Adam; more fit harder.
        step: length of a coordinate's step in units of |v|; the published 0.5 suits one model's norms only.
        clamp: most |delta| may be, in units of |v|.
        kl: weight of keeping the essence prompt's next token.
        decay: weight of |delta|^2 / |v|^2.
        stop: end early below this loss.
        essence: a prompt that asks what the subject is.
        method: "fast" replays only what the shift can change; "plain" runs the whole model at each step, as published.
            Their numbers are the same to rounding.
    """

    steps: int = 25
    step: float = 1 / 60
    clamp: float = 4.0
    kl: float = 0.0625
    decay: float = 1e-3
    stop: float = 0.05
    essence: str = "{} is a"
    method: Literal["fast", "plain"] = "fast"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.step <= 0 or self.clamp <= 0:
            raise SurgeryError("steps, step and clamp of a value search must be above 0")
        if self.method not in ("fast", "plain"):
            raise SurgeryError(f"there is no search method {self.method!r}; choose 'fast' or 'plain'")
        if self.essence.count(SLOT) != 1:
            raise SurgeryError(f"the essence prompt {self.essence!r} needs exactly one {{}} for the subject")


@dataclass(frozen=True, eq=False)
class Value:
    """A key with its old value and the shift to the new one.

    Attributes:
        key: k*, mean over contexts.
        agreement: smallest cosine between one context's key and k*.
        old: W k*.
        shift: delta; the new value is old + shift.
        losses: the loss at each step.
        prompts: every text that was read.
        facts: what it is the value of: facts with one key, which share one shift.
    """

    key: Float[Tensor, " d_ff"]
    agreement: float
    old: Float[Tensor, " d_model"]
    shift: Float[Tensor, " d_model"]
    losses: tuple[float, ...]
    prompts: tuple[str, ...]
    facts: tuple[Fact, ...]


def find_values(
    model: Model,
    facts: Sequence[Fact],
    site: Site,
    objective: Objective,
    contexts: Sequence[str],
    search: ValueSearch,
    *,
    progress: bool = False,
) -> tuple[Value, ...]:
    """The value of each fact, found on the model as it is."""
    return tuple(
        find_value(model, fact, site, objective, contexts, search)
        for fact in bar(facts, "values", show=progress and len(facts) > 1)
    )


def find_value(
    model: Model, fact: Fact, site: Site, objective: Objective, contexts: Sequence[str], search: ValueSearch
) -> Value:
    """Find the value that makes the model say what the objective wants, by reading the fact in contexts.

    Raises:
        SurgeryError: the objective cannot be had of this fact, or the answer is cut into other tokens in some context.
    """
    rows = Rows(model, fact, objective, contexts, search.essence)
    module = model.anatomy.name(site)
    read = pad(rows.ids[:-1], device=model.device)
    keys = keys_at(model, module, read, read.columns(rows.subject[:-1]))
    key = keys.mean(0)
    old = model.anatomy.matrix(site).detach().float() @ key
    with frozen(model.hf):
        reader = _reader(model, site, rows, search)
        shift, losses = _descend(reader, rows, objective.loss(model, fact), old, search)
    agreement = torch.nn.functional.cosine_similarity(keys, key[None], dim=1).min()
    return Value(key, float(agreement), old, shift, losses, rows.prompts, (fact,))


def _reader(model: Model, site: Site, rows: Rows, search: ValueSearch) -> Reader:
    if search.method == "fast":
        try:
            return Replayed(model, site, rows)
        except CannotReplay as error:
            logger.warning("%s; searching by full runs, which takes several times longer", error)
    return FullRuns(model, site, rows)


@torch.enable_grad()
def _descend(
    reader: Reader, rows: Rows, loss_of: Loss, old: Float[Tensor, " d_model"], search: ValueSearch
) -> tuple[Float[Tensor, " d_model"], tuple[float, ...]]:
    norm = float(old.norm())
    shift = torch.zeros_like(old, requires_grad=True)
    optimiser = torch.optim.Adam([shift], lr=search.step * norm)
    losses: list[float] = []
    before: Tensor | None = None
    for step in range(search.steps + 1):
        answer, essence = reader(shift)
        # the first reading is of the unshifted model
        before = essence.detach() if before is None else before
        loss = loss_of(answer, rows.answer_ids)
        loss = loss + search.kl * (before.exp() * (before - essence)).sum()
        loss = loss + search.decay * (shift / norm).square().sum()
        losses.append(float(loss.detach()))
        if step == search.steps or losses[-1] < search.stop:
            break
        (shift.grad,) = torch.autograd.grad(loss, shift)
        optimiser.step()
        with torch.no_grad():
            shift *= min(1.0, search.clamp * norm / max(float(shift.norm()), 1e-30))
    return shift.detach(), tuple(losses)
