"""`surgery edit` and `remove`: change or remove facts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

import edits
import surgery
from surgery.commands.conclude import CertificateFile, JunitFile, Outputs, SignKey, conclude
from surgery.commands.options import (
    Corpus,
    FactsFile,
    KeepFacts,
    Layer,
    Method,
    OutFile,
    Profile,
    ReportFolder,
    Run,
    layers_of,
    lines_of,
)
from surgery.errors import SurgeryError, check_choice
from surgery.fact import Fact
from surgery.files import check_writable
from surgery.predict import rate
from surgery.privacy import check_keep
from surgery.site import Site
from surgery.verification.verify import check_profile

REMOVING = [name for name, one in edits.OBJECTIVES.items() if one.claim == "removed"]


def edit(
    run: Run,
    facts: FactsFile,
    out: OutFile,
    method: Method = "rank-one",
    layer: Layer = None,
    corpus: Corpus = None,
    keep_facts: KeepFacts = "plain",
) -> None:
    """Compute the edit that gives facts their new answers, and write it as a file. The model stays as it is."""
    chosen = surgery.read_facts(facts)
    check_keep(keep_facts)
    check_writable(out)
    made, model = _computed(run, chosen, method, edits.Replace(), layer, corpus, "rewritten")
    asked = [(fact.prompt, str(fact.new_target)) for fact in chosen]
    before = rate(model, asked)
    with made.applied(model):
        after = rate(model, asked)
    made = surgery.redact(made, keep_facts)  # type: ignore[arg-type]  # checked above
    made.save(out)
    for fact, was, now in zip(chosen, before, after, strict=True):
        change = f"p {was.probability:.4f} > {now.probability:.4f}, rank {was.rank} > {now.rank}"
        run.say(f"{fact.prompt} {fact.new_target}: {change}")
    run.say(f"{out}: {out.stat().st_size} bytes, {', '.join(str(delta) for delta in made.deltas)}")
    run.result({"edit": str(out), **made.summary()})


def remove(
    run: Run,
    facts: FactsFile,
    out: OutFile,
    report: ReportFolder,
    method: Method = "memit",
    objective: Annotated[
        str | None,
        typer.Option(help=f"What to say instead: {', '.join(REMOVING)}; default: neutral, or what the method can do."),
    ] = None,
    layer: Layer = None,
    corpus: Corpus = None,
    profile: Profile = "quick",
    keep_facts: KeepFacts = "plain",
    junit: JunitFile = None,
    certificate: CertificateFile = None,
    sign: SignKey = None,
) -> int:
    """Compute the edit that removes facts, verify it, write edit and report. The model stays as it is."""
    chosen = [fact.replace(new_target=None) for fact in surgery.read_facts(facts)]
    wanted = None if objective is None else edits.objective_named(objective)
    if wanted is not None and wanted.claim != "removed":
        raise SurgeryError(f"the objective {objective!r} removes nothing; choose {', '.join(REMOVING)}")
    check_profile(profile)
    check_keep(keep_facts)
    check_writable(out)
    outputs = Outputs(report=report, junit=junit, certificate=certificate, sign=sign)
    made, model = _computed(run, chosen, method, wanted, layer, corpus, "removed")
    found = surgery.verify(model, made, profile=profile)  # type: ignore[arg-type]  # checked there
    surgery.redact(made, keep_facts).save(out)  # type: ignore[arg-type]  # checked above
    return conclude(run, found, outputs, model, made, files={"edit": str(out)})


def _computed(
    run: Run,
    facts: list[Fact],
    method: str,
    objective: edits.Objective | None,
    layers: str | None,
    corpus: Path | None,
    claim: str,
) -> tuple[surgery.Edit, surgery.Model]:
    chosen = edits.method_named(method, objective=objective, **_taken(method, seed=run.seed, progress=run.talks))
    if corpus is not None and not chosen.uses_statistics:
        raise SurgeryError(f"{method} uses no key statistics; leave --corpus away")
    texts = lines_of(corpus) if corpus else None
    sites = None if layers is None else [Site.at(layer, "mlp") for layer in layers_of(layers)]
    if (wanted := chosen.wanted(facts)).claim != claim:
        raise SurgeryError(f"the objective {wanted.name!r} leaves facts {wanted.claim}, not {claim}; choose another")
    model = run.load()
    sites = chosen.sites(model, sites)
    if texts is not None and corpus is not None:
        fitted = edits.fit_statistics(
            model, texts, [site.layer for site in sites], corpus=corpus.name, progress=run.talks
        )
        edits.keep_statistics(fitted)
        chosen = dataclasses.replace(chosen, statistics=fitted)  # type: ignore[type-var]  # methods are dataclasses
    return chosen(model, facts, sites), model


def _taken(method: str, **settings: Any) -> dict[str, Any]:
    """Those of the settings that a method has: one without random draws has no seed."""
    check_choice("method", method, edits.METHODS)
    known = {field.name for field in dataclasses.fields(edits.METHODS[method])}  # type: ignore[arg-type]
    return {name: value for name, value in settings.items() if name in known}
