"""`surgery ledger`: a folder of edits of one model, from which any fact can be taken back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

import edits
import surgery
from edits.ledger_store import Store
from surgery.commands.conclude import CertificateFile, JunitFile, Outputs, SignKey, conclude
from surgery.commands.ledger_opening import check_same, made_for
from surgery.commands.options import (
    RAISING,
    Corpus,
    FactsFile,
    KeepFacts,
    Layer,
    LimitsGiven,
    OutFile,
    Run,
    command,
)
from surgery.errors import SurgeryError
from surgery.files import check_writable
from surgery.numbers import counted
from surgery.privacy import check_keep
from surgery.verification.verify import check_profile

DEFAULT_METHOD = "memit"
TAKEN = [
    name
    for name, made in edits.METHODS.items()
    if isinstance(made, type) and issubclass(made, edits.ClosedForm) and not made.anchor
]
LedgerFolder = Annotated[Path, typer.Option("--ledger", help="The ledger's folder.")]
AnyVersion = Annotated[
    str | None, typer.Option("--version", help="A version's hash or its beginning; default: the current one.")
]

ledger = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Keep edits of one model in a folder, from which any fact can be taken back.",
)


def add(
    run: Run,
    folder: LedgerFolder,
    facts: FactsFile,
    method: Annotated[
        str | None, typer.Option(help=f"How, for a new ledger: {', '.join(TAKEN)}; default: {DEFAULT_METHOD}.")
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(help=f"For a new ledger: {', '.join(edits.OBJECTIVES)}; default: as the facts say."),
    ] = None,
    layer: Layer = None,
    corpus: Corpus = None,
    limits: LimitsGiven = None,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Then judge all facts of the ledger again; the exit code is what they give."),
    ] = False,
    profile: Annotated[
        str | None, typer.Option(help="How much --verify tries: quick (the default), standard or full.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Folder for the report of --verify.")] = None,
    junit: JunitFile = None,
    certificate: CertificateFile = None,
    sign: SignKey = None,
) -> int:
    """Add facts to a ledger, which is made if there is none. What is printed afterwards is on the disk."""
    given = {"profile": profile, "report": report, "junit": junit, "certificate": certificate, "sign": sign}
    idle = next((name for name, one in given.items() if one is not None), None)
    if idle is not None and not verify:
        raise SurgeryError(f"--{idle} is for what --verify finds; give --verify too")
    check_profile(profile := profile or "quick")
    outputs = Outputs(report=report, junit=junit, certificate=certificate, sign=sign)
    chosen = surgery.read_facts(facts)
    if objective is not None and edits.objective_named(objective).claim == "removed":
        chosen = [fact.replace(new_target=None) for fact in chosen]
    if Store.exists(folder):
        opened = edits.Ledger.open(folder)
        check_same(run, opened, method, objective, layer, corpus, limits)
        model = run.load()
    else:
        opened, model = made_for(run, folder, chosen, method or DEFAULT_METHOD, objective, layer, corpus, limits)
    before = opened.head.hash
    try:
        version = opened.add(model, chosen, progress=run.talks)
    except edits.NearCollapse as error:
        raise SurgeryError(f"{error}: make a ledger with {RAISING}") from error
    if not verify:
        _tell(run, opened, before, version)
        return 0
    _say(run, opened, before, version)
    kept = [entry.fact for entry in opened.list(version.hash)]
    made = opened.edit(version.hash)
    found = surgery.verify(model, made, kept, profile=profile, seed=run.verify_seed)  # type: ignore[arg-type]  # checked above
    return conclude(run, found, outputs, model, made, kept, also=version.as_record())


def remove(
    run: Run,
    folder: LedgerFolder,
    facts: Annotated[
        list[str], typer.Argument(metavar="FACT...", help="What 'ledger list' shows: id, prompt or 'subject | prompt'.")
    ],
) -> None:
    """Take facts back, as if they had never been added. Facts that the ledger removed are known to the model again."""
    opened = edits.Ledger.open(folder)
    opened.named(*facts)
    before = opened.head.hash
    _tell(run, opened, before, opened.remove(run.load(), *facts, progress=run.talks))


def list_(
    run: Run,
    folder: LedgerFolder,
    versions: Annotated[bool, typer.Option("--versions", help="The versions instead of the facts.")] = False,
    version: AnyVersion = None,
) -> None:
    """Show the facts of a ledger, or its versions, the current one first."""
    opened = edits.Ledger.open(folder)
    if versions:
        if version is not None:
            raise SurgeryError("--version shows one version's facts, --versions all versions; give one of them")
        history = opened.versions()
        table = Table("version", "created", "values", "edit", title=escape(f"{folder}, {len(history)} versions"))
        for one in history:
            table.add_row(one.hash[:12], str(one.about["created"]), str(len(one.values)), (one.edit or "none")[:12])
        run.say(table)
        run.result({"versions": [one.as_record() for one in history]})
        return
    entries, shown = opened.list(version), opened.version(version)
    table = Table("entry", "prompt", "answer", "id", "loss", title=escape(f"{folder}, {counted(len(entries), 'fact')}"))
    for entry in entries:
        fact = entry.fact
        answer = fact.target + (f" > {fact.new_target}" if fact.new_target else "")
        table.add_row(entry.id, escape(fact.prompt), escape(answer), escape(fact.id or ""), f"{entry.loss:.3f}")
    run.say(table)
    run.result({"version": shown.hash, "facts": [entry.as_record() for entry in entries]})


def diff(
    run: Run,
    folder: LedgerFolder,
    before: Annotated[str | None, typer.Argument(help="A version; default: the one before the current one.")] = None,
    after: Annotated[str | None, typer.Argument(help="Another; default: the current one.")] = None,
) -> None:
    """Show what changed between two versions: facts, and how far the weights' changes are apart."""
    found = edits.Ledger.open(folder).diff(before, after)
    run.say(f"{found.before[:12]} > {found.after[:12]}")
    for sign, facts in (("+", found.added), ("-", found.removed)):
        for fact in facts:
            run.say(f"{sign} {fact.label}")
    for old, new in found.changed:
        run.say(f"~ {old.label} > {new.new_target or new.target}")
    run.say(f"the changes of the weights are {found.weights:.3g} of their norm apart")
    run.result(found.as_record())


