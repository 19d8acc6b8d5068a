"""What a command writes of a verification and says of it: report, JUnit XML, certificate, and the exit code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import matplotlib.pyplot as plt
import typer
from matplotlib.axes import Axes

import locate
import surgery
from surgery import signing
from surgery.commands.options import Run
from surgery.errors import SurgeryError
from surgery.fact import Fact
from surgery.files import check_writable

JunitFile = Annotated[
    Path | None, typer.Option("--junit", help="Also write the verdicts as JUnit XML, a test case a fact and claim.")
]
CertificateFile = Annotated[
    Path | None,
    typer.Option("--certificate", help="Also write a certificate: hashes and scores, no word of the facts."),
]
SignKey = Annotated[
    Path | None,
    typer.Option("--sign", help="Private key to sign the certificate by; see 'surgery certificate keygen'."),
]

Traced = Annotated[
    bool,
    typer.Option(
        "--trace",
        help="Also draw where the first fact's answer passes through the model before the edit, beside its depth.",
    ),
]


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Where a verification goes. Made before anything that takes long, it refuses what could not be written.

    Raises:
        SurgeryError: a place cannot be written to, or there is a key and nothing to sign, or it is no key.
    """

    report: Path | None
    junit: Path | None = None
    certificate: Path | None = None
    sign: Path | None = None
    trace: bool = False

    def __post_init__(self) -> None:
        if self.sign is not None and self.certificate is None:
            raise SurgeryError("--sign signs a certificate; give --certificate FILE too")
        if self.sign is not None:
            signing.read_key(self.sign)
        for one in (self.report, self.junit, self.certificate):
            if one is not None:
                check_writable(one)


def conclude(
    run: Run,
    report: surgery.Report,
    outputs: Outputs,
    model: surgery.Model,
    edit: surgery.Edit | None,
    facts: Sequence[Fact] | None = None,
    *,
    files: Mapping[str, str] | None = None,
    also: Mapping[str, Any] | None = None,
) -> int:
    """Save what was found, tell it, and give the exit code.

    Args:
        run: the common options.
        report: what was found.
        outputs: where to.
        model: the base model.
        edit: what was judged.
        facts: by what; None for the edit's own.
        files: what the command wrote besides, by kind.
        also: what else a program is told.
    """
    written = dict(files or {})
    if outputs.junit is not None:
        written["junit"] = str(report.save_junit(outputs.junit))
    if outputs.certificate is not None:
        made = surgery.Certificate.of(report, model, edit, facts)
        made = made if outputs.sign is None else made.signed(signing.read_key(outputs.sign))
        written["certificate"] = str(made.save(outputs.certificate))
    shown = list(written.values())
    if outputs.report is not None:
        where = _maps(run, model, facts or (edit.facts if edit is not None else ())) if outputs.trace else {}
        try:
            shown.append(str(report.save(outputs.report, where=where) / "report.html"))
        finally:
            for ax in where.values():
                plt.close(ax.get_figure(root=True))
    run.say(report.table())
    for verdict in report.verdicts:
        depth = f" ({verdict.depth})" if verdict.depth not in (None, verdict.overall) else ""
        run.say(f"{verdict.fact}: {verdict.overall}{depth}")
    run.say(": ".join([report.meaning, *([", ".join(shown)] if shown else [])]))
    run.result({**(also or {}), **written, **report.as_record()})
    return report.exit_code


def _maps(run: Run, model: surgery.Model, facts: Sequence[Fact]) -> dict[str, Axes]:
    """Where the answer of the first fact with a subject passes through; what cannot be traced is said and left out."""
    fact = next((one for one in facts if one.subject), None)
    if fact is None:
        run.complain("--trace: no fact has a subject to hide, so there is no map")
        return {}
    try:
        trace = locate.causal_trace(model, fact, kind="mlp", progress=run.talks)
    except SurgeryError as error:
        run.complain(f"--trace: {error}")
        return {}
    return {trace.heading: trace.plot()}
