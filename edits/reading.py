"""Reading facts in contexts while a matrix's output at their subjects is shifted, forwards and backwards.

A value search reads the same rows again and again; only the shifts change. Two ways give the same log-probabilities:

- `FullRuns` runs the whole model on all rows, log-probabilities of the vocabulary at every position included, as
  published.
- `Replayed` keeps what the shifts cannot change: all blocks below the edited one, that one too where a trial shows that
  shifts are merely added to what it gives, and all positions before a subject's last token, whose keys and values it
  supplies from one run (`surgery.replay_rows`). The rows of all facts stand with their subjects in one column of one
  batch, of which mlps see no padding (`surgery.live_only`), and the vocabulary is asked for only where an answer is
  predicted.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from edits.objectives import Objective
from edits.spread import adds_as_is
from surgery.errors import SurgeryError
from surgery.fact import SLOT, Fact
from surgery.gpu_queue import sent
from surgery.grouped import GroupedAttention
from surgery.hooks import Trace, TraceDict, hidden, with_hidden
from surgery.live_only import LiveOnly, mlps
from surgery.model import Model
from surgery.packing import packed_products
from surgery.products import fast_products
from surgery.replay_rows import RowReplay
from surgery.site import Site
from surgery.tokens import Batch, align, ask_fact, encode, in_context, pad


class Rows:
    """The rows of facts that share one value: each in every context with its continuation, then the essence prompt.

    Attributes:
        facts: the facts; their subject is the same.
        ids: token ids of each row.
        subject: position of the subject's last token in each row.
        picked: positions that predict the answer; of the essence prompt, its last position.
        answers: of each fact, what its rows predict in every context: [contexts, answer].
        essence: whether the last row is an essence prompt; facts without a subject have none.
        prompts: every text that is read.
    """

    def __init__(
        self, model: Model, facts: Sequence[Fact], objective: Objective, contexts: Sequence[str], essence: str
    ) -> None:
        if not contexts:
            raise SurgeryError("give at least one context to read the prompt in; '{}' is the bare prompt")
        self.facts = tuple(facts)
        self.ids: list[tuple[int, ...]] = []
        self.subject: list[int] = []
        self.picked: list[list[int]] = []
        self.answers: list[Int[Tensor, "contexts answer"]] = []
        prompts: list[str] = []
        for fact in facts:
            continuation = objective.continuation(fact)
            asked = [ask_fact(model.tokenizer, fact, continuation, context) for context in contexts]
            count = len(asked[0][0].answer_ids)
            if any(len(question.answer_ids) != count for question, _ in asked):
                raise SurgeryError(
                    f"{continuation!r} is cut into different tokens in different contexts; use other contexts"
                )
            self.ids += [question.ids for question, _ in asked]
            self.subject += [span.last for _, span in asked]
            self.picked += [[question.answer_start - 1 + i for i in range(count)] for question, _ in asked]
            self.answers.append(torch.tensor([question.answer_ids for question, _ in asked], device=model.device))
            prompts += [in_context(model.tokenizer, fact.prompt, context) for context in contexts]
        self.essence = bool(self.facts[0].subject)
        if self.essence:
            about = encode(model.tokenizer, essence.replace(SLOT, self.facts[0].subject))
            start = essence.index(SLOT)
            self.ids.append(about.ids)
            self.subject.append(about.span(start, start + len(self.facts[0].subject)).last)
            self.picked.append([len(about.ids) - 1])
            prompts.append(about.text)
        self.prompts = tuple(prompts)

    @property
    def asked_ends(self) -> list[tuple[int, ...]]:
        """Every row but the essence prompt, up to its subject's last token."""
        asked = len(self.ids) - self.essence
        return [ids[: end + 1] for ids, end in zip(self.ids[:asked], self.subject[:asked], strict=True)]

    @property
    def tail(self) -> int:
        """Most positions a row has from its subject's last token to its last prediction."""
        return max(picked[-1] - subject + 1 for picked, subject in zip(self.picked, self.subject, strict=True))


@dataclass(frozen=True, eq=False)
class Reading:
    """What one group's rows say.

    Attributes:
        answers: of each fact, at each depth that is read, the output last: log-probabilities where its answer is
            predicted, [contexts, answer, vocab].
        essence: log-probabilities after the essence prompt.
    """

    answers: tuple[tuple[Float[Tensor, "_ _ vocab"], ...], ...]
    essence: Float[Tensor, " vocab"] | None


