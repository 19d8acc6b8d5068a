"""`surgery edit` and `remove`: change or remove facts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import edits
import surgery
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
    lines_of,
)
from surgery.commands.verify import conclude
from surgery.errors import SurgeryError
from surgery.fact import Fact
from surgery.files import check_writable
from surgery.predict import rate
from surgery.privacy import check_keep
from surgery.site import Site
from surgery.verification.verify import check_profile


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
    made, model = _computed(run, chosen, method, "replace", layer, corpus)
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
    method: Method = "rank-one",
    objective: Annotated[
        str, typer.Option(help="What to say instead: neutral, suppress or maximum-entropy.")
    ] = "neutral",
    layer: Layer = None,
    corpus: Corpus = None,
    profile: Profile = "quick",
    keep_facts: KeepFacts = "plain",
) -> int:
    """Compute the edit that removes facts, verify it, write edit and report. The model stays as it is."""
    chosen = [fact.replace(new_target=None) for fact in surgery.read_facts(facts)]
    if edits.objective_named(objective).claim != "removed":
        raise SurgeryError(f"the objective {objective!r} removes nothing; choose neutral, suppress or maximum-entropy")
    check_profile(profile)
    check_keep(keep_facts)
    check_writable(out)
    check_writable(report)
    made, model = _computed(run, chosen, method, objective, layer, corpus)
    found = surgery.verify(model, made, profile=profile)  # type: ignore[arg-type]  # checked there
    surgery.redact(made, keep_facts).save(out)  # type: ignore[arg-type]  # checked above
    return conclude(run, found, report, {"edit": str(out)})


def _computed(
    run: Run, facts: list[Fact], method: str, objective: str, layer: int | None, corpus: Path | None
) -> tuple[surgery.Edit, surgery.Model]:
    texts = lines_of(corpus) if corpus else None
    chosen = edits.objective_named(objective)
    for fact in facts:
        chosen.continuation(fact)
    edits.method_named(method)
    model = run.load()
    site = edits.recommended_site(model) if layer is None else Site.at(layer, "mlp")
    statistics = None
    if texts is not None and corpus is not None:
        statistics = edits.fit_statistics(model, texts, [site.layer], corpus=corpus.name, progress=run.talks)
        edits.keep_statistics(statistics)
    made = edits.method_named(method, statistics=statistics, objective=chosen, seed=run.seed, progress=run.talks)
    return made(model, facts, [site]), model
