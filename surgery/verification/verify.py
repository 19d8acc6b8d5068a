"""Measure a model before and after an edit and judge what it claims.

1. Probes are made from the facts (`probes`). A fact that the model cannot be asked about (`askable`) is inconclusive,
   with the reason, and keeps no other from being judged.
2. The base model rates them; the edit is applied for the length of a `with` block; the edited model rates them.
3. The same with next-token distributions on neutral text (`drift`).
4. Attacks of the profile are tried on the edited model, the base model and controls (`battery`).
5. Thresholds turn numbers into verdicts (`verdicts`).
6. What a profile has beside them judges nothing: side effects, free answers, depth and more (`beside`).

What is judged need not be an edit of weights (`intervention`); then nothing it holds back counts as removed. Without
one, the model at hand is judged as it is: there is nothing before, claims about change do not apply, and what it does
not say is not shown to be removed.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Literal

from surgery.edit import Edit
from surgery.errors import SurgeryError, check_choice
from surgery.fact import Fact
from surgery.model import Model
from surgery.packing import steady_products
from surgery.products import fast_products
from surgery.report import Report
from surgery.shipped import neutral_texts
from surgery.verification.askable import unaskable
from surgery.verification.attack import PROFILES, Attack, Profile
from surgery.verification.attacks import ATTACKS, attacks_of
from surgery.verification.baseline import Baseline, Controls
from surgery.verification.battery import Battery, attacked
from surgery.verification.beside import Asked, measured_beside
from surgery.verification.controls import never_known
from surgery.verification.costs import Meter
from surgery.verification.drift import Drift, drift, log_probs
from surgery.verification.harness import Tasks
from surgery.verification.intervention import Intervention
from surgery.verification.leak import leak_if_wanted
from surgery.verification.probes import Probe, measure, probes_of
from surgery.verification.unseen import hidden_of, prompts_seen
from surgery.verification.verdicts import Row, Thresholds, Verdict, exit_code, in_doubt, judge, judge_drift, unjudged

MOST_SEED = 2**32 - 1
"""What numpy's generators take."""
NEVER_SEEN = "whether the model ever knew what it does not say: no model before is at hand, so no removal is shown"
UNKEPT = "which prompts the edit was made from: its file keeps none, so all but the facts' own count as unseen"


