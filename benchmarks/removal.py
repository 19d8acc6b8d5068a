"""What is left of 50 known facts after each way of removing them, by the probes of `verify`, and what it cost.

Facts are shipped ones whose answer is the model's likeliest, drawn by a seed. Each is removed alone, by MEMIT and by a
rank-one edit, and all of them in one batch and one after the other. Prints a table and holds no assertions; rows are
kept in the folder, so a run that was stopped goes on: `python benchmarks/removal.py --out removal`.
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
from surgery import Edit, Fact, Model, load, verify
from surgery.store import kept
from surgery.verification import Baseline

DEEP = (10, 15, 20, 25)
OBJECTIVES: dict[str, edits.Objective] = {
    "neutral": edits.Neutral(),
    "suppress": edits.Suppress(),
    "suppress four layers": edits.Suppress(layers=DEEP),
    "maximum entropy": edits.MaximumEntropy(),
    "maximum entropy four layers": edits.MaximumEntropy(layers=DEEP),
    "refusal": edits.Refuse(),
}
WAYS: dict[str, tuple[type[edits.ClosedForm], bool]] = {
    "memit alone": (edits.Mass, True),
    "rank-one alone": (edits.RankOne, True),
    "memit in a batch": (edits.Mass, False),
    "memit in sequence": (edits.MassSequence, False),
}
"""Which method, and whether each fact has an edit of its own."""
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


def judged(model: Model, baseline: Baseline, method: edits.Method, facts: Sequence[Fact]) -> dict[str, Any]:
    """Some facts removed by one edit of the model as it is, and what the report says of it."""
    clock = time.perf_counter()
    edit: Edit = method(model, facts)
    seconds = time.perf_counter() - clock
    report = verify(model, edit, attacks=(), baseline=baseline)
    assert report.drift is not None
    asked = {role: [now.target.probability for one, _, now in report.rows if one.role == role] for role in ROLES}
    moves = [
        now.target.probability - was.target.probability
        for probe, was, now in report.rows
        if probe.role == "neighbour" and was
    ]
    return {
        **asked,
        "moved": [abs(one) > report.thresholds.neighbour_shift for one in moves],
        "removed": [verdict["removed"].outcome == "holds" for verdict in report.verdicts],
        "verdicts": [verdict.overall for verdict in report.verdicts],
        "says": [now.says for probe, _, now in report.rows if probe.role == "prompt"],
        "drift": report.drift.divergence,
        "perplexity": report.drift.perplexity[1] / report.drift.perplexity[0],
        "change": relative(edit, norms(model)),
        "seconds": seconds,
    }


def line(edited: Sequence[dict[str, Any]]) -> list[str]:
    """Means and counts over some edits, in words."""
    every = {name: [one for made in edited for one in made[name]] for name in (*ROLES, "moved", "removed", "verdicts")}
    asked = [every[role] for role in ROLES]
    numbers = [*map(statistics.fmean, asked), max(map(max, asked))]
    verdicts = ", ".join(f"{count} {what}" for what, count in sorted(Counter(every["verdicts"]).items()))
    return [
        *(f"{one:.4f}" for one in numbers),
        f"{sum(every['removed'])}/{len(every['removed'])}",
        f"{statistics.fmean(every['moved']):.1%}",
        *(f"{statistics.fmean(made[name] for made in edited):.3f}" for name in ("drift", "perplexity", "change")),
        f"{sum(made['seconds'] for made in edited) / len(every['removed']):.2f}",
        verdicts,
        repr(edited[0]["says"][0]),
    ]


def main() -> None:
    """Every objective, alone and in a batch, after a row that shows the facts as they are."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--facts", type=int, default=50, help="how many")
    options.add_argument("--seed", type=int, default=0, help="of the facts drawn")
    options.add_argument("--out", type=Path, default=Path("removal"), help="folder that keeps each row's numbers")
    options.add_argument("--objectives", default=",".join(OBJECTIVES), help="which, by name")
    options.add_argument("--ways", default=",".join(WAYS), help="which, by name")
    given = options.parse_args()
    model, console = load(), Console(width=170, soft_wrap=True)
    baseline = Baseline(model)
    facts = [fact.replace(new_target=None) for fact in edits.sample_facts(model, given.facts, seed=given.seed)]
    table = Table(*COLUMNS, title=f"Removing {len(facts)} facts")
    asis = verify(model, None, facts, claim="removed", attacks=())
    known = [(now.target.probability, probe.role) for probe, _, now in asis.rows]
    before = [statistics.fmean(p for p, role in known if role == one) for one in ROLES]
    table.add_row("no edit", "", *(f"{one:.4f}" for one in before))
    for name in given.objectives.split(","):
        for way in given.ways.split(","):
            method, alone = WAYS[way]
            made = method(objective=OBJECTIVES[name], progress=False)
            parts = [[fact] for fact in facts] if alone else [facts]
            edited = []
            for part in parts:
                key = f"removal 2 {model.fingerprint} {made} {part}"
                edited.append(kept(given.out, key, functools.partial(judged, model, baseline, made, part)))
            table.add_row(name, way, *line(edited))
            console.print(f"{name}, {way}: {', '.join(line(edited))}")
    console.print(table)


if __name__ == "__main__":
    main()
