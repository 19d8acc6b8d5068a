"""All locators on the default model: seconds, agreement with exact tracing, recall of planted neurons, zeroing.

Prints tables and holds no assertions. Run alone on the machine: `python benchmarks/locators.py`. How fast the tracer is
against the plain one, `surgery bench locate` measures.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import locate
import surgery
from locate import AttributionPatching, LogProbability, Probability, RelevancePatching
from locate.selftest import selftest

METHODS = (
    locate.GradientActivation(),
    locate.GradientActivation(positions="all"),
    locate.LogProbIncrease(),
    locate.IntegratedGradients(),
    locate.HardConcrete(),
)


def main() -> None:
    """Run all tables."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--planted", type=int, default=3, help="invented facts to plant, 0 for none")
    options.add_argument("--seed", type=int, default=1)
    given = options.parse_args()
    console = Console(width=130)
    model = surgery.load()
    landmarks = {fact.subject: fact for fact in surgery.example_facts("landmark in city")}
    eiffel = landmarks["The Eiffel Tower"]
    capital = next(fact for fact in surgery.example_facts() if fact.subject == "Japan" and fact.target == "Tokyo")
    console.print(views(model, eiffel))
    console.print(screens(model, [eiffel, landmarks["The Colosseum"], capital]))
    console.print(zeroing(model, eiffel))
    if given.planted:
        console.print(selftest(model, facts=given.planted, seed=given.seed).table())


def views(model: surgery.Model, fact: surgery.Fact) -> Table:
    """Seconds of everything that reads one fact once."""
    table = Table("view", "seconds", "what it says", title=fact.prompt)

    def row(name: str, ask: Callable[[], Any], say: Callable[[Any], str]) -> None:
        ask()
        clock = time.perf_counter()
        found = ask()
        table.add_row(name, f"{time.perf_counter() - clock:.2f}", say(found))

    row("logit lens", lambda: locate.logit_lens(model, fact), lambda one: f"settles at layer {one.settles()}")
    for by in ("layer", "head"):
        row(
            f"logit attribution by {by}",
            lambda by=by: locate.direct_logit_attribution(model, fact, by=by),  # type: ignore[misc]
            lambda one: f"{', '.join(f'{part} {value:+.2f}' for part, value in one.top(3))}; gap {one.gap:.0e}",
        )
    row(
        "attention knockout",
        lambda: locate.attention_knockout(model, fact),
        lambda one: ", ".join(f"{source}: strongest at layer {one.strongest(source)}" for source in one.sources),
    )
    return table


def screens(model: surgery.Model, facts: list[surgery.Fact]) -> Table:
    """Gradient screens against exact traces of one layer at a time, and the top of a head screen against exact runs."""
    table = Table(
        "fact", "unit", "metric", "screen", "s", "exact s", "agreement", title="Screens against exact effects"
    )
    for fact in facts:
        for metric in (LogProbability(), Probability()):
            exact = locate.causal_trace(model, fact, kind="mlp", window=1, metric=metric, progress=False)
            for method in (AttributionPatching(), RelevancePatching()):
                found = locate.screen(model, fact, method=method, unit="mlp", metric=metric)
                told = str(locate.agreement(found, exact))
                seconds = f"{found.seconds:.1f}", f"{exact.cost.seconds:.1f}"
                table.add_row(fact.label, "mlp", metric.name, str(method), *seconds, told)
        for method in (AttributionPatching(), RelevancePatching()):
            found = locate.screen(model, fact, method=method, unit="head")
            checked = found.verify(model, 40)
            seconds = f"{found.seconds:.1f}", f"{checked.seconds:.1f}"
            table.add_row(fact.label, "head, top 40", found.metric.name, str(method), *seconds, str(checked.agreement))
    return table


def zeroing(model: surgery.Model, fact: surgery.Fact) -> Table:
    """What zeroing each method's ten neurons does to the fact, against random sets and neighbours."""
    title = f"Ten neurons zeroed: p of {fact.label}"
    table = Table("method", "s", "before", "after", "random sets", "neighbours before", "after", title=title)
    for method in METHODS:
        found = locate.attribute_neurons(model, fact, method=method, top=10, progress=False)
        one = found.ablation
        neighbours = float(np.mean(one.neighbours_before)), float(np.mean(one.neighbours_after))
        table.add_row(
            found.method,
            f"{found.seconds:.1f}",
            f"{one.before:.3f}",
            f"{one.after:.3f}",
            f"{np.mean(one.random):.3f} ± {one.random_error or 0:.3f}",
            *(f"{value:.3f}" for value in neighbours),
        )
    return table


if __name__ == "__main__":
    main()