def verify(
    model: Model,
    edit: Edit | Intervention | None,
    facts: Sequence[Fact] | Fact | None = None,
    *,
    profile: Profile = "quick",
    claim: Literal["removed", "rewritten"] | None = None,
    thresholds: Thresholds | None = None,
    texts: Sequence[str] | None = None,
    leak: bool = False,
    attacks: Sequence[Attack] | None = None,
    beside: bool | None = None,
    tasks: Tasks | None = None,
    controls: Controls = never_known,
    baseline: Baseline | None = None,
    seed: int = 0,
) -> Report:
    """Judge an edit, or a model as it is, by a facts file.

    Args:
        model: the base model; it is the same afterwards.
        edit: the edit to judge, or whatever else changes the model; None to judge the model at hand.
        facts: what to ask; None for the facts the edit was made from.
        profile: how much to try, "quick", "standard" or "full": its attacks among `surgery.verification.attacks`.
        claim: what should hold; None for the edit's own, or, without one, "rewritten" where facts name a new answer.
        thresholds: where the lines are drawn.
        texts: neutral text for the drift; None for the shipped sentences.
        leak: also try whether the subjects can be read off the edit's numbers (`delta_leak`), which the profile "full"
            does anyway where there are attacks; judges nothing.
        attacks: these instead of the profile's, with the seeds they have; none to leave it at probes and drift.
        beside: whether to measure what the profile has beside the verdicts, such as side effects
            (`surgery.verification.beside`); None: where there are attacks.
        tasks: tasks of lm-evaluation-harness to ask before and after the edit; they judge nothing.
        controls: gives each fact those it is told from; by default invented subjects with its wording and answer.
        baseline: what the base model answers, where many edits of it are judged; None to ask it anew.
        seed: of all that the profile's attacks and side effects draw.

    Raises:
        WrongWeights: the edit was made for other weights.
        SurgeryError: there are no facts or no texts, or a claim of rewriting has no new answer to look for; a leak of
            no edit, or tasks without one; a task cannot be loaded; a baseline of another model; no such seed.
    """
    check_profile(profile)
    check_seed(seed)
    if texts is not None and not texts:
        raise SurgeryError("there is no text to measure drift on; give at least one, or None for the shipped sentences")
    started = time.perf_counter()
    chosen = _facts(edit, facts)
    if leak and not isinstance(edit, Edit):
        raise SurgeryError("without an edit there is none to leak; give one, as --edit FILE")
    if tasks is not None:
        tasks.check(edit)
    claim = _claim(claim, edit, chosen)
    lines = Thresholds() if thresholds is None else thresholds
    seen = prompts_seen(edit, chosen)
    probes, left_out = probes_of(chosen, claim, seen)
    refused = unaskable(model, probes)
    probes = [probe for probe in probes if probe.fact not in refused]
    asked = [fact for i, fact in enumerate(chosen) if i not in refused]
    tried = attacks_of(profile, seed) if attacks is None else tuple(attacks)
    weights, meter = edit if isinstance(edit, Edit) else None, Meter()
    with model.read_once(), _products(model, edit, tried), meter.measuring(model):
        base = Baseline(model) if baseline is None else baseline
        base.check(model)
        rows, moved = _before_and_after(model, edit, probes, neutral_texts() if texts is None else texts, base, meter)
        with meter.part("attacks"):
            battery = attacked(
                model, edit, chosen, tried, controls, seen=seen, baseline=base, left_out=refused,
                doubtful=in_doubt(rows, lines) if claim == "removed" else (),
            )  # fmt: skip
        place = {i: n for n, i in enumerate(i for i in range(len(chosen)) if i not in refused)}
        own = [(dataclasses.replace(probe, fact=place[probe.fact]), was, now) for probe, was, now in rows]
        given = Asked(
            model=model, edit=weights, facts=asked, rows=own, claim=claim, profile=profile, lines=lines, drift=moved,
            controls=lambda _, fact: base.controls(controls, fact), baseline=base, tasks=tasks, seed=seed,
        )  # fmt: skip
        wanted = bool(asked) and weights is edit and (bool(tried) if beside is None else beside)
        looked = measured_beside(given, meter, wanted=wanted)
        looked = dataclasses.replace(looked, depth={list(place)[n]: depth for n, depth in looked.depth.items()})
        with meter.part("leak"):
            leaked, unread = leak_if_wanted(model, weights, asked, asked_for=leak, wanted=wanted and profile == "full")
    verdicts = _verdicts(chosen, refused, rows, battery, claim, lines, weights_kept=weights is not edit)
    overall = judge_drift(moved, lines)
    return Report(
        claim=claim,
        facts=chosen,
        model=model.source,
        base=edit.base if edit else model.fingerprint,
        edit=dict(edit.summary()) if edit else None,
        verdicts=verdicts,
        drift=moved,
        drift_claim=overall,
        rows=rows,
        neighbours_left_out=left_out,
        thresholds=lines,
        not_tested=(
            *looked.left_out,
            *unread,
            *_not_tested(edit, claim, chosen, refused, tried, battery),
        ),
        seconds=time.perf_counter() - started,
        exit_code=exit_code(verdicts, overall),
        leak=leaked,
        profile=profile,
        seed=seed,
        battery=battery,
        beside=looked,
        costs=meter.costs,
    )


def _products(
    model: Model, edit: Edit | Intervention | None, attacks: Sequence[Attack]
) -> AbstractContextManager[None]:
    """The fastest products there are; packed where nothing of the caller's own could write to weights unseen."""
    ours = edit is None or type(edit) is Edit
    ours = ours and all(ATTACKS.get(one.name) is type(one) for one in attacks)
    return steady_products(model.hf) if ours else fast_products(model.hf)


def _facts(edit: Edit | Intervention | None, facts: Sequence[Fact] | Fact | None) -> tuple[Fact, ...]:
    """What is asked: the facts given, else those of the edit.

    Raises:
        SurgeryError: there are none.
    """
    if isinstance(facts, Fact):
        return (facts,)
    chosen = tuple(facts if facts is not None else edit.facts if edit else ())
    if not chosen and (hidden := hidden_of(edit)) is not None:
        raise SurgeryError(
            f"the edit's file keeps its facts {hidden.keep}, so they cannot be asked; give them, as --facts FILE "
            f"or verify(model, edit, facts)"
        )
    if not chosen:
        raise SurgeryError("there is no fact to verify; give at least one")
    return chosen


