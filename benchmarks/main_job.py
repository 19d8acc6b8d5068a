"""Speed and quality of the main job on the default model: trace, rewrite, remove, verify.

Prints tables and holds no assertions. Facts are drawn from the shipped ones, by a seed; a rewrite's new answer is
another answer of the same relation. Run alone on the machine, since timings disturb each other: `make bench`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterable

import numpy as np
from rich.console import Console
from rich.table import Table

import edits
import locate
import surgery
from surgery.shipped import relations


def main() -> None:
    """Load the default model and print a table each for tracing, rewriting and removing."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--facts", type=int, default=10, help="how many facts, of as many relations as there are")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--no-trace", action="store_true", help="leave the tracing times away")
    given = options.parse_args()
    console = Console(width=120)
    started = time.perf_counter()
    model = surgery.load()
    console.print(f"load: {time.perf_counter() - started:.1f} s, {model.source}, {model.dtype}")
    facts = drawn(given.facts, given.seed)
    if not given.no_trace:
        console.print(tracing(model, surgery.example_facts("landmark in city")[0]))
    console.print(rewriting(model, facts))
    console.print(removing(model, facts))


def drawn(count: int, seed: int) -> list[surgery.Fact]:
    """Facts of different relations, each with another answer of its relation as the new one."""
    random = np.random.RandomState(seed)
    names = relations()
    facts = []
    for i in range(count):
        of_relation = surgery.example_facts(names[i % len(names)])
        fact = of_relation[random.randint(len(of_relation))]
        others = sorted({one.target for one in of_relation} - {fact.target})
        facts.append(fact.replace(new_target=others[random.randint(len(others))]))
    return facts


def tracing(model: surgery.Model, fact: surgery.Fact) -> Table:
    """One fact traced for all kinds of site in the same passes: where each kind restores the answer best."""
    traces = locate.causal_traces(model, fact)
    cost = traces[0].cost
    table = Table("kind", "best", "at", "in the subject", title=f"Causal tracing: {fact.prompt}")
    for trace in traces:
        table.add_row(trace.kind, f"{np.nanmax(trace.scores):.3f}", str(trace.peak()), str(trace.peak(trace.subject)))
    table.caption = f"{cost.seconds:.1f} s for {cost.kinds} kinds, {cost.passes} passes"
    return table


def measured(
    model: surgery.Model, facts: list[surgery.Fact], objective: edits.Objective
) -> tuple[list[surgery.Report], list[float], list[float]]:
    """Reports of one edit a fact, with the seconds each edit and each verification took."""
    reports, editing, verifying = [], [], []
    for fact in facts:
        clock = time.perf_counter()
        edit = edits.RankOne(objective=objective)(model, fact)
        editing.append(time.perf_counter() - clock)
        reports.append(surgery.verify(model, edit))
        verifying.append(reports[-1].seconds)
    return reports, editing, verifying


def rewriting(model: surgery.Model, facts: list[surgery.Fact]) -> Table:
    """Each fact's answer replaced by another of its relation, verified, and taken back: a row a fact."""
    reports, editing, verifying = measured(model, facts, edits.Replace())
    table = Table(title=f"Rewriting {len(facts)} facts, one at a time")
    for name in ("fact", "new", "p prompt", "p held out", "neighbours moved", "drift", "verdict", "s", "s verify"):
        table.add_column(name, justify="left" if name in ("fact", "new", "verdict") else "right", overflow="fold")
    for fact, report, seconds, checking in zip(facts, reports, editing, verifying, strict=True):
        scores = report.scores
        table.add_row(
            f"{fact.prompt} {fact.target}",
            fact.new_target,
            f"{scores['prompt new']['after']:.3f}",
            f"{scores['paraphrase new']['after']:.3f}",
            neighbours(report),
            f"{report.drift.divergence:.4f}" if report.drift else "-",
            report.meaning,
            f"{seconds:.1f}",
            f"{checking:.1f}",
        )
    held = sum(report.ok for report in reports)
    table.caption = f"{held} of {len(facts)} hold; median {statistics.median(editing):.1f} s an edit"
    return table


def removing(model: surgery.Model, facts: list[surgery.Fact]) -> Table:
    """Each fact removed alone, by each objective that removes: a row an objective, means over the facts."""
    table = Table(title=f"Removing {len(facts)} facts, one at a time: means over facts")
    for name in ("objective", "p prompt", "p held out", "worst p", "neighbours moved", "drift", "hold", "s", "says"):
        table.add_column(name, justify="left" if name in ("objective", "says") else "right", overflow="fold")
    plain = [fact.replace(new_target=None) for fact in facts]
    for name, kind in edits.OBJECTIVES.items():
        if kind.claim != "removed":
            continue
        reports, editing, _ = measured(model, plain, edits.objective_named(name))
        worst = [max(now.target.probability for probe, _, now in r.rows if probe.role != "neighbour") for r in reports]
        says = next(now.says for probe, _, now in reports[0].rows if probe.role == "prompt")
        table.add_row(
            name,
            mean(float(report.scores["prompt"]["after"] or 0) for report in reports),
            mean(float(report.scores["paraphrase"]["after"] or 0) for report in reports),
            f"{max(worst):.4f}",
            f"{sum(moved(r)[0] for r in reports)} of {sum(moved(r)[1] for r in reports)}",
            mean(report.drift.divergence for report in reports if report.drift),
            f"{sum(report.ok for report in reports)}/{len(reports)}",
            f"{statistics.median(editing):.1f}",
            repr(says),
        )
    return table


def moved(report: surgery.Report) -> tuple[int, int]:
    """How many neighbours moved by more than the threshold, of how many."""
    shifts = [
        abs(now.target.probability - was.target.probability)
        for probe, was, now in report.rows
        if probe.role == "neighbour" and was
    ]
    return sum(shift > report.thresholds.neighbour_shift for shift in shifts), len(shifts)


def neighbours(report: surgery.Report) -> str:
    return "{} of {}".format(*moved(report))


def mean(values: Iterable[float]) -> str:
    return f"{statistics.fmean(values):.4f}"


if __name__ == "__main__":
    main()
