"""How deep a removal goes: from which layer on the edited model's states no longer carry the answer.

Activation patching with a reference for "never known", the unlearning depth of https://arxiv.org/abs/2605.24614 for one
fact:
1. At the positions that predict the answer's tokens, prompt and answer given, the edited model's state after layer l
   goes into the base model's run of the same text, for one l at a time.
2. d_l = mean over the answer's tokens of log p(token), before - after the patch: what is missing at layer l.
3. r_l: the same with the states of a model that never knew the fact. Where the fact was planted, that model is at hand,
   as an edit of the base model that takes it out again. Otherwise it is stood in for by the base model itself, asked of
   invented subjects in the same words: positions are counted from the right, r_l is the mean over subjects.
4. The score: the mean of clip(d_l / r_l, 0, 1) over layers with r_l > 0.05, weighted by r_l. 1 where the edited model's
   states hold no more of the answer than the reference's at any layer, 0 where nothing is missing.
A patch of the last layer gives the edited model's own probability. A reference of invented subjects is an assumption: a
model that had never read of this subject might do better, or worse, than with a name that nobody has.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from surgery.edit import Edit
from surgery.errors import NothingToTry, SurgeryError
from surgery.fact import Fact
from surgery.hooks import TraceDict, hidden, with_hidden
from surgery.model import Model
from surgery.products import fast_products
from surgery.tokens import Question, ask, pad
from surgery.verification.baseline import Baseline, Controls
from surgery.verification.controls import in_words_of, never_known
from surgery.verification.shared import inputs_after
from surgery.verification.unseen import in_unseen_words, prompts_seen

ROWS = 256
LEAST = 0.05
"""Reference drops below this are too small to be a share of, in nats."""
ASSUMED = "assumed: the base model asked of {} invented subjects stands for one that never knew the fact"
GIVEN = "given: the base model with an edit that takes the fact out"


@dataclass(frozen=True, eq=False)
class Depth:
    """What is missing in the states of an edited model, layer by layer, in nats a token of the answer.

    Attributes:
        fact: its name.
        prompt: what was asked.
        layers: the layers, in words.
        drops: d_l, by patching the edited model's states into the base model.
        reference: r_l, by patching those of a model that never knew the fact, or what stands for it.
        reference_is: what that is, in words.
        assumed: whether it only stands for such a model.
        base: log-probability of the answer, a token, by the base model.
        edited: the same by the edited model.
    """

    fact: str
    prompt: str
    layers: tuple[str, ...]
    drops: Float[np.ndarray, " layers"]
    reference: Float[np.ndarray, " layers"]
    reference_is: str
    assumed: bool
    base: float
    edited: float

    def __post_init__(self) -> None:
        for name in ("drops", "reference"):
            numbers = getattr(self, name)
            if numbers.shape != (len(self.layers),) or not np.isfinite(numbers).all():
                raise SurgeryError(f"{name} of a depth must be one finite number for each of {len(self.layers)} layers")

    @property
    def ratios(self) -> Float[np.ndarray, " layers"]:
        """The erased share at each layer, 0 to 1; nan where the reference misses too little to tell."""
        tells = self.reference > LEAST
        shares = np.clip(self.drops / np.where(tells, self.reference, 1.0), 0, 1)
        return np.where(tells, shares, np.nan)

    @property
    def score(self) -> float:
        """The erased share over all layers: 1 erased, 0 intact; nan where no layer can tell."""
        tells = self.reference > LEAST
        if not tells.any():
            return float("nan")
        return float(np.average(self.ratios[tells], weights=self.reference[tells]))

    @property
    def told(self) -> str:
        """In words."""
        if np.isnan(self.score):
            gone = f"no layer can tell: the reference loses at most {self.reference.max():.3f} nats"
        else:
            most = int(self.drops.argmax())
            gone = f"{self.score:.0%} erased over {int((self.reference > LEAST).sum())} of {len(self.layers)} layers; "
            gone += f"most missing after {self.layers[most]}, {self.drops[most]:.2f} nats"
        return f"asked {self.prompt!r}: {gone}; {self.reference_is}"

    def as_record(self) -> dict[str, Any]:
        """Everything and the score, as JSON values."""
        score = None if np.isnan(self.score) else self.score
        lists = {name: getattr(self, name).tolist() for name in ("drops", "reference")}
        return {**dataclasses.asdict(self), **lists, "layers": list(self.layers), "score": score}


def removal_depth(
    model: Model,
    edit: Edit,
    fact: Fact,
    *,
    reference: Edit | None = None,
    controls: Controls = never_known,
    count: int = 4,
) -> Depth:
    """Patch an edited model's states into the base model, layer by layer. The model is the same afterwards.

    Args:
        model: the base model, which knows the fact.
        edit: the edit to judge.
        fact: what it should have removed; its prompt is asked.
        reference: an edit of the base model after which it certainly does not know the fact, where there is one, as for
            planted facts; None lets invented subjects stand for it.
        controls: gives the fact asked of invented subjects.
        count: how many of them are used; more even out what a single name brings along.

    Raises:
        WrongWeights: an edit was made for other weights.
        NothingToTry: without a reference, the fact has no subject to exchange, or no control's answer has its tokens.
        SurgeryError: fewer than one invented subject is to be used.
    """
    if count < 1:
        raise SurgeryError(f"{count} invented subjects cannot stand for a model; give count=1 or more")
    question = ask(model.tokenizer, fact.prompt, fact.target)
    strangers = [] if reference else _strangers(model, fact, question, controls)[:count]
    own = _states(model, question)
    with edit.applied(model):
        sources = [_states(model, question)]
        edited = _log_probs(model, question, sources[0][-1:][None])
    if reference:
        with reference.applied(model):
            sources.append(_states(model, question))
    sources += [_states(model, one) for one in strangers]
    base = float(_log_probs(model, question, own[-1:][None]).mean())
    drops = (base - _log_probs(model, question, torch.stack(sources)).mean(-1)).numpy()
    return Depth(
        fact=fact.label,
        prompt=fact.prompt,
        layers=tuple(f"layer {layer}" for layer in range(len(own))),
        drops=drops[0],
        reference=drops[1:].mean(0),
        reference_is=GIVEN if reference else ASSUMED.format(len(strangers)),
        assumed=reference is None,
        base=base,
        edited=float(edited.mean()),
    )


def depths(
    model: Model, edit: Edit, facts: Sequence[Fact], *, baseline: Baseline, controls: Controls = never_known
) -> dict[int, Depth]:
    """How deep the removal of each fact goes that can be tried, asked in words the edit has not seen (`unseen`).

    Args:
        model: the base model, which knows the facts; it is the same afterwards.
        edit: the edit to judge.
        facts: what it should have removed.
        baseline: what the base model answers; it tells in which unseen words a fact is known best.
        controls: gives each fact those that are invented; their names stand in its other words as well.

    Raises:
        NothingToTry: none of them can be tried.
    """
    found: dict[int, Depth] = {}
    nothing, seen = [], prompts_seen(edit, facts)

    def same_names(model: Model, other: Fact, own: Fact) -> tuple[Fact, ...]:
        return in_words_of(other, controls(model, own))

    for i, fact in enumerate(facts):
        other = in_unseen_words(baseline, fact, seen)
        try:
            found[i] = removal_depth(model, edit, other, controls=partial(same_names, own=fact))
        except NothingToTry as error:
            nothing.append(error)
    if nothing and not found:
        raise nothing[0]
    return found


def _strangers(model: Model, fact: Fact, question: Question, controls: Controls) -> list[Question]:
    if not fact.subject:
        raise NothingToTry(
            f"{fact.label!r} has no subject that an invented one could replace; give reference=EDIT",
            "there is no subject that an invented one could replace",
        )
    asked = [ask(model.tokenizer, one.prompt, one.target) for one in controls(model, fact)]
    same = [one for one in asked if one.answer_ids == question.answer_ids]
    if not same:
        raise NothingToTry(
            f"after none of {len(asked)} invented subjects {fact.target!r} has the tokens it has in {fact.label!r}; "
            f"give other controls or reference=EDIT",
            "after no invented subject has the answer the same tokens",
        )
    return same


def _columns(question: Question) -> slice:
    """The positions that predict the answer's tokens; the row is not padded on the left."""
    return slice(question.answer_start - 1, len(question.ids) - 1)


