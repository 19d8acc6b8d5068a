"""The value an edited matrix should give for a key, found by gradient descent on a shift of it.

Meng et al. 2022, eq. 4 (https://arxiv.org/abs/2202.05262):

1. The prompt is read in every context; k* is the mean key at the subject's last token, v = W k* the old value.
2. A shift delta is added to the down-projection's output at that token, in every context and in an essence prompt.
3. Adam minimises the objective's loss
   + kl KL(p_before || p_after) of the next token after "{subject} is a" (the subject stays what it is)
   + decay |delta|^2 / |v|^2,
   with steps in proportion to |v| and delta projected back to |delta| <= clamp |v|.
4. The new value is v* = v + delta, of the same k*.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from edits.keys import keys_at
from edits.objectives import Loss, Objective
from surgery.errors import SurgeryError
from surgery.fact import SLOT, Fact
from surgery.hooks import Trace, frozen, hidden, with_hidden
from surgery.model import Model
from surgery.site import Site
from surgery.tokens import Batch, ask_fact, encode, pad


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
    """

    steps: int = 25
    step: float = 1 / 60
    clamp: float = 4.0
    kl: float = 0.0625
    decay: float = 1e-3
    stop: float = 0.05
    essence: str = "{} is a"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.step <= 0 or self.clamp <= 0:
            raise SurgeryError("steps, step and clamp of a value search must be above 0")
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
    """

    key: Float[Tensor, " d_ff"]
    agreement: float
    old: Float[Tensor, " d_model"]
    shift: Float[Tensor, " d_model"]
    losses: tuple[float, ...]
    prompts: tuple[str, ...]


def find_value(
    model: Model, fact: Fact, site: Site, objective: Objective, contexts: Sequence[str], search: ValueSearch
) -> Value:
    """Find the value that makes the model say what the objective wants, by reading the fact in contexts.

    Raises:
        SurgeryError: the objective cannot be had of this fact, or the answer is cut into other tokens in some context.
    """
    reading = _Reading(model, fact, objective.continuation(fact), contexts, search.essence)
    module = model.anatomy.name(site)
    keys = keys_at(model, module, reading.batch, reading.subject)[: len(contexts)]
    key = keys.mean(0)
    old = model.anatomy.matrix(site).detach().float() @ key
    shift, losses = _descend(model, module, reading, objective.loss(model, fact), float(old.norm()), search)
    agreement = torch.nn.functional.cosine_similarity(keys, key[None], dim=1).min()
    return Value(key, float(agreement), old, shift, losses, reading.prompts)


def _descend(
    model: Model, module: str, reading: _Reading, loss_of: Loss, norm: float, search: ValueSearch
) -> tuple[Tensor, tuple[float, ...]]:
    shift = torch.zeros(model.anatomy.d_model, device=model.device, requires_grad=True)
    optimiser = torch.optim.Adam([shift], lr=search.step * norm)
    rows = torch.arange(len(reading.subject), device=model.device)

    def add(output: Any, name: str) -> Any:
        states = hidden(output, len(rows))
        return with_hidden(output, states.index_put((rows, reading.subject), shift.to(states.dtype), accumulate=True))

    losses: list[float] = []
    with frozen(model.hf), torch.enable_grad():
        with torch.no_grad():
            _, before = reading.log_probs(model)
        for step in range(search.steps + 1):
            with Trace(model.hf, module, retain_output=False, edit_output=add):
                answer, essence = reading.log_probs(model)
            loss = loss_of(answer, reading.answer_ids)
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


class _Reading:
    """The rows a value search reads: the fact in every context with its continuation, and the essence prompt last."""

    def __init__(self, model: Model, fact: Fact, continuation: str, contexts: Sequence[str], essence: str) -> None:
        if not contexts:
            raise SurgeryError("give at least one context to read the prompt in; '{}' is the bare prompt")
        asked = [ask_fact(model.tokenizer, fact, continuation, context) for context in contexts]
        answers = {len(question.answer_ids) for question, _ in asked}
        if len(answers) > 1:
            raise SurgeryError(
                f"{continuation!r} is cut into different tokens in different contexts; use other contexts"
            )
        start = essence.index(SLOT)
        about = encode(model.tokenizer, essence.replace(SLOT, fact.subject))
        subject = about.span(start, start + len(fact.subject)).last
        self.prompts = (*(context.replace(SLOT, fact.prompt) for context in contexts), about.text)
        self.batch: Batch = pad([*(question.ids for question, _ in asked), about.ids], device=model.device)
        self.subject: Int[Tensor, " rows"] = self.batch.columns([*(span.last for _, span in asked), subject])
        self.answer_ids = torch.tensor([question.answer_ids for question, _ in asked], device=model.device)
        first = torch.tensor([question.answer_start - 1 for question, _ in asked], device=model.device)
        self._columns = first[:, None] + torch.arange(answers.pop(), device=model.device)
        self._last = len(about.ids) - 1

    def log_probs(self, model: Model) -> tuple[Float[Tensor, "contexts answer vocab"], Float[Tensor, " vocab"]]:
        """Where the answer is predicted, and after the essence prompt."""
        states = model.normed_states(self.batch)
        rows = torch.arange(len(self._columns), device=model.device)
        picked = torch.cat([states[rows[:, None], self._columns].flatten(0, 1), states[-1:, self._last]])
        log_probs = model.anatomy.head(picked).float().log_softmax(-1)
        return log_probs[:-1].unflatten(0, self._columns.shape), log_probs[-1]
