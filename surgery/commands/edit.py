"""`surgery edit` and `remove`: change or remove facts.

Where a limit stops a method that takes facts one after the other, the edit of those before it is written all the same,
and the exit code is 1.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

import edits
import surgery
from surgery.commands.conclude import CertificateFile, JunitFile, Outputs, SignKey, Traced, conclude
from surgery.commands.corpus import Passages
from surgery.commands.options import (
    RAISING,
    Corpus,
    FactsFile,
    KeepFacts,
    Layer,
    LimitsGiven,
    Method,
    Names,
    OutFile,
    Profile,
    ReportFolder,
    Run,
    layers_of,
    limits_of,
)
from surgery.errors import SurgeryError, check_choice
from surgery.fact import Fact
from surgery.files import check_writable
from surgery.predict import rate
from surgery.privacy import check_keep
from surgery.site import Site
from surgery.verification.verify import check_profile

REMOVING = [name for name, one in edits.OBJECTIVES.items() if one.claim == "removed"]


@dataclass(frozen=True, kw_only=True)
class Computed:
    """An edit, and where it stopped.

    Attributes:
        edit: of all facts asked for, or of those before a limit.
        model: the base.
        asked: how many facts were asked for.
        stopped: which limit the next ones would have passed; None where all are done.
    """

    edit: surgery.Edit
    model: surgery.Model
    asked: int
    stopped: str | None

    @property
    def record(self) -> dict[str, Any]:
        """What a program is told of the stop; nothing where there was none."""
        if self.stopped is None:
            return {}
        return {"stopped": {"done": len(self.edit.facts), "asked": self.asked, "why": self.stopped}}

    def told(self, run: Run, out: Path) -> int | None:
        """Say what a stop left out, if there was one: then exit code 1."""
        if self.stopped is None:
            return None
        done = len(self.edit.facts)
        run.complain(f"{out} holds {done} of {self.asked} facts, the others were not done: {self.stopped}")
        return 1


def edit(
    run: Run,
    facts: FactsFile,
    out: OutFile,
    method: Method = "rank-one",
    layer: Layer = None,
    corpus: Corpus = None,
    limits: LimitsGiven = None,
    names: Names = None,
    keep_facts: KeepFacts = "plain",
) -> int | None:
    """Compute the edit that gives facts their new answers, and write it as a file. The model stays as it is."""
    chosen = surgery.read_facts(facts)
    check_keep(keep_facts)
    check_writable(out)
    found = _computed(run, chosen, method, edits.Replace(), layer, corpus, "rewritten", limits, names, out)
    held = set(found.edit.facts)
    done = [fact for fact in chosen if fact in held]
    asked = [(fact.prompt, str(fact.new_target)) for fact in done]
    before = rate(found.model, asked)
    with found.edit.applied(found.model):
        after = rate(found.model, asked)
    made = surgery.redact(found.edit, keep_facts)  # type: ignore[arg-type]  # checked above
    made.save(out)
    for fact, was, now in zip(done, before, after, strict=True):
        change = f"p {was.probability:.4f} > {now.probability:.4f}, rank {was.rank} > {now.rank}"
        run.say(f"{fact.prompt} {fact.new_target}: {change}")
    run.say(f"{out}: {out.stat().st_size} bytes, {', '.join(str(delta) for delta in made.deltas)}")
    run.result({"edit": str(out), **found.record, **made.summary()})
    return found.told(run, out)


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
    refusal: Annotated[
        str | None, typer.Option(help="For the objective refusal: what to say; default: '... I cannot say.'.")
    ] = None,
    objective_layers: Annotated[
        str | None,
        typer.Option(help="For suppress and maximum-entropy: layers to hold to it besides the output, such as 10,20."),
    ] = None,
    layer: Layer = None,
    corpus: Corpus = None,
    limits: LimitsGiven = None,
    names: Names = None,
    profile: Profile = "quick",
    keep_facts: KeepFacts = "plain",
    junit: JunitFile = None,
    certificate: CertificateFile = None,
    sign: SignKey = None,
    trace: Traced = False,
) -> int:
    """Compute the edit that removes facts, verify it, write edit and report. The model stays as it is."""
    chosen = [fact.replace(new_target=None) for fact in surgery.read_facts(facts)]
    wanted = _objective(objective, refusal, objective_layers)
    if wanted is not None and wanted.claim != "removed":
        raise SurgeryError(f"the objective {objective!r} removes nothing; choose {', '.join(REMOVING)}")
    check_profile(profile)
    check_keep(keep_facts)
    check_writable(out)
    outputs = Outputs(report=report, junit=junit, certificate=certificate, sign=sign, trace=trace)
    found = _computed(run, chosen, method, wanted, layer, corpus, "removed", limits, names, out)
    judged = surgery.verify(found.model, found.edit, profile=profile, seed=run.verify_seed)  # type: ignore[arg-type]  # checked there
    surgery.redact(found.edit, keep_facts).save(out)  # type: ignore[arg-type]  # checked above
    files = {"edit": str(out)}
    code = conclude(run, judged, outputs, found.model, found.edit, files=files, also=found.record)
    return found.told(run, out) or code


def _objective(name: str | None, refusal: str | None, layers: str | None) -> edits.Objective | None:
    """The objective the options name, None where they name none.

    Raises:
        SurgeryError: there is none of that name, or one of the others is no setting of it.
    """
    settings: dict[str, Any] = {} if refusal is None else {"text": refusal}
    if layers is not None:
        settings["layers"] = tuple(layers_of(layers))
    if name is None:
        if settings:
            raise SurgeryError("--refusal and --objective-layers go with --objective; name one, such as refusal")
        return None
    return edits.objective_named(name, **settings)


def _computed(
    run: Run,
    facts: list[Fact],
    method: str,
    objective: edits.Objective | None,
    layers: str | None,
    corpus: Path | None,
    claim: str,
    limits: str | None,
    names: float | None,
    out: Path,
) -> Computed:
    """The edit of the facts, or of those before a limit.

    Raises:
        SurgeryError: an option is no use to the method, or already the first facts would pass a limit.
    """
    settings = _taken(method, seed=run.seed, progress=run.talks) | _limited(method, limits)
    if names is not None:
        settings |= _asked(method, "weighs no names", "--names", names=names)
    chosen = edits.method_named(method, objective=objective, **settings)
    if corpus is not None and not chosen.uses_statistics:
        raise SurgeryError(f"{method} uses no key statistics; leave --corpus away")
    passages = Passages.of(run, corpus, out)
    sites = None if layers is None else [Site.at(layer, "mlp") for layer in layers_of(layers)]
    if (wanted := chosen.wanted(facts)).claim != claim:
        raise SurgeryError(f"the objective {wanted.name!r} leaves facts {wanted.claim}, not {claim}; choose another")
    model = run.load()
    sites = chosen.sites(model, sites)
    if passages is not None:
        fitted = passages.fit(run, model, [site.layer for site in sites])
        chosen = dataclasses.replace(chosen, statistics=fitted)  # type: ignore[type-var]  # methods are dataclasses
    try:
        return Computed(edit=chosen(model, facts, sites), model=model, asked=len(facts), stopped=None)
    except edits.NearCollapse as error:
        why = f"{error}: {RAISING}"
        if error.edit is None:
            raise SurgeryError(why) from error
        return Computed(edit=error.edit, model=model, asked=len(facts), stopped=why)


def _limited(method: str, limits: str | None) -> dict[str, Any]:
    """The setting that holds a method's limits, where the user gave some.

    Raises:
        SurgeryError: the method has none.
    """
    if limits is None:
        return {}
    return _asked(method, "watches no limits", "--limits", limits=limits_of(limits))


def _asked(method: str, lacks: str, option: str, **setting: Any) -> dict[str, Any]:
    """A setting the user asked for.

    Raises:
        SurgeryError: the method has none such.
    """
    if not (taken := _taken(method, **setting)):
        raise SurgeryError(f"{method} {lacks}; leave {option} away")
    return taken


def _taken(method: str, **settings: Any) -> dict[str, Any]:
    """Those of the settings that a method has: one without random draws has no seed."""
    check_choice("method", method, edits.METHODS)
    known = {field.name for field in dataclasses.fields(edits.METHODS[method])}  # type: ignore[arg-type]
    return {name: value for name, value in settings.items() if name in known}