@torch.no_grad()
def _states(model: Model, question: Question) -> Float[Tensor, "layers answer d_model"]:
    """The states after every layer at the positions that predict the answer."""
    names = model.anatomy.names("state")
    with TraceDict(model.hf, names) as seen:
        model.normed_states(pad([question.ids], device=model.device))
    return torch.stack([hidden(seen[name].output, 1)[0, _columns(question)] for name in names])


@torch.no_grad()
def _log_probs(
    model: Model, question: Question, sources: Float[Tensor, "sources layers answer d_model"]
) -> Float[Tensor, "sources layers answer"]:
    """Log-probability of each token of the answer, with one layer's states from one source at a time.

    Where there are fewer layers than the model has, they are its last ones. What comes before the answer's first
    prediction is the same in all of these runs, and read once.
    """
    names, place = model.anatomy.names("state"), _columns(question)
    start, read = question.ids[: place.start], question.ids[place]
    first = len(names) - sources.shape[1]
    runs = [(one, layer) for one in sources for layer in range(sources.shape[1])]
    ids = torch.tensor(question.answer_ids, device=model.device)
    found: list[Tensor] = []
    for done in range(0, len(runs), ROWS):
        part = runs[done : done + ROWS]
        rows: dict[str, list[int]] = {}
        for i, (_, layer) in enumerate(part):
            rows.setdefault(names[first + layer], []).append(i)

        def patch(output: Any, name: str, part: Sequence[tuple[Tensor, int]] = part, rows: Any = rows) -> Any:
            states = hidden(output, len(part)).clone()
            for i in rows[name]:
                given, layer = part[i]
                states[i] = given[layer]
            return with_hidden(output, states)

        batch = pad([read] * len(part), device=model.device)
        inputs = inputs_after(model, batch, [start], [0] * len(part)) if start else model.inputs(batch)
        with (
            fast_products(model.hf),
            TraceDict(model.hf, rows, retain_output=False, edit_output=patch),
        ):
            normed = model.hf.base_model(**inputs).last_hidden_state
        said = model.anatomy.head(normed).float().log_softmax(-1)
        found.append(said.gather(2, ids.expand(len(part), -1)[..., None])[..., 0].double().cpu())
    return torch.cat(found).unflatten(0, tuple(sources.shape[:2]))