@runtime_checkable
class Reader(Protocol):
    """Reads the rows of several groups, each with its own shift."""

    @property
    def lasting(self) -> int:
        """Tokens that are read from the same place in memory each time, until `keep`; 0 where they are copied anew."""
        ...

    def __call__(self, shifts: Float[Tensor, "groups d_model"]) -> list[Reading]:
        """One reading a group that is kept, in their order."""
        ...

    def keep(self, groups: Sequence[int]) -> None:
        """Go on with these of the groups only, numbered as they are now."""
        ...


class _Picked:
    """Which predictions of which rows belong to whom."""

    def __init__(self, groups: Sequence[Rows]) -> None:
        self.groups = list(groups)

    @property
    def ids(self) -> list[tuple[int, ...]]:
        """What comes after a row's last prediction changes nothing before it, so it is left away."""
        return [
            ids[: picked[-1] + 1] for rows in self.groups for ids, picked in zip(rows.ids, rows.picked, strict=True)
        ]

    @property
    def subject(self) -> list[int]:
        return [position for rows in self.groups for position in rows.subject]

    def owners(self, device: torch.device) -> Int[Tensor, " rows"]:
        """The group of each row."""
        return sent([i for i, rows in enumerate(self.groups) for _ in rows.ids], device)

    def rows_of(self, groups: Sequence[int]) -> list[int]:
        """The rows of some of the groups."""
        ends = [0, *accumulate(len(rows.ids) for rows in self.groups)]
        return [row for i in groups for row in range(ends[i], ends[i + 1])]

    def places(self, starts: Int[Tensor, " rows"]) -> tuple[Int[Tensor, " picked"], Int[Tensor, " picked"]]:
        """Row and column of every prediction, for rows that begin at the columns `starts`."""
        flat = [picked for rows in self.groups for picked in rows.picked]
        row = sent([i for i, picked in enumerate(flat) for _ in picked], starts.device)
        position = sent([one for picked in flat for one in picked], starts.device)
        return row, position + starts[row]

    def readings(self, logits: Sequence[Float[Tensor, "picked vocab"]]) -> list[Reading]:
        """Each group's reading, from the logits at every prediction, at each depth."""
        # cut by one split: of every cut apart, the gradient would be as large as the whole
        sizes = [n for rows in self.groups for n in (*(ids.numel() for ids in rows.answers), *[1] * rows.essence)]
        parts = iter(zip(*(one.float().log_softmax(-1).split(sizes) for one in logits), strict=True))
        made = []
        for rows in self.groups:
            answers = [tuple(one.unflatten(0, ids.shape) for one in next(parts)) for ids in rows.answers]
            made.append(Reading(tuple(answers), next(parts)[-1][0] if rows.essence else None))
        return made


class FullRuns:
    """Reads rows by runs of the whole model."""

    lasting = 0
    """A batch goes through the whole model, which makes its own masks."""

    def __init__(self, model: Model, site: Site, groups: Sequence[Rows], depths: Sequence[int] = ()) -> None:
        self._model, self._module = model, model.anatomy.name(site)
        self._names = [model.anatomy.names("state")[layer] for layer in depths]
        self._rows = _Picked(groups)
        self._prepare()

    def _prepare(self) -> None:
        self._batch: Batch = pad(self._rows.ids, device=self._model.device)
        self._subject: Int[Tensor, " rows"] = self._batch.columns(self._rows.subject)
        self._owners = self._rows.owners(self._model.device)

    def __call__(self, shifts: Float[Tensor, "groups d_model"]) -> list[Reading]:
        """By one run."""
        row, column = self._rows.places(self._batch.starts)
        with (
            shifted(self._model, self._module, self._subject, shifts[self._owners]),
            TraceDict(self._model.hf, self._names) as trace,
        ):
            said = self._model.hf(**self._model.inputs(self._batch)).logits.float().log_softmax(-1)
        seen = [hidden(trace[name].output, len(self._batch.ids)) for name in self._names]
        lens = [self._model.anatomy.unembed(states[row, column]) for states in seen]
        return self._rows.readings([*lens, said[row, column]])

    def keep(self, groups: Sequence[int]) -> None:
        """Go on with these."""
        self._rows = _Picked([self._rows.groups[i] for i in groups])
        self._prepare()


