"""Every editing method on CounterFact records: one fact at a time, all in one batch, one after the other.

Prints one table and holds no assertions. Facts are the first of the file that the model prefers the true answer of;
scores are CounterFact's (`scoring.py`), of batches and sequences on the final model. Each row's numbers are kept in the
folder, so a run that was stopped goes on:

    python benchmarks/editing.py --facts counterfact.json --out editing
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from rich.console import Console
from rich.table import Table
from scoring import COLUMNS, preferring, score, summary

import edits
from edits.keys import sample_contexts
from edits.values import Value
from surgery import Edit, Fact, Model, SurgeryError, load
from surgery.shipped import neutral_texts
from surgery.store import kept
from surgery.verification.drift import perplexity

# as published, in the plain way: 20 contexts and the bare prompt for ROME, 5 for MEMIT with its absolute lambda; the
# step in proportion to this model's values, for the published 0.5 suits those of others. MEMIT measures a shift by the
# layer's state, which is 3.9 times as long here as the mlp's output that a search takes for its unit: 0.75 of it are
# 2.9, and a decay of 0.5 is 0.033
ROME = edits.ValueSearch(steps=20, step=1 / 60, rule="adam", decay=0.5, method="plain")
MEMIT = edits.ValueSearch(steps=25, step=1 / 60, rule="adam", decay=0.033, clamp=2.9, method="plain")
PUBLISHED = {
    "ROME as published": edits.RankOne(count=20, length=10, key="mean", names=0.0, search=ROME, progress=False),
    "MEMIT as published": edits.Mass(
        layers=5,
        count=5,
        length=10,
        key="mean",
        names=0.0,
        passes=1,
        search=MEMIT,
        solver=edits.LeastSquares(weight=15_000.0),
        progress=False,
    ),
}
PROTOCOLS = ("single", "batch", "sequence")


@dataclass(frozen=True)
class Outcome:
    """What a method did to some facts.

    Attributes:
        scores: of each fact, in the order of `scoring.COLUMNS`.
        seconds: all edits took.
        change: largest |dW| / |W| of any weight; of single edits, the mean.
        perplexity: of neutral text, in units of the unedited model's; of single edits, the mean.
        note: what was refused, or where it stopped.
    """

    scores: Float[np.ndarray, "facts columns"]
    seconds: float
    change: float
    perplexity: float
    note: str = ""

    def as_record(self) -> dict[str, Any]:
        """JSON values."""
        return {**dataclasses.asdict(self), "scores": self.scores.tolist()}


class Values:
    """Values found once for all closed forms that look for them in the same way, with the seconds that took."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._found: dict[str, tuple[tuple[Value, ...], float]] = {}

    def of(self, method: edits.ClosedForm, facts: Sequence[Fact]) -> tuple[tuple[Value, ...], float]:
        """The facts' values on the model as it came, and how long the search took."""
        site = method.sites(self._model)[-1]
        settings = (method.search, method.objective, method.contexts, method.count, method.length, method.seed)
        key = f"{site} {settings} {method.key} {method.scope} {method.names} {facts}"
        if key not in self._found:
            clock = time.perf_counter()
            values = method.find(self._model, facts)
            self._found[key] = values, time.perf_counter() - clock
        return self._found[key]


def one_batch(model: Model, method: edits.Method, facts: Sequence[Fact], values: Values) -> tuple[Edit, float]:
    """The edit of some facts at once and the seconds it takes; closed forms of one pass share the search for values."""
    if not isinstance(method, edits.ClosedForm) or method.passes > 1:
        return timed(method, model, facts)
    found, before = values.of(method, facts)
    edit, seconds = timed(lambda model, _: method.solve(model, found), model, facts)
    return edit, before + seconds


def single(model: Model, method: edits.Method, facts: Sequence[Fact], _: Values) -> Outcome:
    """Each fact edited on the model as it came, and scored there."""
    scores, seconds, changes, ratios, refused = [], 0.0, [], [], []
    texts, sizes = neutral_texts(), norms(model)
    plain = perplexity(model, texts)
    for fact in facts:
        try:
            edit, took = timed(method, model, [fact])
        except SurgeryError as error:
            refused.append(str(error))
            scores.append(score(model, [fact])[0])
            continue
        seconds += took
        with edit.applied(model):
            scores.append(score(model, [fact])[0])
            logged = edit.log[-1].get("perplexity_ratio") if edit.log else None
            ratios.append(perplexity(model, texts) / plain if logged is None else logged)
        changes.append(relative(edit, sizes))
    note = f"{len(refused)} refused: {refused[0]}" if refused else ""
    return Outcome(np.array(scores), seconds, mean(changes), mean(ratios), note)


def batch(model: Model, method: edits.Method, facts: Sequence[Fact], values: Values) -> Outcome:
    """All facts in one call and one batch."""
    return ended(model, facts, lambda: one_batch(model, method, facts, values))


def sequence(model: Model, method: edits.Method, facts: Sequence[Fact], values: Values) -> Outcome:
    """One fact after the other, each on the weights that those before it left."""
    if isinstance(method, (edits.ClosedForm, edits.UltraEdit)):
        each = dataclasses.replace(method, batch=1)
        return ended(model, facts, lambda: timed(each, model, facts))
    note, seconds, sizes, limits = "", 0.0, norms(model), edits.Limits()
    before = {name: weight.detach().clone() for name, weight in model.hf.named_parameters()}
    plain, start = perplexity(model, neutral_texts()), limits.measure(model)

    def moved() -> float:
        own = [(name, weight) for name, weight in model.hf.named_parameters() if name in sizes]
        return max(float((weight.detach() - before[name]).norm()) / sizes[name] for name, weight in own)

    with ExitStack() as stack:
        for done, fact in enumerate(facts):
            try:
                edit, took = timed(method, model, [fact])
            except SurgeryError as error:
                note = note or f"after {done} facts: {error}"
                continue
            seconds += took
            undo = edit.apply(model)
            # each edit keeps its own limits; so do all of them together
            if (passed := limits.passed(moved(), 0.0, limits.measure(model) / start)) is not None:
                undo()
                note = f"stopped after {done} facts: {passed}"
                break
            stack.callback(undo)
        ratio = perplexity(model, neutral_texts()) / plain
        return Outcome(score(model, facts), seconds, moved(), ratio, note)


