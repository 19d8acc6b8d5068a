"""The command line: `surgery demo`, `locate`, `edit`, `remove`, `verify`, `stats`.

The one file that imports all three packages. It reads, calls and prints; everything it does can be called from Python.

Exit codes: 0 every claim holds, 10 the fact is still there, 11 collateral damage, 12 the model never knew it,
13 inconclusive, 2 wrong usage or input, 1 anything else.
"""

from __future__ import annotations

import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

import edits
import locate
import surgery
from edits.statistics import cached_file
from locate.figures import side_by_side
from surgery.errors import SurgeryError
from surgery.fact import Fact, Neighbour
from surgery.figures import save
from surgery.files import check_writable, written_whole
from surgery.options import Run, command
from surgery.predict import rate
from surgery.site import KINDS, Site

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help=surgery.__doc__,
    rich_markup_mode=None,
)

_command = partial(command, app)

FactsFile = Annotated[
    Path, typer.Option("--facts", help="Facts file: JSONL, CounterFact, known facts, relations or TOFU.")
]
MaybeFacts = Annotated[Path | None, typer.Option("--facts", help="Facts file, of any layout that can be read.")]
Method = Annotated[str, typer.Option(help=f"How: {', '.join(edits.METHODS)}.")]
Layer = Annotated[int | None, typer.Option(help="Which layer; default: the one known to be best for the model.")]
Corpus = Annotated[
    Path | None, typer.Option(help="Text to fit key statistics on, for a model that has none; kept for later.")
]
OutFile = Annotated[Path, typer.Option("--out", help="File to write.")]
OutFolder = Annotated[Path, typer.Option("--out", help="Folder to write into.")]
ReportFolder = Annotated[Path, typer.Option("--report", help="Folder for report.html and report.json.")]
Profile = Annotated[str, typer.Option(help="How much verification tries: quick.")]


@_command
def demo(run: Run, out: OutFolder = Path("demo")) -> int:
    """Find, rewrite and verify one fact of the default model: the Eiffel Tower is in Paris."""
    check_writable(out)
    started = time.perf_counter()
    model = run.load()
    fact = next(one for one in surgery.example_facts("landmark in city") if one.subject == "The Eiffel Tower")
    fact = fact.replace(
        new_target="Rome", neighbours=(*fact.neighbours, Neighbour("The capital of France is", "Paris"))
    )
    run.say(f"\n1. Where is it? Tracing {fact.prompt!r} through every token and layer.")
    traces = [locate.causal_trace(model, fact, kind=kind, progress=run.talks) for kind in KINDS]
    figure = save(side_by_side(traces), out / "trace.png")
    trace = traces[KINDS.index("mlp")]
    run.say(
        f"   p(Paris) is {trace.clean:.2f}, and {trace.corrupted:.2f} with the subject hidden by noise.\n"
        f"   Restoring mlp outputs around {trace.peak()} brings back {trace.scores.max():.2f}: "
        f"{figure} ({sum(one.cost.seconds for one in traces):.0f} s)"
    )
    run.say("\n2. Rewrite it: one rank-one change of one matrix, Paris to Rome.")
    clock = time.perf_counter()
    edit = edits.RankOne(seed=run.seed)(model, fact)
    path = edit.save(out / "edit.safetensors")
    run.say(f"   {edit.deltas[0]}: {path} ({path.stat().st_size} bytes, {time.perf_counter() - clock:.0f} s)")
    run.say("\n3. Does it hold? Phrasings the edit has not seen, and neighbours that must stay.\n")
    report = surgery.verify(model, edit)
    folder = report.save(out / "report")
    run.say(report.table())
    total = time.perf_counter() - started
    run.say(f"\n{report.meaning}: {folder / 'report.html'}; {total:.0f} s in all. The model on disk is as it was.")
    run.result(
        {
            "traces": [one.as_record() for one in traces],
            "edit": str(path),
            "report": report.as_record(),
            "seconds": total,
        }
    )
    return report.exit_code


