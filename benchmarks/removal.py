"""What is left of 50 known facts after each way of removing them, by the probes of `verify`, and what it cost.

Facts are shipped ones whose answer is the model's likeliest, drawn by a seed. Each is removed alone by a rank-one edit,
and all of them in one batch by MEMIT. Prints a table and holds no assertions; rows are kept in the folder, so a run
that was stopped goes on: `python benchmarks/removal.py --out removal`.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from editing import norms, relative
from rich.console import Console
from rich.table import Table

import edits
from surgery import Edit, Fact, Model, Report, load, verify
from surgery.shipped import neutral_texts
from surgery.store import kept
from surgery.verification.drift import perplexity

DEEP = (10, 15, 20, 25)
OBJECTIVES: dict[str, edits.Objective] = {
    "neutral": edits.Neutral(),
    "suppress": edits.Suppress(),
    "suppress, four layers": edits.Suppress(layers=DEEP),
    "maximum entropy": edits.MaximumEntropy(),
    "maximum entropy, four layers": edits.MaximumEntropy(layers=DEEP),
    "refusal": edits.Refuse(),
}
ROLES = ("prompt", "paraphrase")
COLUMNS = (
    "objective",
    "method",
    "p prompt",
    "p held out",
    "worst",
    "removed",
    "neighbours moved",
    "drift",
    "perplexity",
    "|dW|/|W|",
    "s a fact",
    "verdicts",
    "says",
)


def judged(model: Model, method: edits.Method, parts: Sequence[Sequence[Fact]]) -> dict[str, Any]:
    """Each part of the facts removed by one edit on the model as it is: what the reports say, over all facts."""
    reports, seconds, changes, ratios = [], 0.0, [], []
    sizes, plain = norms(model), perplexity(model, neutral_texts())
    for facts in parts:
        clock = time.perf_counter()
        edit: Edit = method(model, facts)
        seconds += time.perf_counter() - clock
        reports.append(verify(model, edit))
        changes.append(relative(edit, sizes))
        with edit.applied(model):
            ratios.append(perplexity(model, neutral_texts()) / plain)
    return {
        **probed(reports),
        "perplexity": statistics.fmean(ratios),
        "change": statistics.fmean(changes),
        "seconds": seconds / sum(map(len, parts)),
    }


def probed(reports: Sequence[Report]) -> dict[str, Any]:
    """Means and counts over all probes of some reports."""
    rows = [row for report in reports for row in report.rows]
    asked = {role: [now.target.probability for one, _, now in rows if one.role == role] for role in ROLES}
    shift = reports[0].thresholds.neighbour_shift
    moves = [
        abs(now.target.probability - was.target.probability) > shift
        for probe, was, now in rows
        if probe.role == "neighbour" and was
    ]
    verdicts = [verdict for report in reports for verdict in report.verdicts]
    return {
        "prompt": statistics.fmean(asked["prompt"]),
        "paraphrase": statistics.fmean(asked["paraphrase"]),
        "worst": max(asked["prompt"] + asked["paraphrase"]),
        "removed": sum(verdict["removed"].outcome == "holds" for verdict in verdicts),
        "facts": len(verdicts),
        "moved": sum(moves) / len(moves),
        "drift": statistics.fmean(report.drift.divergence for report in reports if report.drift),
        "verdicts": dict(Counter(verdict.overall for verdict in verdicts)),
        "says": next(now.says for probe, _, now in rows if probe.role == "prompt"),
    }


def main() -> None:
    """Every objective, alone and in a batch, after a row that shows the facts as they are."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--facts", type=int, default=50, help="how many")
    options.add_argument("--seed", type=int, default=0, help="of the facts drawn")
    options.add_argument("--out", type=Path, default=Path("removal"), help="folder that keeps each row's numbers")
    given = options.parse_args()
    model, console = load(), Console(width=170, soft_wrap=True)
    facts = [fact.replace(new_target=None) for fact in edits.sample_facts(model, given.facts, seed=given.seed)]
    table = Table(*COLUMNS, title=f"Removing {len(facts)} facts")
    known = [(now.target.probability, probe.role) for probe, _, now in verify(model, None, facts, claim="removed").rows]
    before = [statistics.fmean(p for p, role in known if role == one) for one in ROLES]
    table.add_row("no edit", "", *(f"{one:.4f}" for one in before))
    for name, objective in OBJECTIVES.items():
        for method, parts in ((edits.RankOne, [[fact] for fact in facts]), (edits.Mass, [facts])):
            made = method(objective=objective, progress=False)
            key = f"removal 1 {model.fingerprint} {made} {parts}"
            row = kept(given.out, key, functools.partial(judged, model, made, parts))
            numbers = (f"{row[one]:.4f}" for one in ("prompt", "paraphrase", "worst"))
            rest = (f"{row[one]:.3f}" for one in ("drift", "perplexity", "change"))
            verdicts = ", ".join(f"{count} {what}" for what, count in sorted(row["verdicts"].items()))
            counts = f"{row['removed']}/{row['facts']}", f"{row['moved']:.1%}"
            table.add_row(
                name, made.name, *numbers, *counts, *rest, f"{row['seconds']:.2f}", verdicts, repr(row["says"])
            )
            console.print(f"{name}, {made.name}: {row}")
    console.print(table)


if __name__ == "__main__":
    main()
