"""The ledger that facts are added to: a new one as asked for, or one that is there, of which nothing else is asked."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import edits
import surgery
from edits.ledger_method import checked_method, method_of
from edits.method import default_objective
from surgery.commands.corpus import Passages
from surgery.commands.options import Run, layers_of, limits_of, limits_told
from surgery.errors import SurgeryError
from surgery.fact import Fact
from surgery.files import check_writable
from surgery.site import Site


def made_for(
    run: Run,
    folder: Path,
    facts: list[Fact],
    method: str,
    objective: str | None,
    layer: str | None,
    corpus: Path | None,
    limits: str | None,
) -> tuple[edits.Ledger, surgery.Model]:
    """A new ledger and its base."""
    passages = Passages.of(run, corpus, folder)
    chosen = default_objective(facts, edits.objective_named(objective) if objective else None)
    how = checked_method(edits.method_named(method, objective=chosen))
    how = how if limits is None else dataclasses.replace(how, limits=limits_of(limits))
    check_writable(folder)
    model = run.load()
    sites = how.sites(model, None if layer is None else _sites(layer))
    statistics = passages.fit(run, model, [site.layer for site in sites]) if passages else None
    how = dataclasses.replace(how, statistics=statistics, seed=run.seed)
    return edits.Ledger.create(folder, model, how, sites), model


def _sites(layers: str) -> list[Site]:
    return [Site.at(one, "mlp") for one in layers_of(layers)]


def check_same(
    run: Run,
    opened: edits.Ledger,
    method: str | None,
    objective: str | None,
    layer: str | None,
    corpus: Path | None,
    limits: str | None,
) -> None:
    """Refuse options that say otherwise than the ledger that is there.

    Raises:
        SurgeryError: one does.
    """
    head = opened.head
    kept = method_of(head.method, None)
    given = {
        "method": (method, kept.name),
        "objective": (objective, opened.objective.name),
        "layer": (None if layer is None else " ".join(one.name for one in _sites(layer)), " ".join(head.sites)),
        "seed": (run.given_seed, kept.seed),
    }
    for what, (asked, has) in given.items():
        if asked not in (None, has):
            raise SurgeryError(f"the {what} of this ledger is {has}, not {asked}; leave --{what} away, or make another")
    if limits is not None and (has := limits_told(kept.limits)) != (asked := limits_told(limits_of(limits))):
        raise SurgeryError(f"the limits of this ledger are {has}, not {asked}; leave --limits away, or make another")
    if corpus is not None:
        raise SurgeryError("this ledger has its key statistics; leave --corpus away, or make another ledger")
