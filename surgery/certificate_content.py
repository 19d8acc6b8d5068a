"""What a certificate says of a verification: outcomes and numbers, no words of facts, prompts or answers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from surgery.edit import Edit
from surgery.model import Model
from surgery.numbers import Interval
from surgery.privacy import redact

if TYPE_CHECKING:
    from surgery.report import Report
    from surgery.verification.attack import Finding, Lift
    from surgery.verification.leak import Leak
    from surgery.verification.probes import Measured, Probe, Rating
    from surgery.verification.task_effect import TaskEffects
    from surgery.verification.verdicts import Claim

DIGITS = 6
"""Significant digits of numbers: more than any verdict needs, and the same in every writing of JSON."""


def content_of(report: Report, model: Model, edit: Edit | None, digests: Sequence[str]) -> dict[str, Any]:
    """Everything a report says that tells no fact, as JSON values.

    Args:
        report: what was found.
        model: what it was found on; the same afterwards.
        edit: the edit judged.
        digests: the facts' names, in the report's order; they are put in an order of their own.
    """
    from surgery import __version__  # which imports this

    facts = [{"digest": digest, **_fact(report, i)} for i, digest in enumerate(digests)]
    return {
        "tool": f"knowledge-surgery {__version__}",
        "model": {
            "architecture": type(model.hf).__name__,
            "parameters": sum(one.numel() for one in model.hf.parameters()),
            "dtype": str(model.dtype).removeprefix("torch."),
        },
        "weights": _weights(model, edit),
        "edit": None if edit is None else _edit(edit),
        "claim": report.claim,
        "profile": report.profile,
        "seed": report.seed,
        "exit_code": report.exit_code,
        "meaning": report.meaning,
        "facts": sorted(facts, key=lambda one: str(one["digest"])),
        "drift": {**_claim(report.drift_claim), **_short(dataclasses.asdict(report.drift) if report.drift else {})},
        "beside": _beside(report),
        "thresholds": dataclasses.asdict(report.thresholds),
        "not_tested": list(report.not_tested),
    }


def _weights(model: Model, edit: Edit | None) -> dict[str, str | None]:
    if edit is None:
        return {"before": None, "after": model.fingerprint}
    with edit.applied(model):
        return {"before": edit.base, "after": model.fingerprint}


def _edit(edit: Edit) -> dict[str, Any]:
    # the settings without any word that the facts hold too
    plain = redact(edit, "none").summary()
    changes = [{"module": one.module, "rank": one.rank, "norm": _short(one.norm)} for one in edit.deltas]
    kept = {name: plain[name] for name in ("method", "claim", "facts")}
    return {"digest": edit.digest, "changes": changes, "settings": _short(plain["settings"]), **kept}


def _fact(report: Report, i: int) -> dict[str, Any]:
    verdict = report.verdicts[i]
    return {
        "overall": verdict.overall,
        "depth": verdict.depth,
        "claims": {claim.name: _claim(claim) for claim in verdict.claims},
        "prompts": [_prompt(*row) for row in report.rows if row[0].fact == i],
        "attacks": [_finding(one) for one in report.battery.of(i)],
        "erased": _short(report.beside.depth[i].score) if i in report.beside.depth else None,
    }


def _beside(report: Report) -> dict[str, Any]:
    # not the worst cases, which are prompts
    found = report.beside.effects.effects if report.beside.effects else ()
    effects = [{"axis": one.axis, "outcome": one.outcome, "over": one.over, **_interval(one.change)} for one in found]
    bins = [{"kind": one.kind, "kept": _short(one.kept), "share": _short(one.share)} for one in report.beside.bins]
    tasks = {"tasks": _tasks(report.beside.tasks)} if report.beside.tasks else {}
    leak = {"leak": _leak(report.leak)} if report.leak else {}
    return {"effects": effects, "bins": bins, **tasks, **leak}


def _tasks(tasks: TaskEffects) -> dict[str, Any]:
    scored = [
        {
            **{name: getattr(one, name) for name in ("task", "metric", "before", "after", "documents")},
            "change": None if one.change is None else _interval(one.change),
        }
        for one in tasks.effects
    ]
    return {"harness": tasks.version, "seed": tasks.seed, "limit": tasks.limit, "scored": _short(scored)}


def _leak(leak: Leak) -> dict[str, Any]:
    readings = [{"rank": one.rank, "response": one.score, "highest other": one.controls[0]} for one in leak.readings]
    ranked: list[Any] = _short(sorted(readings, key=lambda one: (one["rank"], -one["response"])))
    return {"names": leak.names, "first": leak.first, "readings": ranked}


def _interval(one: Interval) -> dict[str, Any]:
    found: dict[str, Any] = _short(dataclasses.asdict(one))
    return found


def _claim(claim: Claim) -> dict[str, Any]:
    return {"outcome": claim.outcome, "cases": claim.cases}


def _prompt(probe: Probe, was: Measured | None, now: Measured) -> dict[str, Any]:
    states = {"before": was, "after": now} if was else {"after": now}
    ratings = {f"{name}{end}": getattr(one, f) for name, one in states.items() for end, f in _ANSWERS.items()}
    return {
        "role": probe.role,
        "held_out": probe.held_out,
        **{name: _rating(one) for name, one in ratings.items() if one is not None},
    }


_ANSWERS = {"": "target", "_new": "new_target"}


def _rating(rating: Rating) -> dict[str, Any]:
    return {"probability": _short(rating.probability), "rank": rating.rank}


def _finding(one: Finding) -> dict[str, Any]:
    # not the form, which may be a wording
    return {
        "attack": one.attack,
        "aspect": one.aspect,
        "outcome": one.outcome,
        "unit": one.unit,
        "before": None if one.before is None else _lift(one.before),
        "after": _lift(one.after),
    }


def _lift(lift: Lift) -> dict[str, Any]:
    numbers = {"lift": lift.value, "line": lift.line, "score": lift.score, "controls": lift.controls}
    short: dict[str, Any] = _short(numbers if lift.bound is None else {**numbers, "bound": lift.bound})
    return short


def _short(value: Any) -> Any:
    """JSON values with numbers of few digits, and null for those that are not finite."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _short(one) for name, one in value.items()}
    return [_short(one) for one in value] if isinstance(value, (list, tuple)) else value
