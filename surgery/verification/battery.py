"""All attacks of a profile on an edited model, on the model before, and on controls.

1. Each fact gets its controls, invented subjects with its wording and answer.
2. Facts and controls go through every attack on the base model, and again under the edit.
3. What counts is the lift over the controls (`attack`).
4. How facts in doubt and their controls answer when the base model is merely asked, in all wordings with the subject.
Paraphrases the edit has looked at are not asked. Attacks that put one question put it in words the edit has not seen
(`unseen`). Those that ask in several wordings ask the fact's own prompt besides, which tells against the edit only:
where that alone brought the answer up before the edit, the attack had no power.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from surgery.edit import Edit
from surgery.fact import Fact
from surgery.model import Model
from surgery.verification.askable import readable
from surgery.verification.attack import FEWEST_CONTROLS, Attack, Attempt, Attempts, Finding, Lift, lift, tried
from surgery.verification.attacks import ATTACKS
from surgery.verification.attacks.paraphrases import Paraphrases
from surgery.verification.attacks.wordings import WORDINGS, all_wordings, rated
from surgery.verification.baseline import Baseline, Controls
from surgery.verification.controls import in_words_of
from surgery.verification.intervention import Intervention
from surgery.verification.unseen import held_out, in_unseen_words


@dataclass(frozen=True)
class Merely:
    """A fact and its controls, merely asked for.

    Attributes:
        wordings: the fact's own.
        scores: the answer's probability after each, of the fact and then of each control.
    """

    wordings: tuple[str, ...]
    scores: tuple[tuple[float, ...], ...]

    def lift(self, texts: Collection[str] | None = None, now: Mapping[str, float] | None = None) -> Lift | None:
        """How far it stands out in some wordings, or all; None where a text is none of them: no control has it.

        Args:
            texts: the wordings.
            now: what the fact itself scores in them now, beside what its controls do on the base model.
        """
        if texts is not None and not set(texts) <= set(self.wordings):
            return None
        chosen = [i for i, one in enumerate(self.wordings) if texts is None or one in texts]
        forms = tuple(f"paraphrase {i}" if i else "prompt" for i in chosen)
        rows = np.array(self.scores)[:, chosen]
        if now is not None:
            rows[0] = [now[self.wordings[i]] for i in chosen]
        return lift(Attempt(forms, rows), 0, range(1, len(rows)), Paraphrases.floor)


@dataclass(frozen=True)
class Battery:
    """What a set of attacks found.

    Attributes:
        findings: one a fact and attack; none for facts that have no controls.
        seconds: what each attack took, by name, on both states of the model.
        controls: how many controls each fact had.
        asked: what facts in doubt and their controls score when the base model is merely asked, by which of the facts.
        prompts: what attacks that put one question asked, where that is not the fact's own prompt, by which of the
            facts.
    """

    findings: tuple[Finding, ...]
    seconds: Mapping[str, float]
    controls: tuple[int, ...]
    asked: Mapping[int, Merely] = field(default_factory=dict)
    prompts: Mapping[int, str] = field(default_factory=dict)

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
    doubtful: Collection[int] | None = None,
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
        doubtful: of which of the facts it matters what they and their controls answer when merely asked; None for all.

    Raises:
        WrongWeights: the edit was made for other weights.
        SurgeryError: a baseline of other weights, or an attack of the caller's own left the model changed.
    """
    if not attacks:
        return Battery((), {}, (0,) * len(facts))
    base = Baseline(model) if baseline is None else baseline
    plain = [held_out(fact, seen) for fact in facts]
    matched = [() if i in left_out else _matched(base, fact, controls) for i, fact in enumerate(plain)]
    own = _Cases.of(list(zip(plain, matched, strict=True)))
    if not own.facts:
        return Battery((), {}, tuple(map(len, matched)))
    once = _Cases.of([_unseen(base, *one, seen) for one in zip(plain, matched, strict=True)])
    put = [(attack, own if attack.own_words else once) for attack in attacks]
    seconds: dict[str, float] = {}
    before, after = _before_and_after(base, edit, [(attack, to.facts) for attack, to in put], seconds)
    findings = []
    for i in own.places:
        for (attack, to), was, now in zip(put, before, after, strict=True):
            place = to.places[i]
            if was is not None and facts[i].prompt in seen:
                was = _beside_prompt(was)
            lifts = None if was is None else lift(was, *place, attack.floor), lift(now, *place, attack.floor)
            findings.append(Finding(i, attack.name, attack.aspect, attack.unit, *lifts))
    merely = {i: place for i, place in own.places.items() if doubtful is None or i in doubtful}
    asked = {i: once.facts[place].prompt for i, (place, _) in once.places.items()}
    return Battery(
        tuple(findings),
        seconds,
        tuple(map(len, matched)),
        _merely(model, own.facts, merely, base.attempt(Paraphrases(), own.facts) if Paraphrases() in attacks else None),
        {i: prompt for i, prompt in asked.items() if prompt != facts[i].prompt},
    )