def timed(method: Callable[[Model, Sequence[Fact]], Edit], model: Model, facts: Sequence[Fact]) -> tuple[Edit, float]:
    """The edit of some facts and the seconds it takes."""
    clock = time.perf_counter()
    edit = method(model, facts)
    return edit, time.perf_counter() - clock


def ended(model: Model, facts: Sequence[Fact], make: Callable[[], tuple[Edit, float]]) -> Outcome:
    """All facts scored under the edit that was made; where a limit stopped it, under that of the facts before."""
    clock, note, sizes = time.perf_counter(), "", norms(model)
    edit: Edit | None
    try:
        edit, seconds = make()
    except SurgeryError as error:
        edit, note = getattr(error, "edit", None), str(error)
        seconds = time.perf_counter() - clock
    if edit is None:
        return Outcome(score(model, facts), seconds, 0.0, 1.0, note)
    plain = perplexity(model, neutral_texts())
    with edit.applied(model):
        ratio = perplexity(model, neutral_texts()) / plain
        return Outcome(score(model, facts), seconds, relative(edit, sizes), ratio, note)


RUNS: dict[str, Callable[[Model, edits.Method, Sequence[Fact], Values], Outcome]] = {
    "single": single,
    "batch": batch,
    "sequence": sequence,
}


def outcome(
    model: Model, protocol: str, method: edits.Method | None, facts: Sequence[Fact], values: Values
) -> dict[str, Any]:
    """The record of a row; without a method, of the model as it is."""
    if method is None:
        return Outcome(score(model, facts), 0.0, 0.0, 1.0).as_record()
    return RUNS[protocol](model, prepared(model, method), facts, values).as_record()


def norms(model: Model) -> dict[str, float]:
    """Frobenius norm of every linear map's weight, by parameter name."""
    return {name: float(weight.detach().norm()) for name, weight in model.hf.named_parameters() if weight.ndim == 2}


def relative(edit: Edit, sizes: dict[str, float]) -> float:
    """Largest |dW| / |W| of any weight."""
    return max(delta.norm / sizes[f"{delta.module}.weight"] for delta in edit.deltas)


def mean(numbers: Sequence[float]) -> float:
    return float(np.mean(numbers)) if numbers else float("nan")


def main() -> None:
    """Run what the options ask for, and print the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--facts", type=Path, required=True, help="a CounterFact file")
    options.add_argument(
        "--sizes", default="100", help="how many facts, such as 1,10,100,500 for batches and sequences"
    )
    options.add_argument("--methods", default=",".join(edits.METHODS))
    options.add_argument("--protocols", default=",".join(PROTOCOLS))
    options.add_argument("--published", type=int, default=0, help="so many facts by the published settings too")
    options.add_argument("--out", type=Path, default=Path("editing"), help="folder that keeps each row's numbers")
    given = options.parse_args()
    model, console = load(), Console(width=150, soft_wrap=True)
    sizes = sorted(int(one) for one in given.sizes.split(","))
    facts = preferring(model, given.facts, max(*sizes, given.published))
    values, rows = Values(model), []
    for protocol, size, name, method in asked(given, sizes):
        chosen = facts[:size]
        key = f"outcome 3 {model.fingerprint} {protocol} {method} {chosen}"
        made = kept(given.out, key, functools.partial(outcome, model, protocol, method, chosen, values))
        rows.append((protocol, size, name, made))
        console.print(f"{protocol} {size} {name}: {', '.join(line(made, size))}")
    table = Table("protocol", "facts", "method", *COLUMNS, "harmonic", "s a fact", "|dW|/|W|", "perplexity", "note")
    for protocol, size, name, made in rows:
        table.add_row(protocol, str(size), name, *line(made, size), made["note"][:70])
    console.print(table)


def prepared(model: Model, method: edits.Method) -> edits.Method:
    """The method with the contexts it would make up, which are the same for every fact."""
    if not isinstance(method, edits.ClosedForm):
        return method
    made = sample_contexts(model, count=method.count, length=method.length, seed=method.seed)
    return dataclasses.replace(method, contexts=made)


def asked(given: argparse.Namespace, sizes: Sequence[int]) -> Iterator[tuple[str, int, str, edits.Method | None]]:
    """Every row the options ask for: protocol, number of facts, name, method."""
    yield from (("-", size, "no edit", None) for size in sizes)
    for protocol in given.protocols.split(","):
        for size in sizes:
            for name in given.methods.split(","):
                yield protocol, size, name, edits.method_named(name, progress=False)
    if given.published:
        yield "single", given.published, "ROME as published", PUBLISHED["ROME as published"]
        yield "batch", given.published, "MEMIT as published", PUBLISHED["MEMIT as published"]


def line(made: dict[str, Any], size: int) -> list[str]:
    """A row's numbers in words."""
    found = summary(np.array(made["scores"]))
    shares = [f"{value:.1f} ({low:.1f}-{high:.1f})" for value, low, high in found.values()]
    return [*shares, f"{made['seconds'] / size:.2f}", f"{made['change']:.3f}", f"{made['perplexity']:.3f}"]


if __name__ == "__main__":
    main()
