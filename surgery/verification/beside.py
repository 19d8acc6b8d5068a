"""What is measured beside the verdicts: it judges nothing, and tells what an edit is like to live with.

1. quick: side effects on the light axes (`effects`).
2. standard: all axes; what is said when asked as users ask (`generation`); no edit, and the wish in the context instead
   (`comparison`); of a rewrite CounterFact's scores (`classic`); of a removal how deep it goes (`depth`), for the first
   facts, in unseen words; what quantising leaves of the change (`quantisation`).
3. full: the same, and of longer texts the fluency and, of a rewrite, the consistency (`classic`): the words they share
   with what the base model says of neighbours that have the new answer.
4. Whatever the profile, where they are asked for: tasks of lm-evaluation-harness (`harness`).
Without an edit there is no change to look at: generation, comparison and the scores of the model as it is remain.
What was left out is told without a word of the facts, as a certificate holds it too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from surgery.edit import Edit
from surgery.errors import NothingToTry
from surgery.fact import Fact
from surgery.model import Model
from surgery.numbers import Interval, json_values, student
from surgery.verification.askable import TOO_LONG, fits
from surgery.verification.attack import PROFILES, Profile
from surgery.verification.baseline import Baseline, Controls
from surgery.verification.classic import Classic, consistency, fluency, score
from surgery.verification.comparison import Comparison, compared
from surgery.verification.costs import Meter
from surgery.verification.depth import Depth, depths
from surgery.verification.drift import Drift
from surgery.verification.effect import Effects
from surgery.verification.effects import effects
from surgery.verification.generation import Generation, generation
from surgery.verification.harness import Tasks
from surgery.verification.longer import longer_texts, references
from surgery.verification.quantisation import QUANT_KINDS, ChangedBins, changed_bins
from surgery.verification.task_effect import TaskEffects
from surgery.verification.verdicts import Row, Thresholds

DEEP = 3
"""Facts whose depth is measured, the first ones."""
ABOUT = {
    "effects": "side effects, such as on other facts about the same subject",
    "tasks": "side effects on benchmarks, as tasks of lm-evaluation-harness",
    "generation": "free answers, asked in plain words, as a question and in a chat",
    "comparison": "the same wish as an instruction in the context",
    "classic": "CounterFact's scores",
    "depth": "how deep the removal goes, layer by layer",
    "bins": "how much of the change is left when the model is quantised",
    "fluency": "generation over longer text",
    "consistency": "CounterFact's consistency, which needs neighbours with the new answer",
}
PARTS = {
    "effects": "side effects",
    "tasks": "lm-eval tasks",
    "generation": "free answers",
    "comparison": "instruction in the context",
    "classic": "classic scores",
    "depth": "depth",
    "bins": "what quantising leaves",
    "fluency": "longer texts",
    "consistency": "consistency",
}
"""What stands in the costs."""


@dataclass(frozen=True)
class Beside:
    """What was measured beside the verdicts; a part that was not is None or empty.

    Attributes:
        effects: what else the edit changed.
        tasks: what it did to tasks of lm-evaluation-harness.
        generation: what is said when asked as users ask.
        comparison: the edit beside none and beside an instruction in the context.
        classic: CounterFact's scores "before" and "after".
        fluency: of longer texts, "before" and "after".
        consistency: of those of a rewrite, "before" and "after".
        depth: how deep a removal goes, by which of the facts, from 0.
        bins: what is left of the change in each kind of quantisation.
        left_out: what was not measured, in words, none of them the facts'.
    """

    effects: Effects | None = None
    tasks: TaskEffects | None = None
    generation: Generation | None = None
    comparison: Comparison | None = None
    classic: Mapping[str, Classic] = field(default_factory=dict)
    fluency: Mapping[str, Interval] = field(default_factory=dict)
    consistency: Mapping[str, Interval] = field(default_factory=dict)
    depth: Mapping[int, Depth] = field(default_factory=dict)
    bins: tuple[ChangedBins, ...] = ()
    left_out: tuple[str, ...] = ()

    def as_record(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        parts = {name: getattr(self, name) for name in ("effects", "tasks", "generation", "comparison")}
        return {
            **{name: None if one is None else one.as_record() for name, one in parts.items()},
            "classic": {when: one.as_record() for when, one in self.classic.items()},
            "fluency": json_values(self.fluency),
            "consistency": json_values(self.consistency),
            "depth": [{"index": i, **one.as_record()} for i, one in self.depth.items()],
            "bins": [{**json_values(one), "share": one.share, "told": one.told} for one in self.bins],
            "left_out": list(self.left_out),
        }


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a verification hands on to be looked at beside its verdicts.

    Attributes:
        model: the base model; it is the same afterwards.
        edit: the edit; None for the model at hand.
        facts: what is asked.
        rows: the probes with what was measured.
        claim: what is claimed.
        profile: how much to measure.
        lines: which shift of a neighbour counts as one.
        drift: what was found on neutral text.
        controls: gives each fact invented subjects.
        baseline: what the base model answers.
        tasks: which tasks to ask; None for none.
        seed: of what is drawn.
    """

    model: Model
    edit: Edit | None
    facts: Sequence[Fact]
    rows: Sequence[Row]
    claim: Literal["removed", "rewritten"]
    profile: Profile
    lines: Thresholds
    drift: Drift | None
    controls: Controls
    baseline: Baseline
    tasks: Tasks | None = None
    seed: int = 0

    def applies(self, part: str) -> bool:
        """Whether there is anything to measure in a part."""
        if part in ("effects", "tasks", "bins"):
            return self.edit is not None
        if part == "depth":
            return self.edit is not None and self.claim == "removed"
        return part not in ("classic", "consistency") or self.claim == "rewritten"

    @cached_property
    def longer(self) -> dict[str, list[list[str]]]:
        """Each fact's longer texts, "before" and "after", which two parts are read from."""
        return longer_texts(self.model, self.edit, self.facts, self.baseline)