def _verdicts(
    facts: Sequence[Fact],
    refused: Mapping[int, str],
    rows: Sequence[Row],
    battery: Battery,
    claim: Literal["removed", "rewritten"],
    lines: Thresholds,
    *,
    weights_kept: bool,
) -> tuple[Verdict, ...]:
    """One a fact; of those the model cannot be asked about, why."""
    own = [[row for row in rows if row[0].fact == i] for i in range(len(facts))]
    merely = {i: one.lift for i, one in battery.asked.items()}
    return tuple(
        unjudged(fact.label, claim, refused[i])
        if i in refused
        else judge(fact.label, own[i], claim, lines, battery.of(i), merely.get(i), weights_kept=weights_kept)
        for i, fact in enumerate(facts)
    )


def _before_and_after(
    model: Model,
    edit: Edit | Intervention | None,
    probes: Sequence[Probe],
    texts: Sequence[str],
    baseline: Baseline,
    meter: Meter,
) -> tuple[tuple[Row, ...], Drift | None]:
    """Each probe with its ratings before and after, and the drift on neutral text; without an edit only after."""
    if edit is None:
        with meter.part("probes"):
            return tuple((probe, None, now) for probe, now in zip(probes, measure(model, probes), strict=True)), None
    with meter.part("probes"):
        before = baseline.measure(probes)
    with meter.part("drift"):
        text_before = baseline.log_probs(texts)
    with edit.applied(model):
        with meter.part("probes"):
            after = measure(model, probes)
        with meter.part("drift"):
            moved = drift(model, texts, text_before, log_probs(model, texts))
    return tuple(zip(probes, before, after, strict=True)), moved


def _not_tested(
    edit: Edit | Intervention | None,
    claim: str,
    facts: Sequence[Fact],
    refused: Collection[int],
    tried: Sequence[Attack],
    battery: Battery,
) -> list[str]:
    """What a reader might think was tried, of attacks and held-out prompts."""
    names = {one.name for one in tried}
    left = [f"{name}: {one.about}" for name, one in ATTACKS.items() if name not in names]
    spared = [i for i, count in enumerate(battery.controls) if not count]
    bare = [i for i in spared if not facts[i].subject and i not in refused]
    if names and bare:
        left.append(f"attacks on {len(bare)} of {len(facts)} facts, which have no subject and so no controls")
    if names and (long := len([i for i in spared if i not in bare and i not in refused])):
        left.append(f"attacks on {long} of {len(facts)} facts, whose controls are longer than the model reads")
    if refused:
        left.append(f"{len(refused)} of {len(facts)} facts, which the model cannot be asked about")
    if edit is None and claim == "removed":
        left.append(NEVER_SEEN)
    if (hidden := hidden_of(edit)) and hidden.keep == "none":
        left.append(UNKEPT)
    return left


def check_profile(profile: str) -> None:
    """Whether there is such a profile, to be asked before anything that takes long.

    Raises:
        SurgeryError: there is not.
    """
    check_choice("verification profile", profile, PROFILES)


def check_seed(seed: int) -> None:
    """Whether numbers can be drawn by this seed, to be asked before anything that takes long.

    Raises:
        SurgeryError: they cannot.
    """
    if not 0 <= seed <= MOST_SEED:
        raise SurgeryError(f"a seed is a whole number from 0 to {MOST_SEED}, not {seed}")


def _claim(
    claim: Literal["removed", "rewritten"] | None, edit: Edit | Intervention | None, facts: Sequence[Fact]
) -> Literal["removed", "rewritten"]:
    if claim is None:
        named = all(fact.new_target is not None for fact in facts)
        claim = edit.claim if edit else "rewritten" if named else "removed"
    if claim not in ("removed", "rewritten"):
        raise SurgeryError(f"a claim is 'removed' or 'rewritten', not {claim!r}")
    if claim == "rewritten" and (missing := next((fact for fact in facts if fact.new_target is None), None)):
        raise SurgeryError(f"{missing.label!r} has no new_target, so it cannot be verified as rewritten; give one")
    return claim
