"""`surgery verify`: judge an edit, or a model as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import surgery
from surgery.commands.options import MaybeFacts, Profile, ReportFolder, Run
from surgery.errors import SurgeryError
from surgery.files import check_writable
from surgery.verification.verify import check_profile


def verify(
    run: Run,
    report: ReportFolder,
    facts: MaybeFacts = None,
    edit: Annotated[
        Path | None, typer.Option(help="The edit to judge; without one the model is judged as it is.")
    ] = None,
    claim: Annotated[str | None, typer.Option(help="removed or rewritten; default: what the edit claims.")] = None,
    profile: Profile = "quick",
    leak: Annotated[
        bool, typer.Option("--leak", help="Also try whether the subjects can be read off the edit's numbers.")
    ] = False,
) -> int:
    """Judge an edit, or a model as it is, by facts."""
    chosen = surgery.read_facts(facts) if facts else None
    made = surgery.Edit.load(edit) if edit else None
    if chosen is None and made is None:
        raise SurgeryError("there is nothing to verify; give --facts, --edit or both")
    if leak and made is None:
        raise SurgeryError("--leak looks at an edit; give --edit FILE too")
    check_profile(profile)
    check_writable(report)
    found = surgery.verify(
        run.load(),
        made,
        chosen,
        claim=claim,  # type: ignore[arg-type]  # checked there
        profile=profile,  # type: ignore[arg-type]
        leak=leak,
    )
    return conclude(run, found, report, {})


def conclude(run: Run, report: surgery.Report, folder: Path, files: dict[str, str]) -> int:
    """Save and tell what was found."""
    report.save(folder)
    run.say(report.table())
    for verdict in report.verdicts:
        run.say(f"{verdict.fact}: {verdict.overall}")
    run.say(f"{report.meaning}: {', '.join([*files.values(), str(folder / 'report.html')])}")
    run.result({**files, **report.as_record()})
    return report.exit_code