@_command
def locate_(
    run: Run,
    out: OutFolder,
    facts: MaybeFacts = None,
    subject: Annotated[str | None, typer.Option(help="The subject, as it stands in the prompt.")] = None,
    template: Annotated[str | None, typer.Option(help="The prompt with {} in the subject's place.")] = None,
    target: Annotated[str | None, typer.Option(help="The answer.")] = None,
    kind: Annotated[str, typer.Option(help=f"What to restore: {', '.join(KINDS)} or all.")] = "all",
    samples: Annotated[int, typer.Option(help="Draws of noise.")] = 10,
    window: Annotated[int, typer.Option(help="Layers restored at once, for mlp and attention.")] = 10,
    limit: Annotated[int | None, typer.Option(help="Trace only the first so many facts.")] = None,
    format: Annotated[str, typer.Option(help="Of the figures: png, pdf or svg.")] = "png",  # noqa: A002
) -> None:
    """Trace where facts are kept: a heat map a fact and kind, and all numbers as traces.json."""
    chosen = _facts(facts, subject, template, target)[:limit]
    if kind not in (*KINDS, "all"):
        raise SurgeryError(f"there is no kind {kind!r} to restore; choose {', '.join(KINDS)} or all")
    if format not in ("png", "pdf", "svg"):
        raise SurgeryError(f"there is no figure format {format!r}; choose png, pdf or svg")
    check_writable(out)
    model = run.load()
    records = []
    for number, fact in enumerate(chosen, 1):
        for one in [one for one in KINDS if kind in (one, "all")]:
            trace = locate.causal_trace(
                model, fact, kind=one, samples=samples, window=window, seed=run.seed, progress=run.talks
            )
            name = f"{one}.{format}" if len(chosen) == 1 else f"{number:03d}-{one}.{format}"
            records.append({**trace.as_record(), "figure": str(save(trace.plot(), out / name))})
            run.say(
                f"{fact.label}: {one} {trace.clean:.3f} clean, {trace.corrupted:.3f} corrupted, "
                f"best {trace.scores.max():.3f} at {trace.peak()}, in the subject at {trace.peak(trace.subject)} "
                f"({trace.cost.seconds:.0f} s)"
            )
    with written_whole(out / "traces.json") as temporary:
        temporary.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    run.say(f"figures and traces.json: {out}")
    run.result({"traces": records})


@_command
def edit(
    run: Run, facts: FactsFile, out: OutFile, method: Method = "rank-one", layer: Layer = None, corpus: Corpus = None
) -> None:
    """Compute the edit that gives facts their new answers, and write it as a file. The model stays as it is."""
    chosen = surgery.read_facts(facts)
    check_writable(out)
    made, model = _edit(run, chosen, method, "replace", layer, corpus)
    asked = [(fact.prompt, str(fact.new_target)) for fact in chosen]
    before = rate(model, asked)
    with made.applied(model):
        after = rate(model, asked)
    made.save(out)
    for fact, was, now in zip(chosen, before, after, strict=True):
        change = f"p {was.probability:.4f} > {now.probability:.4f}, rank {was.rank} > {now.rank}"
        run.say(f"{fact.prompt} {fact.new_target}: {change}")
    run.say(f"{out}: {out.stat().st_size} bytes, {', '.join(str(delta) for delta in made.deltas)}")
    run.result({"edit": str(out), **made.summary()})


@_command
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
) -> int:
    """Compute the edit that removes facts, verify it, write edit and report. The model stays as it is."""
    chosen = [fact.replace(new_target=None) for fact in surgery.read_facts(facts)]
    if edits.objective_named(objective).claim != "removed":
        raise SurgeryError(f"the objective {objective!r} removes nothing; choose neutral, suppress or maximum-entropy")
    check_writable(out)
    check_writable(report)
    made, model = _edit(run, chosen, method, objective, layer, corpus)
    found = surgery.verify(model, made, profile=profile)  # type: ignore[arg-type]  # checked there
    made.save(out)
    return _conclude(run, found, report, {"edit": str(out)})


