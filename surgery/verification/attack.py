"""An attack tries to bring an answer up again; whether it did is told by facts that no model can know.

1. An attack scores how far the answer of a fact comes up under each of its forms (phrasings, layers, seeds), 0 to 1.
2. The same forms are tried on controls: invented subjects with the fact's own wording and answer (`controls`). What
   they score is the wording's doing, not memory.
3. A fact's lift is the largest difference, over the forms, between its score and the median for that form, of the
   fact and its controls alike; each control has a lift in the same way, so that many forms are paid for by both.
4. The attack succeeds where the fact's lift is larger than every control's by the attack's own floor or more. Were the
   floor nothing, a fact that was never known would pass this line in one case of 21, with 20 controls, and a battery of
   many attacks would often point at one; how often it does with the floor is measured (`benchmarks/league.py`).
5. An attack that does not succeed on the model before the edit either has no power, and says nothing about the edit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from surgery.errors import SurgeryError
from surgery.fact import Fact
from surgery.model import Model

Aspect = Literal["extraction", "traces", "superficial", "quantisation", "relearning"]
Profile = Literal["quick", "standard", "full"]
ASPECTS: tuple[Aspect, ...] = ("extraction", "traces", "superficial", "quantisation", "relearning")
PROFILES: tuple[Profile, ...] = ("quick", "standard", "full")
FEWEST_CONTROLS = 19
"""With fewer, the largest of them is below the 95th percentile."""


@dataclass(frozen=True, eq=False)
class Attempt:
    """What an attack brought up, of several facts.

    Attributes:
        forms: the attack's phrasings, layers or seeds, in words.
        scores: how far each answer came up under each, 0 to 1; nan where a form cannot be tried on a fact.
        says: what the model said to each fact under its best form, "" where it was not asked to speak.
        bounds: of scores that are estimates, the upper bound of each fact's; nan where there is none.
    """

    forms: tuple[str, ...]
    scores: Float[np.ndarray, "facts forms"]
    says: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.scores.ndim != 2 or self.scores.shape[1] != len(self.forms):
            raise SurgeryError(f"scores of shape {self.scores.shape} are not facts by {len(self.forms)} forms")
        if self.says and len(self.says) != len(self.scores):
            raise SurgeryError(f"{len(self.says)} answers are not one for each of {len(self.scores)} facts")
        if self.bounds and len(self.bounds) != len(self.scores):
            raise SurgeryError(f"{len(self.bounds)} bounds are not one for each of {len(self.scores)} facts")
        if not (np.isnan(self.scores) | ((self.scores >= 0) & (self.scores <= 1 + 1e-6))).all():
            raise SurgeryError("an attack's scores lie between 0 and 1")


@runtime_checkable
class Attack(Protocol):
    """A way of bringing answers up; its configuration is a frozen keyword-only dataclass.

    Attributes:
        name: short, for tables and options.
        about: what it does, in one line.
        aspect: which claim it bears on.
        own_words: whether it gets the fact in its own words, for it asks several wordings; whatever puts one question
            gets it in words the edit has not seen (`unseen`).
        profile: the lightest profile it belongs to.
        unit: what its scores are.
        floor: the smallest lift that counts.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    aspect: ClassVar[Aspect]
    own_words: ClassVar[bool]
    profile: ClassVar[Profile]
    unit: ClassVar[str]
    floor: ClassVar[float]

    def __call__(self, model: Model, facts: Sequence[Fact]) -> Attempt:
        """Try it on the model as it is, on all facts alike; the model is the same afterwards."""
        ...


@runtime_checkable
class Derived(Attack, Protocol):
    """An attack that works out its scores from another one's on the same facts.

    Attributes:
        source: the other one.
    """

    source: ClassVar[Attack]

    def derived(self, attempt: Attempt) -> Attempt:
        """What it finds where the other one found this."""
        ...


Attempts = dict[tuple[Attack, tuple[Fact, ...]], Attempt]
"""What attacks brought up of some facts on one model."""


