"""A small corpus of invented people taught to the default model and removed again, by MUSE's six measures and TOFU's.

Rows: the model that was never trained on the forget set; nothing removed; the weights before it restored, which no
removal can surpass; rank-one edits, one a fact; all facts in one batch by MEMIT, both with the neutral objective.
Prints a table and holds no assertions; rows are kept in the folder, so a run that was stopped goes on:
`python benchmarks/corpus.py --out corpus`.

Methods that use key statistics get those of the model before it was taught: the teaching moves them little.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

import edits
from edits.limits import NearCollapse
from surgery import Edit, Fact, Model, load
from surgery.corpus import (
    CorpusReport,
    Judged,
    Planting,
    Remover,
    Taught,
    invented_corpus,
    judge_removal,
    judged,
    taught,
)
from surgery.corpus import nothing as do_nothing
from surgery.store import kept

METHODS: dict[str, edits.ClosedForm] = {
    "rank-one, one a fact": edits.RankOne(objective=edits.Neutral(), progress=False),
    "MEMIT, one batch": edits.Mass(objective=edits.Neutral(), progress=False),
}


def borrowing(model: Model, method: edits.ClosedForm) -> Remover:
    """The method with the key statistics of a model as it is now, also on what becomes of it later."""
    base = model.fingerprint
    found = [edits.find_statistics(model, site.layer, base) for site in method.sites(model)]
    statistics = functools.reduce(lambda one, other: one.merged(other), found)

    def remove(model: Model, facts: Sequence[Fact]) -> Edit:
        own = dataclasses.replace(statistics, fingerprints=(model.fingerprint,))
        try:
            return dataclasses.replace(method, statistics=own)(model, facts)
        except NearCollapse as error:  # what was done up to there is what this method can do
            return error.edit or do_nothing(model, facts)

    return remove


def main() -> None:
    """Teach, remove in every way, print the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--forget", type=int, default=4, help="people to be removed, five facts each")
    options.add_argument("--retain", type=int, default=4, help="people to stay")
    options.add_argument("--holdout", type=int, default=12, help="people never shown")
    options.add_argument("--removals", type=int, default=4, help="how many in sequence")
    options.add_argument("--seed", type=int, default=0, help="of the people")
    options.add_argument("--out", type=Path, default=Path("corpus"), help="folder that keeps each row's numbers")
    given = options.parse_args()
    model, console, planting = load(), Console(width=200, soft_wrap=True), Planting()
    corpus = invented_corpus(given.forget, given.retain, given.holdout, seed=given.seed)
    removers = {name: borrowing(model, method) for name, method in METHODS.items()}
    settings = f"corpus 1 {model.fingerprint} {given.forget} {given.retain} {given.holdout} {given.seed} {planting}"
    rows: list[Judged] = []
    with ExitStack() as opened:

        @functools.cache
        def known() -> Taught:
            return opened.enter_context(taught(model, corpus, planting))

        def row(name: str) -> dict[str, object]:
            if name == "never trained":
                return judged(name, known().reference, known().reference).as_record()
            own = {"nothing": do_nothing, "restored": known().restore, **removers}[name]
            return judge_removal(known(), name, own, removals=given.removals).as_record()

        for name in ("never trained", "nothing", "restored", *removers):
            key = f"{settings} {given.removals} {name} {METHODS.get(name)}"
            rows.append(Judged.from_record(kept(given.out, key, functools.partial(row, name))))
            console.print(f"{name}: {', '.join(rows[-1].cells()[1:])}")
        losses = kept(given.out, f"{settings} losses", lambda: known().planted.losses)
        seconds = kept(given.out, f"{settings} seconds", lambda: known().seconds)
    sizes = given.forget, given.retain, given.holdout
    report = CorpusReport(
        model=model.source,
        people=sizes,
        facts=len(corpus.facts),
        losses=tuple(losses),
        rows=tuple(rows),
        seconds=seconds,
    )
    console.print(report.table())
    console.print(
        f"taught in {seconds:.0f} s, {len(losses)} rounds on the forget set, loss {losses[-1]:.3f} nats a token"
    )


if __name__ == "__main__":
    main()