def measured_beside(asked: Asked, meter: Meter, *, wanted: bool = True) -> Beside:
    """Measure what the profile has beside the verdicts.

    Args:
        asked: of what.
        meter: which adds up what each part takes.
        wanted: else nothing but tasks is measured, and all that could have been is left out.
    """
    parts = [name for name in ABOUT if asked.applies(name)]
    weight = PROFILES.index(asked.profile) if wanted else -1
    chosen = [name for name in parts if name != "tasks" and PROFILES.index(_LIGHTEST.get(name, "standard")) <= weight]
    chosen += ["tasks"] * (asked.tasks is not None)
    made: dict[str, Any] = {}
    why: dict[str, str] = {}
    for name in chosen:
        with meter.part(PARTS[name]):
            try:
                made[name] = _MEASURES[name](asked)
            except NothingToTry as error:
                why[name] = f": {error.reason}"
    found = Beside(**made)
    left = [ABOUT[name] + why.get(name, "") for name in parts if not getattr(found, name)]
    return replace(found, left_out=(*left, *_within(found, asked, chosen)))


def _within(found: Beside, asked: Asked, chosen: Sequence[str]) -> list[str]:
    """What was left out of parts that were measured."""
    left = []
    if found.effects:
        reasons: dict[str, list[str]] = {}
        for axis, why in found.effects.left_out.items():
            reasons.setdefault(why, []).append(axis)
        left += [f"side effects on {'; '.join(axes)}: {why}" for why, axes in reasons.items()]
        whole = {one.axis for one in found.effects.effects}
        left += [
            f"side effects on {axis}, cases {TOO_LONG}: {count}"
            for axis, count in found.effects.too_long.items()
            if axis in whole
        ]
        looked, among = found.effects.facts
        left += [f"side effects around {among - looked} of {among} facts, which were not drawn"] * (looked < among)
    if found.generation:
        left += [f"free answers in the form {form}: {why}" for form, why in found.generation.left_out.items()]
        left += [
            f"free answers in the form {form}, prompts {TOO_LONG}: {count}"
            for form, count in found.generation.too_long.items()
        ]
    if "comparison" in chosen and (long := found.comparison.left_out if found.comparison else len(asked.facts)):
        left.append(f"an instruction in the context of {long} of {len(asked.facts)} facts, {TOO_LONG}")
    if found.depth and (rest := len(asked.facts) - len(found.depth)):
        why = f"only the first {DEEP} are tried, and each needs invented subjects to compare with"
        left.append(f"how deep the removal of {rest} of {len(asked.facts)} facts goes: {why}")
    scored = len(found.classic["after"].successes) if found.classic else 0
    if "classic" in chosen and (long := len(asked.facts) - scored):
        left.append(f"CounterFact's scores of {long} of {len(asked.facts)} facts, {TOO_LONG}")
    if found.consistency and (bare := len(asked.facts) - found.consistency["after"].cases):
        left.append(f"{ABOUT['consistency']}, of {bare} of {len(asked.facts)} facts")
    return left


