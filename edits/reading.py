"""Reading a fact in contexts while a matrix's output at its subject is shifted, forwards and backwards.

A value search reads the same rows again and again; only the shift changes. Two ways give the same log-probabilities:

- `FullRuns` runs the model on all rows, with the shift added by a hook.
- `Replayed` keeps what the shift cannot change: all blocks below the edited one, and all positions before the subject's
  last token, whose keys and values it supplies from one run (`surgery.replay`). Rows whose subjects stand at about the
  same position share a batch; padded on the right, they all have the positions and masks of the longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from edits.objectives import Objective
from surgery.errors import SurgeryError
from surgery.fact import SLOT, Fact
from surgery.hooks import Trace, hidden, with_hidden
from surgery.model import Model
from surgery.products import fast_products
from surgery.replay import KeysValues, Replay
from surgery.site import Site
from surgery.tokens import Batch, ask_fact, encode, pad

# rows share a batch while their subjects are at most so many positions apart
APART = 4


class Rows:
    """The rows a value search reads: the fact in every context with its continuation, and the essence prompt last.

    Attributes:
        ids: token ids of each row.
        subject: position of the subject's last token in each row.
        picked: positions that predict the answer, of the contexts' rows; the last position, of the essence prompt.
        answer_ids: what they predict, in every context.
        prompts: every text that is read.
    """

    def __init__(self, model: Model, fact: Fact, objective: Objective, contexts: Sequence[str], essence: str) -> None:
        if not contexts:
            raise SurgeryError("give at least one context to read the prompt in; '{}' is the bare prompt")
        continuation = objective.continuation(fact)
        asked = [ask_fact(model.tokenizer, fact, continuation, context) for context in contexts]
        if len({len(question.answer_ids) for question, _ in asked}) > 1:
            raise SurgeryError(
                f"{continuation!r} is cut into different tokens in different contexts; use other contexts"
            )
        start = essence.index(SLOT)
        about = encode(model.tokenizer, essence.replace(SLOT, fact.subject))
        self.prompts = (*(context.replace(SLOT, fact.prompt) for context in contexts), about.text)
        self.ids = [*(question.ids for question, _ in asked), about.ids]
        self.subject = [*(span.last for _, span in asked), about.span(start, start + len(fact.subject)).last]
        self.answer_ids = torch.tensor([question.answer_ids for question, _ in asked], device=model.device)
        count = self.answer_ids.shape[1]
        self.picked = [
            *([question.answer_start - 1 + i for i in range(count)] for question, _ in asked),
            [len(about.ids) - 1],
        ]


@runtime_checkable
class Reader(Protocol):
    """Reads rows with a shift."""

    def __call__(
        self, shift: Float[Tensor, " d_model"]
    ) -> tuple[Float[Tensor, "contexts answer vocab"], Float[Tensor, " vocab"]]:
        """Log-probabilities where the answer is predicted, and after the essence prompt."""
        ...


class FullRuns:
    """Reads rows by runs of the whole model."""

    def __init__(self, model: Model, site: Site, rows: Rows) -> None:
        self._model, self._rows, self._module = model, rows, model.anatomy.name(site)
        self._batch: Batch = pad(rows.ids, device=model.device)
        self._subject: Int[Tensor, " rows"] = self._batch.columns(rows.subject)

    def __call__(
        self, shift: Float[Tensor, " d_model"]
    ) -> tuple[Float[Tensor, "contexts answer vocab"], Float[Tensor, " vocab"]]:
        """By one run."""
        with shifted(self._model, self._module, self._subject, shift):
            states = self._model.normed_states(self._batch)
        picked = [states[i, positions] for i, positions in enumerate(self._rows.picked)]
        return _log_probs(self._model.anatomy.head(torch.cat(picked)), self._rows)


@dataclass(frozen=True, eq=False)
class _Group:
    """Rows that share a batch: which they are, and what of them the shift cannot change."""

    rows: list[int]
    replay: Replay
    start: int
    subject: Int[Tensor, " rows"]
    states: Float[Tensor, "rows live d_model"]
    past: list[KeysValues | None]


class Replayed:
    """Reads rows by replay from the edited block and the subject on.

    Raises:
        CannotReplay: the model's blocks cannot be run one by one.
    """

    def __init__(self, model: Model, site: Site, rows: Rows) -> None:
        self._model, self._rows, self._site = model, rows, site
        self._module = model.anatomy.name(site)
        with torch.no_grad(), fast_products(model.device, model.dtype):
            self._groups = [self._prepared(group) for group in _near(rows.subject)]

    def __call__(
        self, shift: Float[Tensor, " d_model"]
    ) -> tuple[Float[Tensor, "contexts answer vocab"], Float[Tensor, " vocab"]]:
        """By the blocks from the edited one up."""
        picked: dict[int, Tensor] = {}
        with fast_products(self._model.device, self._model.dtype):
            for group in self._groups:
                states = group.states
                for layer, past in enumerate(group.past, self._site.layer):
                    if layer == self._site.layer:
                        with shifted(self._model, self._module, group.subject - group.start, shift):
                            states, _ = group.replay.block(layer, states, past)
                    else:
                        states, _ = group.replay.block(layer, states, past)
                for i, row in enumerate(group.rows):
                    picked[row] = states[i, [position - group.start for position in self._rows.picked[row]]]
            logits = self._model.anatomy.unembed(torch.cat([picked[row] for row in range(len(picked))]))
        return _log_probs(logits, self._rows)

    def _prepared(self, rows: list[int]) -> _Group:
        model, edited = self._model, self._site.layer
        # what comes after the last prediction changes nothing before it
        ids = [self._rows.ids[row][: max(self._rows.picked[row]) + 1] for row in rows]
        replay = Replay(model, max(ids, key=len))
        subject = torch.tensor([self._rows.subject[row] for row in rows], device=model.device)
        start = int(subject.min())
        first = model.anatomy.names("state")[0]
        with Trace(model.hf, first, retain_output=False, retain_input=True, stop=True) as trace:
            model.hf.base_model(**model.inputs(pad(ids, device=model.device)))
        states = hidden(trace.input, len(ids))
        below, past = states[:, start:], []
        for layer in range(len(model.anatomy.layers)):
            if layer == edited:
                below = states[:, start:].clone()
            states, seen = replay.block(layer, states)
            if layer >= edited:
                past.append(seen.before(start))
        return _Group(rows, replay, start, subject, below, past)


def shifted(model: Model, module: str, positions: Int[Tensor, " rows"], shift: Float[Tensor, " d_model"]) -> Trace:
    """A block in which a module's output is shifted at one position a row."""
    rows = torch.arange(len(positions), device=positions.device)

    def add(output: Any, name: str) -> Any:
        states = hidden(output, len(rows))
        return with_hidden(output, states.index_put((rows, positions), shift.to(states.dtype), accumulate=True))

    return Trace(model.hf, module, retain_output=False, edit_output=add)


def _near(subject: Sequence[int]) -> list[list[int]]:
    """Rows whose subjects stand at about the same position, in order of that."""
    groups: list[list[int]] = []
    for row in sorted(range(len(subject)), key=lambda row: subject[row]):
        if groups and subject[row] - subject[groups[-1][0]] <= APART:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def _log_probs(
    logits: Float[Tensor, "picked vocab"], rows: Rows
) -> tuple[Float[Tensor, "contexts answer vocab"], Float[Tensor, " vocab"]]:
    log_probs = logits.float().log_softmax(-1)
    return log_probs[:-1].unflatten(0, rows.answer_ids.shape), log_probs[-1]