def check(
    run: Run,
    folder: LedgerFolder,
    solve: Annotated[bool, typer.Option("--solve", help="Solve the current edit again on the model.")] = False,
    values: Annotated[bool, typer.Option("--values", help="Find the values again too, which takes longer.")] = False,
) -> int:
    """Look whether everything is there and whole, and comes out again. Exit code 1 where something is not."""
    opened = edits.Ledger.open(folder)
    found = opened.check(run.load() if solve or values else None, values=values)
    for problem in found.problems:
        run.say(problem)
    state = "all whole" if found.ok else "damaged"
    run.say(f"{found.versions} versions, {found.files} files, {found.left_over} left over: {state}")
    if found.solved is not None:
        run.say(f"solved again: {_apart(found.solved)}")
    if found.found is not None:
        run.say(f"values found again: {_apart(found.found)}")
    run.result(found.as_record())
    return 0 if found.ok else 1


def prune(
    run: Run,
    folder: LedgerFolder,
    forget_history: Annotated[
        bool, typer.Option("--forget-history", help="Delete all versions before the current one, with their facts.")
    ] = False,
) -> None:
    """Delete files that nothing refers to. With --forget-history, no file holds the text of a removed fact any more."""
    gone = edits.Ledger.open(folder).prune(keep_history=not forget_history)
    run.say(f"{gone} files deleted")
    run.result({"deleted": gone})


def export(
    run: Run, folder: LedgerFolder, out: OutFile, version: AnyVersion = None, keep_facts: KeepFacts = "plain"
) -> None:
    """Write the edit of all facts as an ordinary edit file."""
    check_keep(keep_facts)
    check_writable(out)
    whole = edits.Ledger.open(folder).edit(version)
    made = surgery.redact(whole, keep_facts)  # type: ignore[arg-type]  # checked
    made.save(out)
    run.say(f"{out}: {out.stat().st_size} bytes, {counted(len(whole.facts), 'fact')}")
    run.result({"edit": str(out), **made.summary()})


def _tell(run: Run, opened: edits.Ledger, before: str, version: edits.LedgerVersion) -> None:
    """What a change came to, for readers and for programs."""
    _say(run, opened, before, version)
    run.result({**version.as_record(), "facts": len(opened.list(version.hash))})


def _say(run: Run, opened: edits.Ledger, before: str, version: edits.LedgerVersion) -> None:
    if version.hash == before:
        run.say(f"nothing to change: version {version.hash[:12]} is what was asked for")
    else:
        found = opened.diff(before, version.hash)
        counts = f"{len(found.added)} added, {len(found.removed)} removed, {len(found.changed)} changed"
        run.say(f"version {version.hash[:12]}: {counts}, {counted(len(opened.list(version.hash)), 'fact')}")


def _apart(number: float) -> str:
    return "the same to the last bit" if number == 0 else f"{number:.1e} of its norm away"


for _function in (add, remove, list_, diff, check, prune, export):
    command(ledger, _function)