def _effects(asked: Asked) -> Effects:
    assert asked.edit is not None
    how = {"profile": asked.profile, "drift": asked.drift, "baseline": asked.baseline, "seed": asked.seed}
    return effects(asked.model, asked.edit, asked.facts, **how)  # type: ignore[arg-type]


def _tasks(asked: Asked) -> TaskEffects:
    assert asked.edit is not None
    assert asked.tasks is not None
    return asked.tasks(asked.model, asked.edit)


def _generation(asked: Asked) -> Generation:
    return generation(asked.model, asked.edit, asked.facts, claim=asked.claim, baseline=asked.baseline)


def _comparison(asked: Asked) -> Comparison | None:
    # how many facts are too long is told beside it
    with suppress(NothingToTry):
        return compared(asked.facts, asked.rows, asked.claim, asked.baseline, thresholds=asked.lines)
    return None


def _classic(asked: Asked) -> dict[str, Classic]:
    facts = [fact for fact in asked.facts if _scorable(asked.model, fact)]
    if not facts:
        return {}
    with asked.edit.applied(asked.model) if asked.edit else nullcontext():
        after = score(asked.model, facts)
    return {"before": asked.baseline.score(facts), "after": after} if asked.edit else {"after": after}


def _scorable(model: Model, fact: Fact) -> bool:
    """Whether all that CounterFact's scores ask can be asked, the new answer after each neighbour included."""
    pairs = [(text, fact.target) for text in (fact.prompt, *fact.paraphrases)]
    pairs += [(one.prompt, one.target) for one in fact.neighbours]
    return all(fits(model, prompt, one) for prompt, old in pairs for one in (old, str(fact.new_target)))


def _fluency(asked: Asked) -> dict[str, Interval]:
    return {when: fluency([text for own in texts for text in own]) for when, texts in asked.longer.items()}


def _consistency(asked: Asked) -> dict[str, Interval]:
    known = references(asked.facts, asked.rows, asked.baseline)
    return {
        when: student([consistency(texts[i], own) for i, own in known.items()], least=0.0, most=1.0)
        for when, texts in (asked.longer if known else {}).items()
    }


def _depths(asked: Asked) -> dict[int, Depth]:
    assert asked.edit is not None
    return depths(asked.model, asked.edit, asked.facts[:DEEP], baseline=asked.baseline, controls=asked.controls)


def _bins(asked: Asked) -> tuple[ChangedBins, ...]:
    assert asked.edit is not None
    return tuple(changed_bins(asked.model, asked.edit, kind) for kind in QUANT_KINDS)


_LIGHTEST: Mapping[str, Profile] = {"effects": "quick", "fluency": "full", "consistency": "full"}
_MEASURES: Mapping[str, Callable[[Asked], Any]] = {
    "effects": _effects,
    "tasks": _tasks,
    "generation": _generation,
    "comparison": _comparison,
    "classic": _classic,
    "depth": _depths,
    "bins": _bins,
    "fluency": _fluency,
    "consistency": _consistency,
}
