"""What the numbers of an edit tell of its subject, without any of its words.

An edit of a map writes left right^T, and right points where the subject's key is (its input at the subject's last
token), turned by the key statistics. Whoever has the edit and the base model can try names one by one:
1. Each name is put in the subject's place of the fact's template, and its key k read at every changed map.
2. Its response there is |left right^T k| / (|left right^T| |k|), between 0 and 1: for a change of rank one, the cosine
   of right and k. The score is the root mean square of it over the changed maps.
3. The subject is ranked among the names. First of hundreds means that the edit names its subject to whoever thinks of
   it; a rank somewhere in the middle says that this reader cannot tell, not that no better one can.

This reader knows the fact's own template, which others have to guess, and reads the plain response, which the key
statistics would sharpen: what it finds is neither the most nor the least that can be read. That the subject can be read
off published changes was shown in https://arxiv.org/abs/2602.10134.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from surgery.batching import by_length
from surgery.delta import Delta
from surgery.edit import Edit
from surgery.errors import NothingToTry, SurgeryError
from surgery.fact import Fact
from surgery.hooks import TraceDict, hidden
from surgery.model import Model
from surgery.products import fast_products
from surgery.shipped import example_facts, invented_facts
from surgery.tokens import ask_fact, pad
from surgery.verification import naming
from surgery.verification.askable import TOO_LONG

ROWS = 64
FEWEST = 20
UNREAD = "whether the subjects can be read off the edit's numbers"


@dataclass(frozen=True)
class Reading:
    """How well one subject can be read off an edit.

    Attributes:
        subject: who was edited.
        rank: of the subject's score among all names, from 1.
        of: how many names there were, the subject included.
        score: the subject's response, 0 to 1.
        controls: the other names' responses, highest first.
        nearest: the other name with the highest response.
    """

    subject: str
    rank: int
    of: int
    score: float
    controls: tuple[float, ...]
    nearest: str

    def __post_init__(self) -> None:
        if self.rank != 1 + sum(one >= self.score for one in self.controls) or self.of != 1 + len(self.controls):
            raise SurgeryError(f"the rank {self.rank} of {self.of} is not that of {self.subject!r} among its controls")

    @property
    def told(self) -> str:
        """In words."""
        middle = self.controls[len(self.controls) // 2]
        return (
            f"rank {self.rank} of {self.of} names, response {self.score:.3f}; others at most {self.controls[0]:.3f} "
            f"({self.nearest}), median {middle:.3f}"
        )


@dataclass(frozen=True)
class Leak:
    """How well the subjects of an edit can be read off its numbers.

    Attributes:
        readings: one a subject.
        modules: the maps that were read.
        names: how many other names each subject was ranked among.
        left_out: how many subjects were not tried, as the model cannot read them and all names in their facts' words.
    """

    readings: tuple[Reading, ...]
    modules: tuple[str, ...]
    names: int
    left_out: int = 0

    def __post_init__(self) -> None:
        if not self.readings:
            raise SurgeryError("there is no subject that an edit could leak")

    @property
    def first(self) -> int:
        """How many subjects come first of all names."""
        return sum(one.rank == 1 for one in self.readings)

    @property
    def rank(self) -> int:
        """Best rank of any subject."""
        return min(one.rank for one in self.readings)

    @property
    def told(self) -> str:
        """In words."""
        whose = self.readings[0].told if len(self.readings) == 1 else f"best rank {self.rank} of {self.names + 1} names"
        return f"{self.first} of {len(self.readings)} subjects come first when names are tried one by one; {whose}"

    def as_record(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        return dataclasses.asdict(self)


def delta_leak(
    model: Model, edit: Edit, facts: Sequence[Fact] | Fact | None = None, *, names: Sequence[str] | None = None
) -> Leak:
    """Try names on an edit: does its subject stand out? The model stays as it is, and is not edited.

    Args:
        model: the base model.
        edit: the edit.
        facts: those it was made from; None for the ones its file names.
        names: to try besides; None for the subjects of the shipped facts. Those that hold an edited subject, or are
            held by one, are left out.

    Raises:
        WrongWeights: the edit was made for other weights.
        NothingToTry: no fact has a subject, fewer than 20 names are left, the model can read no subject and all the
            names in its fact's words, or every change is zero.
        SurgeryError: no facts are known.
    """
    edit.check_base(model)
    deltas = [delta for delta in edit.deltas if delta.norm > 0]
    if not deltas:
        raise NothingToTry("every change of the edit is zero; there is nothing to try", "every change of it is zero")
    chosen = (facts,) if isinstance(facts, Fact) else edit.facts if facts is None else tuple(facts)
    if not chosen:
        raise SurgeryError("the edit's file does not say what it is about; give its facts, as --facts FILE")
    subjects = {fact.subject: fact for fact in reversed(chosen) if fact.subject}
    if not subjects:
        reason = "none of the facts has a subject"
        raise NothingToTry(f"{reason} that the edit could leak; there is nothing to try", reason)
    given = [fact.subject for fact in (*example_facts(), *invented_facts())] if names is None else names
    others = [
        name
        for name in dict.fromkeys(given)
        if not any(naming.names(name, one, any_case=True) or naming.names(one, name, any_case=True) for one in subjects)
    ]
    if len(others) < FEWEST:
        reason = f"{len(others)} names are too few to rank a subject among"
        raise NothingToTry(f"{reason}; give at least {FEWEST}", reason)
    control: dict[str, list[float] | None] = {}
    readings = []
    for subject, fact in reversed(subjects.items()):
        if fact.template not in control:
            control[fact.template] = _responses(model, deltas, [fact.replace(subject=name) for name in others])
        own, theirs = _responses(model, deltas, [fact]), control[fact.template]
        if own and theirs:
            readings.append(_reading(subject, own[0], others, theirs))
    if not readings:
        reason = "the model cannot read the subjects and all the names in the facts' words"
        raise NothingToTry(f"{reason}; give shorter facts", reason)
    return Leak(tuple(readings), tuple(delta.module for delta in deltas), len(others), len(subjects) - len(readings))


def leak_if_wanted(
    model: Model, edit: Edit | None, facts: Sequence[Fact], *, asked_for: bool, wanted: bool
) -> tuple[Leak | None, list[str]]:
    """What can be read off an edit's numbers, and in words what of it was not tried.

    Raises:
        NothingToTry: it was asked for, and there is nothing to read.
    """
    if edit is None or not facts or not (asked_for or wanted):
        return None, [UNREAD] * (edit is not None)
    try:
        leak = delta_leak(model, edit, facts)
    except NothingToTry as error:
        if asked_for:
            raise
        return None, [f"{UNREAD}: {error.reason}"]
    return leak, [f"{UNREAD}: {leak.left_out} of them, {TOO_LONG}"] * (leak.left_out > 0)


def _reading(subject: str, own: float, others: Sequence[str], scores: Sequence[float]) -> Reading:
    order = sorted(range(len(others)), key=lambda i: -scores[i])
    controls = tuple(scores[i] for i in order)
    rank = 1 + sum(one >= own for one in controls)
    return Reading(subject, rank, len(controls) + 1, own, controls, others[order[0]])


@torch.no_grad()
def _responses(model: Model, deltas: Sequence[Delta], facts: Sequence[Fact]) -> list[float] | None:
    """Each fact's score: root mean square over the maps of the response to the key at its subject's last token.

    None where the model cannot read one of them up to there.
    """
    rows = []
    for fact in facts:
        question, span = ask_fact(model.tokenizer, fact, fact.target)
        rows.append(question.ids[: span.stop])
    limit = model.anatomy.max_positions
    if limit is not None and max(map(len, rows)) > limit:
        return None
    squares = torch.zeros(len(rows), dtype=torch.float64)
    names = [delta.module for delta in deltas]
    for part in by_length(rows, ROWS):
        batch = pad([rows[i] for i in part], device=model.device)
        ends = batch.columns([-1] * len(part))
        with (
            fast_products(model.hf),
            TraceDict(model.hf, names, retain_output=False, retain_input=True, stop=True) as traces,
        ):
            model.hf(**model.inputs(batch))
        for delta in deltas:
            keys = hidden(traces[delta.module].input, len(part))[torch.arange(len(part)), ends].cpu().double()
            moved = keys @ delta.right.double() @ delta.left.double().T
            squares[part] += (moved.norm(dim=1) / (keys.norm(dim=1) * delta.norm)).square()
    scores: list[float] = (squares / len(names)).sqrt().tolist()
    return scores