@_command
def verify(
    run: Run,
    report: ReportFolder,
    facts: MaybeFacts = None,
    edit: Annotated[
        Path | None, typer.Option(help="The edit to judge; without one the model is judged as it is.")
    ] = None,
    claim: Annotated[str | None, typer.Option(help="removed or rewritten; default: what the edit claims.")] = None,
    profile: Profile = "quick",
) -> int:
    """Judge an edit, or a model as it is, by facts."""
    chosen = surgery.read_facts(facts) if facts else None
    made = surgery.Edit.load(edit) if edit else None
    if chosen is None and made is None:
        raise SurgeryError("there is nothing to verify; give --facts, --edit or both")
    check_writable(report)
    found = surgery.verify(run.load(), made, chosen, claim=claim, profile=profile)  # type: ignore[arg-type]  # there
    return _conclude(run, found, report, {})


@_command
def stats(
    run: Run,
    corpus: Annotated[Path, typer.Option(help="Text file, a passage a line.")],
    layers: Annotated[str, typer.Option(help="Layers, such as 4-8 or 4,6.")],
    out: OutFile,
    rank: Annotated[int, typer.Option(help="Eigenpairs kept a layer.")] = 64,
) -> None:
    """Fit key statistics of a model on a text file; edits of the same weights find them afterwards."""
    chosen, texts = _layers(layers), _lines(corpus)
    check_writable(out)
    model = run.load()
    fitted = edits.fit_statistics(model, texts, chosen, rank=rank, corpus=corpus.name, progress=run.talks)
    fitted.save(out)
    fitted.save(cached_file(model.fingerprint))
    run.say(f"{out}: {fitted.tokens} tokens, {out.stat().st_size} bytes; also kept for later edits of this model")
    run.result({"statistics": str(out), "tokens": fitted.tokens, "layers": sorted(fitted.layers)})


def _edit(
    run: Run, facts: list[Fact], method: str, objective: str, layer: int | None, corpus: Path | None
) -> tuple[surgery.Edit, surgery.Model]:
    texts = _lines(corpus) if corpus else None
    chosen = edits.objective_named(objective)
    for fact in facts:
        chosen.continuation(fact)
    edits.method_named(method)
    model = run.load()
    site = edits.recommended_site(model) if layer is None else Site.at(layer, "mlp")
    statistics = None
    if texts is not None and corpus is not None:
        statistics = edits.fit_statistics(model, texts, [site.layer], corpus=corpus.name, progress=run.talks)
        statistics.save(cached_file(model.fingerprint))
    made = edits.method_named(method, statistics=statistics, objective=chosen, seed=run.seed, progress=run.talks)
    return made(model, facts, [site]), model


def _conclude(run: Run, report: surgery.Report, folder: Path, files: dict[str, str]) -> int:
    report.save(folder)
    run.say(report.table())
    for verdict in report.verdicts:
        run.say(f"{verdict.fact}: {verdict.overall}")
    run.say(f"{report.meaning}: {', '.join([*files.values(), str(folder / 'report.html')])}")
    run.result({**files, **report.as_record()})
    return report.exit_code


def _facts(file: Path | None, subject: str | None, template: str | None, target: str | None) -> list[Fact]:
    inline = (subject, template, target)
    if file is not None and any(one is not None for one in inline):
        raise SurgeryError("give --facts, or --subject, --template and --target, not both")
    if file is not None:
        return surgery.read_facts(file)
    if subject is None or template is None or target is None:
        raise SurgeryError("give --facts, or all of --subject, --template and --target")
    return [Fact(subject=subject, template=template, target=target)]


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SurgeryError(
            f"cannot read the text file {file}: {getattr(error, 'strerror', None) or 'not UTF-8'}"
        ) from error


def _layers(text: str) -> list[int]:
    try:
        parts = [[int(n) for n in part.split("-")] for part in text.split(",")]
        return [layer for part in parts for layer in range(part[0], part[-1] + 1)]
    except ValueError:
        raise SurgeryError(f"{text!r} names no layers; write 4, 4-8 or 4,6,9") from None


def main() -> None:
    """Run the command line; a wrong value of the user's ends it with one line and exit code 2."""
    try:
        app()
    except SurgeryError as error:
        print(f"surgery: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
