"""`surgery verify`: judge an edit, a ledger, or a model as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import edits
import surgery
from surgery.commands.conclude import CertificateFile, JunitFile, Outputs, SignKey, Traced, conclude
from surgery.commands.options import Attacks, MaybeFacts, Profile, ReportFolder, Run
from surgery.errors import SurgeryError
from surgery.verification.attacks import attacks_named
from surgery.verification.harness import LIMIT, Tasks
from surgery.verification.verify import check_profile


def verify(
    run: Run,
    report: ReportFolder,
    facts: MaybeFacts = None,
    edit: Annotated[
        Path | None, typer.Option(help="The edit to judge; without one the model is judged as it is.")
    ] = None,
    ledger: Annotated[
        Path | None, typer.Option(help="A ledger's folder: judge all facts of its current version together.")
    ] = None,
    claim: Annotated[str | None, typer.Option(help="removed or rewritten; default: what the edit claims.")] = None,
    profile: Profile = "quick",
    attacks: Attacks = None,
    leak: Annotated[
        bool,
        typer.Option(
            "--leak", help="Also try whether the subjects can be read off the edit's numbers, as --profile full does."
        ),
    ] = False,
    tasks: Annotated[
        str | None,
        typer.Option(help="Also ask these tasks of lm-evaluation-harness, NAME,NAME, before and after the edit."),
    ] = None,
    tasks_path: Annotated[Path | None, typer.Option(help="Folder with YAML files of your own tasks.")] = None,
    task_limit: Annotated[int, typer.Option(help="Most documents a task asks, the first ones.")] = LIMIT,
    junit: JunitFile = None,
    certificate: CertificateFile = None,
    sign: SignKey = None,
    trace: Traced = False,
) -> int:
    """Judge an edit, a ledger, or a model as it is, by facts."""
    if edit is not None and ledger is not None:
        raise SurgeryError("--ledger has an edit of its own; give --edit or --ledger, not both")
    chosen = surgery.read_facts(facts) if facts else None
    made = surgery.Edit.load(edit) if edit else None
    if ledger is not None:
        opened = edits.Ledger.open(ledger)
        made = opened.edit()
        chosen = [entry.fact for entry in opened.list()] if chosen is None else chosen
    if chosen is None and made is None:
        raise SurgeryError("there is nothing to verify; give --facts, --edit or --ledger")
    if leak and made is None:
        raise SurgeryError("--leak looks at an edit; give --edit FILE too")
    if tasks is None and (tasks_path is not None or task_limit != LIMIT):
        raise SurgeryError("--tasks-path and --task-limit say how tasks are asked; give --tasks NAME,NAME too")
    benchmarks = None
    if tasks is not None:
        benchmarks = Tasks(names=tuple(tasks.split(",")), path=tasks_path, limit=task_limit, seed=run.seed)
        benchmarks.check(made)
    check_profile(profile)
    tried = None if attacks is None else attacks_named(attacks.split(","), run.verify_seed)
    outputs = Outputs(report=report, junit=junit, certificate=certificate, sign=sign, trace=trace)
    model = run.load()
    found = surgery.verify(
        model,
        made,
        chosen,
        claim=claim,  # type: ignore[arg-type]  # checked there
        profile=profile,  # type: ignore[arg-type]
        leak=leak,
        attacks=tried,
        tasks=benchmarks,
        seed=run.verify_seed,
    )
    return conclude(run, found, outputs, model, made, chosen)
