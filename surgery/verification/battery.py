"""All attacks of a profile on an edited model, on the model before, and on controls.

1. Each fact gets its controls, invented subjects with its wording and answer.
2. Facts and controls go through every attack on the base model, and again under the edit.
3. What counts is the lift over the controls (`attack`).
4. Without an edit, whether each fact stands out from its controls when it is merely asked for.
Paraphrases the edit has looked at are not asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from surgery.edit import Edit
from surgery.fact import Fact
from surgery.model import Model
from surgery.verification.askable import readable
from surgery.verification.attack import FEWEST_CONTROLS, Attack, Attempt, Finding, Lift, lift
from surgery.verification.attacks.paraphrases import Paraphrases
from surgery.verification.attacks.wordings import WORDINGS, rated
from surgery.verification.baseline import Baseline, Controls
from surgery.verification.intervention import Intervention


@dataclass(frozen=True)
class Battery:
    """What a set of attacks found.

    Attributes:
        findings: one a fact and attack; none for facts that have no controls.
        seconds: what each attack took, by name, on both states of the model.
        controls: how many controls each fact had.
        asked: without an edit, how far each fact that has controls stands out when asked, by which of the facts.
    """

    findings: tuple[Finding, ...]
    seconds: Mapping[str, float]
    controls: tuple[int, ...]
    asked: Mapping[int, Lift] = field(default_factory=dict)

    def of(self, fact: int) -> list[Finding]:
        """The findings about one fact."""
        return [one for one in self.findings if one.fact == fact]


def attacked(
    model: Model,
    edit: Edit | Intervention | None,
    facts: Sequence[Fact],
    attacks: Sequence[Attack],
    controls: Controls,
    *,
    seen: Sequence[str] = (),
    baseline: Baseline | None = None,
    left_out: Collection[int] = (),
) -> Battery:
    """Attack an edited model, or a model as it is.

    Args:
        model: the base model; it is the same afterwards.
        edit: the edit, or whatever else changes the model; None for the model at hand.
        facts: the facts looked for.
        attacks: how.
        controls: gives each fact its controls; none for a fact that can have none, which is then not attacked.
        seen: prompts the edit was made from; such paraphrases are not asked.
        baseline: what the base model answers, where the caller keeps it.
        left_out: which of the facts are not attacked, from 0.
    """
    if not attacks:
        return Battery((), {}, (0,) * len(facts))
    base = Baseline(model) if baseline is None else baseline
    known = set(seen)
    asked = [fact.replace(paraphrases=[text for text in fact.paraphrases if text not in known]) for fact in facts]
    matched = [() if i in left_out else _matched(base, fact, controls) for i, fact in enumerate(asked)]
    cases = tuple(dict.fromkeys(case for fact, own in zip(asked, matched, strict=True) for case in (fact, *own) if own))
    if not cases:
        return Battery((), {}, tuple(map(len, matched)))
    seconds: dict[str, float] = {}
    before = [_timed(seconds, one, base.attempt, one, cases) for one in attacks] if edit else [None] * len(attacks)
    with edit.applied(model) if edit else nullcontext():
        after = [
            _timed(seconds, one, one, model, cases) if edit else _timed(seconds, one, base.attempt, one, cases)
            for one in attacks
        ]
    row = {case: i for i, case in enumerate(cases)}
    places = {
        i: (row[fact], [row[one] for one in own])
        for i, (fact, own) in enumerate(zip(asked, matched, strict=True))
        if own
    }
    findings = []
    for i, place in places.items():
        for attack, was, now in zip(attacks, before, after, strict=True):
            lifts = None if was is None else lift(was, *place, attack.floor), lift(now, *place, attack.floor)
            findings.append(Finding(i, attack.name, attack.aspect, attack.unit, *lifts))
    merely = None if edit else Attempt(WORDINGS, rated(model, cases))
    told = {} if merely is None else {i: lift(merely, *place, Paraphrases.floor) for i, place in places.items()}
    return Battery(tuple(findings), seconds, tuple(map(len, matched)), told)


def _matched(base: Baseline, fact: Fact, controls: Controls) -> tuple[Fact, ...]:
    """A fact's controls that the model can read; none where too few of them are left."""
    given = base.controls(controls, fact)
    kept = tuple(one for one in given if readable(base.model, one))
    return kept if kept == given or len(kept) >= FEWEST_CONTROLS else ()


def _timed(seconds: dict[str, float], attack: Attack, run: Callable[..., Attempt], *given: Any) -> Attempt:
    clock = time.perf_counter()
    made = run(*given)
    seconds[attack.name] = seconds.get(attack.name, 0.0) + time.perf_counter() - clock
    return made
