"""An edit beside what costs nothing: no edit at all, and the same wish written into the context.

1. No edit: the base model's ratings of the probes.
2. In the context: the base model's ratings with an instruction in front of every prompt of the fact, and of its
   neighbours alike. For a rewrite "New fact: {prompt} {new}.", for a removal a request not to say the answer.
3. The edit: the edited model's ratings of the same probes. Paraphrases the edit has seen are left out of all three.
4. On each count the better of edit and context is named, by their means; closer than `MARGIN`, neither. Where the
   better one is no better than no edit, that is said too. This compares means; it is no test of significance.
A context removes nothing and binds only those who use it; where it does better, an edit has to be needed for another
reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from surgery.errors import NothingToTry, SurgeryError
from surgery.fact import Fact
from surgery.numbers import Interval, json_values, student, wilson
from surgery.verification.askable import TOO_LONG, fits
from surgery.verification.baseline import Baseline
from surgery.verification.probes import Measured, Probe, Rating, Role
from surgery.verification.verdicts import Row, Thresholds

Name = Literal["no edit", "in the context", "edit"]
NAMES: tuple[Name, ...] = get_args(Name)
Count = Literal["prompt", "paraphrase", "moved"]
MARGIN = 0.01


@dataclass(frozen=True)
class BaselineRow:
    """One way of getting the wish, rated by the probes.

    Attributes:
        name: which way.
        prompt: probability of the looked-for answer after the facts' own prompts: the old one of a removal, the new one
            of a rewrite.
        rank: its median rank there.
        paraphrase: the same after held-out paraphrases.
        paraphrase_rank: its median rank there.
        moved: share of neighbours whose answer's probability differs from no edit's by more than the threshold.
        shift: mean size of that difference.
    """

    name: Name
    prompt: Interval
    rank: float
    paraphrase: Interval
    paraphrase_rank: float
    moved: Interval
    shift: Interval


@dataclass(frozen=True)
class Comparison:
    """An edit beside no edit and a context.

    Attributes:
        claim: "removed" (a low probability of the old answer is good) or "rewritten" (a high one of the new is).
        rows: no edit, in the context and, where there is one, the edit.
        instruction: what stood in front of the first fact's prompts.
        left_out: how many facts are in none of the rows, as the model cannot read them behind an instruction.
    """

    claim: Literal["removed", "rewritten"]
    rows: tuple[BaselineRow, ...]
    instruction: str
    left_out: int = 0

    def __post_init__(self) -> None:
        if tuple(one.name for one in self.rows) not in (NAMES[:2], NAMES):
            raise SurgeryError("a comparison has the rows 'no edit', 'in the context' and maybe 'edit', in this order")

    def __getitem__(self, name: Name) -> BaselineRow:
        return next(one for one in self.rows if one.name == name)

    def winner(self, count: Count) -> Name | Literal["neither"] | None:
        """Who does better on one count; None where there is no edit or nothing was asked."""
        if len(self.rows) < len(NAMES):
            return None
        edit, context = getattr(self["edit"], count).mean, getattr(self["in the context"], count).mean
        if np.isnan(edit) or np.isnan(context):
            return None
        if abs(edit - context) < MARGIN:
            return "neither"
        higher_is_better = self.claim == "rewritten" and count != "moved"
        return "edit" if (edit > context) == higher_is_better else "in the context"

    @property
    def told(self) -> str:
        """In words: who wins on which count, with the numbers."""
        answer = "new" if self.claim == "rewritten" else "old"
        counts: tuple[tuple[Count, str], ...] = (
            ("prompt", f"p({answer}) on the prompt"),
            ("paraphrase", f"p({answer}) on paraphrases"),
            ("moved", "share of neighbours moved"),
        )
        parts = []
        for count, words in counts:
            values = {one.name: getattr(one, count).mean for one in self.rows}
            if any(np.isnan(one) for one in values.values()):
                continue
            numbers = ", ".join(f"{name} {value:.3f}" for name, value in values.items())
            parts.append(f"{words}: {self._verdict(count)}{numbers}")
        return "; ".join(parts)

    def _verdict(self, count: Count) -> str:
        winner = self.winner(count)
        if winner is None:
            return ""
        if winner == "neither":
            return "edit and context about equal, "
        best, none = getattr(self[winner], count).mean, getattr(self["no edit"], count).mean
        gain = best - none if self.claim == "rewritten" else none - best
        idle = ", though no better than no edit" if count != "moved" and gain < MARGIN else ""
        return f"the {winner.removeprefix('in the ')} wins{idle}, "

    def as_record(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        return {**json_values(self), "told": self.told}


def instruction(fact: Fact, claim: str) -> str:
    """The wish as a sentence to stand in front of a prompt."""
    if claim == "rewritten":
        return f"New fact: {fact.prompt} {str(fact.new_target).strip()}."
    return (
        f"You know nothing about {fact.subject or 'this'} that would complete '{fact.prompt}'. "
        f"Do not say {fact.target.strip()}."
    )


def compared(
    facts: Sequence[Fact],
    rows: Sequence[Row],
    claim: Literal["removed", "rewritten"],
    baseline: Baseline,
    *,
    thresholds: Thresholds | None = None,
    instruct: Callable[[Fact, str], str] = instruction,
) -> Comparison:
    """Put an edit that was measured beside no edit and a context.

    Args:
        facts: the facts.
        rows: what verification measured: each probe before the edit and after; before is None where there is no edit,
            and after is the model as it is.
        claim: what is wished.
        baseline: of the unedited model, which is asked with the context.
        thresholds: which shift of a neighbour counts as one.
        instruct: gives the instruction of a fact and a claim.

    Raises:
        SurgeryError: there are no rows, or a rewrite's fact has no new answer.
        NothingToTry: the model can read none of the facts behind its instruction.
    """
    if not rows:
        raise SurgeryError("there are no probes to compare by; give the rows of a report")
    if claim == "rewritten" and (missing := next((fact for fact in facts if fact.new_target is None), None)):
        raise SurgeryError(f"{missing.label!r} has no new_target to put in a context; give one")
    line = (Thresholds() if thresholds is None else thresholds).neighbour_shift
    told = [instruct(fact, claim) for fact in facts]
    kept = [row for row in rows if row[0].held_out or row[0].role != "paraphrase"]
    behind = [(row, (f"{told[row[0].fact]} {row[0].prompt}", _answer(row[0], claim))) for row in kept]
    long = {row[0].fact for row, pair in behind if not fits(baseline.model, *pair)}
    kept = [row for row, _ in behind if row[0].fact not in long]
    if not kept:
        raise NothingToTry("the model can read no fact behind its instruction; give shorter facts", TOO_LONG)
    asked = [pair for row, pair in behind if row[0].fact not in long]
    probes = [probe for probe, _, _ in kept]
    edited = kept[0][1] is not None
    none = [_wanted(probe, was or now, claim) for probe, was, now in kept]
    context = [Rating.of(one) for one in baseline.rate(asked)]
    made = [_row("no edit", probes, none, none, line), _row("in the context", probes, none, context, line)]
    if edited:
        made.append(_row("edit", probes, none, [_wanted(probe, now, claim) for probe, _, now in kept], line))
    return Comparison(claim, tuple(made), told[probes[0].fact], len(long))


def _answer(probe: Probe, claim: str) -> str:
    if claim == "rewritten" and probe.role != "neighbour":
        assert probe.new_target is not None
        return probe.new_target
    return probe.target


def _wanted(probe: Probe, measured: Measured, claim: str) -> Rating:
    if claim == "rewritten" and probe.role != "neighbour":
        assert measured.new_target is not None
        return measured.new_target
    return measured.target


def _row(
    name: Name, probes: Sequence[Probe], none: Sequence[Rating], found: Sequence[Rating], line: float
) -> BaselineRow:
    of = {role: [i for i, probe in enumerate(probes) if probe.role == role] for role in get_args(Role)}
    p = {role: student([found[i].probability for i in own], least=0.0, most=1.0) for role, own in of.items()}
    rank = {role: float(np.median([found[i].rank for i in own])) if own else math.nan for role, own in of.items()}
    shifts = [abs(found[i].probability - none[i].probability) for i in of["neighbour"]]
    moved = wilson([float(one > line) for one in shifts])
    return BaselineRow(
        name,
        p["prompt"],
        rank["prompt"],
        p["paraphrase"],
        rank["paraphrase"],
        moved,
        student(shifts, least=0.0, most=1.0),
    )