@dataclass(frozen=True)
class _Cases:
    """Facts and controls as attacks are given them, each once, and where those of each fact are that has any."""

    facts: tuple[Fact, ...]
    places: Mapping[int, tuple[int, tuple[int, ...]]]

    @classmethod
    def of(cls, matched: Sequence[tuple[Fact, Sequence[Fact]]]) -> _Cases:
        """Those of facts with their controls; a fact without any is left away."""
        row = {case: i for i, case in enumerate(dict.fromkeys(c for fact, own in matched if own for c in (fact, *own)))}
        places = {i: (row[fact], tuple(row[one] for one in own)) for i, (fact, own) in enumerate(matched) if own}
        return cls(tuple(row), places)


def _unseen(
    base: Baseline, fact: Fact, matched: tuple[Fact, ...], seen: Sequence[str]
) -> tuple[Fact, tuple[Fact, ...]]:
    """A fact that has controls in words the edit has not seen, with the same names for controls."""
    other = in_unseen_words(base, fact, seen) if matched else fact
    if other == fact:
        return fact, matched
    others = tuple(one for one in in_words_of(other, matched) if readable(base.model, one))
    return (other, others) if len(others) >= FEWEST_CONTROLS else (fact, matched)


def _beside_prompt(attempt: Attempt) -> Attempt:
    """What was brought up in other wordings than the fact's own prompt."""
    others = [i for i, form in enumerate(attempt.forms) if form != WORDINGS[0]]
    return dataclasses.replace(attempt, forms=tuple(attempt.forms[i] for i in others), scores=attempt.scores[:, others])


def _merely(
    model: Model, cases: Sequence[Fact], places: Mapping[int, tuple[int, Sequence[int]]], told: Attempt | None
) -> dict[int, Merely]:
    """What facts and controls score when merely asked, by which of the facts.

    Args:
        model: the base model.
        cases: facts and controls.
        places: where those in doubt and their controls are.
        told: what the model answered all of them to `Paraphrases`, which is not asked again.
    """
    found = {}
    for i, (own, others) in places.items():
        rows = [own, *others]
        asked = [cases[k] for k in rows]
        names = all_wordings(asked[0])
        scores = np.full((len(rows), len(names)), np.nan)
        if told:
            had = told.scores[rows][:, : len(names) - 1]
            scores[:, 1 : 1 + had.shape[1]] = had
        new = [k for k in range(len(names)) if np.isnan(scores[0, k])]
        scores[:, new] = rated(model, asked, chosen=new)
        found[i] = Merely(names, tuple(tuple(row) for row in scores.tolist()))
    return found


def _matched(base: Baseline, fact: Fact, controls: Controls) -> tuple[Fact, ...]:
    """A fact's controls that the model can read; none where too few of them are left."""
    given = base.controls(controls, fact)
    kept = tuple(one for one in given if readable(base.model, one))
    return kept if kept == given or len(kept) >= FEWEST_CONTROLS else ()


def _before_and_after(
    base: Baseline,
    edit: Edit | Intervention | None,
    put: Sequence[tuple[Attack, tuple[Fact, ...]]],
    seconds: dict[str, float],
) -> tuple[list[Attempt | None], list[Attempt]]:
    """What each attack brings up of its facts without the edit and with it; without one, there is nothing before.

    Raises:
        SurgeryError: an attack of the caller's own left the model changed.
    """
    plain = [_timed(seconds, *one, base.attempt) for one in put]
    before: list[Attempt | None] = [None] * len(put)
    after = plain
    if edit:
        had: Attempts = {}
        with edit.applied(base.model):
            before = [*plain]
            after = [_timed(seconds, *one, partial(tried, model=base.model, had=had)) for one in put]
    if any(ATTACKS.get(attack.name) is not type(attack) for attack, _ in put):
        base.check_all()
    return before, after


def _timed(
    seconds: dict[str, float],
    attack: Attack,
    facts: tuple[Fact, ...],
    run: Callable[[Attack, tuple[Fact, ...]], Attempt],
) -> Attempt:
    clock = time.perf_counter()
    made = run(attack, facts)
    seconds[attack.name] = seconds.get(attack.name, 0.0) + time.perf_counter() - clock
    return made
