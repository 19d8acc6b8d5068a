"""`surgery bench verify`: what each profile of verification costs, part by part and attack by attack."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from rich.table import Table

import edits
import surgery
from surgery.commands.options import Run
from surgery.verification.attack import PROFILES
from surgery.verification.verify import check_profile

DEFAULT_PROFILES = PROFILES[:2]


def bench_verify(run: Run, profiles: Sequence[str]) -> None:
    """Remove one shipped fact that the model knows by the default method, and judge it by each profile from scratch.

    Raises:
        SurgeryError: there is no such profile, or the model knows none of the shipped facts.
    """
    for name in profiles:
        check_profile(name)
    model = run.load()
    fact = edits.sample_facts(model, 1, seed=run.seed)[0].replace(new_target=None)
    # which is also what the first products of a process, slow for reasons of no profile, are spent on
    clock = time.perf_counter()
    edit = edits.Mass(objective=edits.Neutral(), seed=run.seed, progress=run.talks)(model, fact)
    seconds = time.perf_counter() - clock
    reports = {
        name: surgery.verify(model, edit, profile=name, seed=run.verify_seed)  # type: ignore[arg-type]  # checked above
        for name in dict.fromkeys(profiles)
    }
    record = {
        "fact": fact.label,
        "threads": torch.get_num_threads(),
        "edit": {"method": edit.method, "objective": edit.settings["objective"], "seconds": seconds},
        "profiles": {name: _costs(report) for name, report in reports.items()},
    }
    run.say(_table(record))
    run.say(f"computing the edit took {seconds:.1f} s; memory is the most the process had held by then")
    run.result(record)


def _costs(report: surgery.Report) -> dict[str, Any]:
    """What a report says of its costs, and what it found."""
    return {
        "seconds": report.seconds,
        "parts": dict(report.costs.seconds),
        "attacks": dict(report.battery.seconds),
        "tokens": report.costs.tokens,
        "peak_memory": report.costs.peak_memory,
        "verdict": report.verdicts[0].overall,
        "exit_code": report.exit_code,
    }


def _table(record: dict[str, Any]) -> Table:
    profiles = record["profiles"]
    table = Table("seconds", title=record["fact"])
    for name in profiles:
        table.add_column(name, justify="right")
    table.add_row("in all", *(f"{one['seconds']:.1f}" for one in profiles.values()))
    for kind, indent in (("parts", "  "), ("attacks", "    of attacks: ")):
        for name in dict.fromkeys(name for one in profiles.values() for name in one[kind]):
            cells = (one[kind].get(name) for one in profiles.values())
            table.add_row(f"{indent}{name}", *("" if cell is None else f"{cell:.2f}" for cell in cells))
    table.add_row("tokens", *(str(one["tokens"]) for one in profiles.values()))
    table.add_row("memory, GB", *(_gigabytes(one["peak_memory"]) for one in profiles.values()))
    table.add_row("verdict", *(one["verdict"] for one in profiles.values()))
    return table


def _gigabytes(memory: int | None) -> str:
    return "" if memory is None else f"{memory / 1e9:.2f}"