class Replayed:
    """Reads rows by replay from the edited block and the subject on.

    Raises:
        CannotReplay: the model's blocks cannot be run one by one.
    """

    def __init__(
        self,
        model: Model,
        site: Site,
        groups: Sequence[Rows],
        depths: Sequence[int] = (),
        products: AbstractContextManager[Any] | None = None,
    ) -> None:
        """With `products` (`packed_above`), many readers share packed weights."""
        self._model, self._site, self._depths = model, site, tuple(depths)
        self._products = products or packed_above(model, site)
        self._attention = GroupedAttention(model.hf)
        self._module = model.anatomy.name(site)
        self._rows = _Picked(groups)
        ids, subject = self._rows.ids, self._rows.subject
        batch = align(ids, subject, device=model.device)
        self._owners = self._rows.owners(model.device)
        self._starts = -sent(subject, model.device)
        lengths = [len(row) - end for row, end in zip(ids, subject, strict=True)]
        # not the edited one, whose output is looked for where it was
        self._live = LiveOnly(mlps(model)[site.layer + 1 :], lengths, max(lengths), model.device)
        self._places = self._rows.places(self._starts)
        with torch.no_grad(), fast_products(model.hf), self._products:
            self._replay = RowReplay(model, batch, max(subject), site.layer)
            # what the edited block gives, where shifts are merely added to it
            self._unshifted = self._replay.block(site.layer, self._replay.states) if adds_as_is(model, site) else None

    @property
    def lasting(self) -> int:
        """All of them."""
        rows, live, _ = self._replay.states.shape
        return rows * live

    def __call__(self, shifts: Float[Tensor, "groups d_model"]) -> list[Reading]:
        """By the blocks from the edited one up."""
        states, lens, each = self._replay.states, [], shifts[self._owners]
        row, column = self._places
        with self._products, self._attention, self._live:
            for layer in self._replay.layers:
                states = self._shifted(each) if layer == self._site.layer else self._replay.block(layer, states)
                if layer in self._depths:
                    lens.append(self._model.anatomy.unembed(states[row, column]))
            return self._rows.readings([*lens, self._model.anatomy.unembed(states[row, column])])

    def keep(self, groups: Sequence[int]) -> None:
        """Go on with these."""
        kept = self._rows.rows_of(groups)
        rows = sent(kept, self._model.device)
        self._live.keep(kept)
        self._rows = _Picked([self._rows.groups[i] for i in groups])
        self._owners, self._starts = self._rows.owners(self._model.device), self._starts[rows]
        self._places = self._rows.places(self._starts)
        self._replay.keep(rows)
        self._unshifted = None if self._unshifted is None else self._unshifted[rows]

    def _shifted(self, each: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows live d_model"]:
        """What the edited block gives for a shift a row."""
        if self._unshifted is not None:
            first = self._unshifted[:, :1] + each[:, None].to(self._unshifted.dtype)
            return torch.cat([first, self._unshifted[:, 1:]], 1)
        at = torch.zeros(len(each), dtype=torch.long, device=each.device)
        with shifted(self._model, self._module, at, each):
            states = self._replay.block(self._site.layer, self._replay.states)
        return states


def packed_above(model: Model, site: Site, *, sure: int = 1) -> AbstractContextManager[Any]:
    """Packed weights of the edited block, those above it and the head (`surgery.packing`), used so often at least."""
    blocks = [model.hf.get_submodule(name) for name in model.anatomy.names("state")[site.layer :]]
    return packed_products([*blocks, model.hf.get_output_embeddings()], sure=sure)


def shifted(model: Model, module: str, positions: Int[Tensor, " rows"], shift: Float[Tensor, "*rows d_model"]) -> Trace:
    """A block in which a module's output is shifted at one position a row."""
    rows = torch.arange(len(positions), device=positions.device)

    def add(output: Any, name: str) -> Any:
        states = hidden(output, len(rows))
        return with_hidden(output, states.index_put((rows, positions), shift.to(states.dtype), accumulate=True))

    return Trace(model.hf, module, retain_output=False, edit_output=add)