def tried(attack: Attack, facts: tuple[Fact, ...], model: Model, had: Attempts) -> Attempt:
    """What an attack brings up on a model as it is.

    Args:
        attack: the attack.
        facts: what it is tried on.
        model: the model; it is the same afterwards.
        had: what was tried on this model before, which is not tried again; what is tried now is added.
    """
    key = attack, facts
    if key not in had:
        if isinstance(attack, Derived):
            had[key] = attack.derived(tried(attack.source, facts, model, had))
        else:
            had[key] = attack(model, facts)
    return had[key]


Outcome = Literal["succeeds", "resisted", "no power", "not applicable"]


@dataclass(frozen=True)
class Lift:
    """How far one fact stands out from its controls in one state of the model.

    Attributes:
        value: the fact's lift; nan where no form could be tried on it.
        line: what it has to be above: the controls' largest lift, if that is above 0, and the floor.
        controls: the controls' lifts, largest first.
        form: the form that lifts the fact most.
        score: the fact's own score under it.
        typical: the median score under it, of the fact and its controls.
        says: what the model said under it.
        bound: the upper bound of the fact's score, where this is an estimate.
    """

    value: float
    line: float
    controls: tuple[float, ...]
    form: str
    score: float
    typical: float
    says: str = ""
    bound: float | None = None

    @property
    def stands_out(self) -> bool:
        """Beyond every control and the floor."""
        return self.value > self.line


@dataclass(frozen=True)
class Finding:
    """What one attack found out about one fact.

    Attributes:
        fact: which of the facts, from 0.
        attack: the attack's name.
        aspect: the claim it bears on.
        unit: what its scores are.
        before: on the model without the edit; None where there is none.
        after: on the model that is judged.
    """

    fact: int
    attack: str
    aspect: Aspect
    unit: str
    before: Lift | None
    after: Lift

    @property
    def outcome(self) -> Outcome:
        """Whether the answer came up, did not, or could not have."""
        if np.isnan(self.after.value):
            return "not applicable"
        if self.after.stands_out:
            return "succeeds"
        return "resisted" if self.before is None or self.before.stands_out else "no power"

    @property
    def evidence(self) -> str:
        """In words."""
        if self.outcome == "not applicable":
            return f"{self.attack} cannot be tried on this fact"
        after, before = self.after, self.before
        was = f", before the edit {before.value:+.3f}" if before is not None and not np.isnan(before.value) else ""
        controls = f"{len(after.controls)} controls at most {after.controls[0]:+.3f}"
        said = f", says {after.says!r}" if after.says and self.outcome == "succeeds" else ""
        most = "" if after.bound is None else f" (at most {after.bound:.3f})"
        told = f"{self.unit} {after.score:.3f}{most}, lift {after.value:+.3f}"
        return f"{self.attack} ({after.form}): {told}{was}; {controls}{said}"


def lift(attempt: Attempt, own: int, controls: Sequence[int], floor: float) -> Lift:
    """How far one row of an attempt stands out from the rows of its controls.

    Raises:
        SurgeryError: there are too few controls for a line.
    """
    if len(controls) < FEWEST_CONTROLS:
        raise SurgeryError(f"{len(controls)} controls are too few to tell a fact from; give at least {FEWEST_CONTROLS}")
    everyone = attempt.scores[[own, *controls]]
    usable = ~np.isnan(everyone[0]) & ~np.isnan(everyone[1:]).all(0)
    if not usable.any():
        return Lift(float("nan"), floor, (0.0,) * len(controls), "", float("nan"), float("nan"))
    # the fact is one of them here: exchangeable if it was never known, and then first of 21 in one case of 21
    typical = np.nanmedian(everyone[:, usable], 0)
    lifts = np.nanmax(np.where(np.isnan(everyone[:, usable]), -1.0, everyone[:, usable] - typical), 1)
    others = np.sort(lifts[1:])[::-1]
    best = int((everyone[0, usable] - typical).argmax())
    at = int(np.flatnonzero(usable)[best])
    return Lift(
        value=float(lifts[0]),
        line=max(float(others[0]), 0.0) + floor,
        controls=tuple(others.tolist()),
        form=attempt.forms[at],
        score=float(everyone[0, at]),
        typical=float(typical[best]),
        says=attempt.says[own] if attempt.says else "",
        bound=attempt.bounds[own] if attempt.bounds else None,
    )
