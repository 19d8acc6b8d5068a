"""`surgery locate`: where facts are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

import locate
from locate.causal import check_options
from locate.corrupt import corruption_named
from locate.figures import effect_lines, panels, role_map
from locate.metrics import metric_named
from surgery.commands.options import MaybeFacts, OutFolder, Run, facts_from
from surgery.errors import SurgeryError
from surgery.fact import Fact
from surgery.figures import save
from surgery.files import check_writable, written_whole
from surgery.site import KINDS

FORMATS = ("png", "pdf", "svg")


def locate_(
    run: Run,
    out: OutFolder,
    facts: MaybeFacts = None,
    subject: Annotated[str | None, typer.Option(help="The subject, as it stands in the prompt.")] = None,
    template: Annotated[str | None, typer.Option(help="The prompt with {} in the subject's place.")] = None,
    target: Annotated[str | None, typer.Option(help="The answer.")] = None,
    new_target: Annotated[str | None, typer.Option(help="Another answer, to take logit differences to.")] = None,
    kind: Annotated[str, typer.Option(help=f"What to patch: {', '.join(KINDS)} or all.")] = "all",
    corruption: Annotated[
        str, typer.Option(help="gaussian, uniform, multivariate or swap; gaussian:2 for another size.")
    ] = "gaussian",
    metric: Annotated[
        str, typer.Option(help="probability, log-probability (whole answer) or logit-difference.")
    ] = "probability",
    direction: Annotated[str, typer.Option(help="restore (what is sufficient) or noise (what is necessary).")] = (
        "restore"
    ),
    severed: Annotated[str | None, typer.Option(help="Hold the mlp or attention path; with --kind state.")] = None,
    samples: Annotated[int, typer.Option(help="Draws of noise.")] = 10,
    window: Annotated[int, typer.Option(help="Layers patched at once, for mlp and attention.")] = 10,
    plain: Annotated[bool, typer.Option("--plain", help="Run the whole model for every cell, as published.")] = False,
    average: Annotated[
        bool, typer.Option("--average", help="One averaged trace over the facts the model knows, kept fact by fact.")
    ] = False,
    limit: Annotated[int | None, typer.Option(help="Trace only so many facts (with --average: known ones).")] = None,
    format: Annotated[str, typer.Option(help=f"Of the figures: {', '.join(FORMATS)}.")] = "png",  # noqa: A002
) -> None:
    """Trace where facts are kept: a heat map a fact and kind, and all numbers as JSON."""
    chosen = facts_from(facts, subject, template, target)
    if new_target is not None:
        chosen = [fact.replace(new_target=new_target) for fact in chosen]
    if kind not in (*KINDS, "all"):
        raise SurgeryError(f"there is no kind {kind!r} to patch; choose {', '.join(KINDS)} or all")
    if format not in FORMATS:
        raise SurgeryError(f"there is no figure format {format!r}; choose {', '.join(FORMATS)}")
    options: dict[str, Any] = {
        "kinds": tuple(one for one in KINDS if kind in (one, "all")),
        "corruption": corruption_named(corruption, tuple(chosen)),
        "metric": metric_named(metric),
        "direction": direction,
        "severed": severed,
        "samples": samples,
        "window": window,
        "method": "plain" if plain else "fast",
        "seed": run.seed,
    }
    check_options(options["kinds"], window, samples, direction, severed)
    check_writable(out)
    if average:
        _average(run, chosen, out, limit, format, options)
    else:
        _each(run, chosen[:limit], out, format, options)


def _each(run: Run, facts: list[Fact], out: Path, ending: str, options: dict[str, Any]) -> None:
    model = run.load()
    records = []
    for number, fact in enumerate(facts, 1):
        traces = locate.causal_traces(model, fact, progress=run.talks, **options)
        for trace in traces:
            name = f"{trace.kind}.{ending}" if len(facts) == 1 else f"{number:03d}-{trace.kind}.{ending}"
            records.append({**trace.as_record(), "figure": str(save(trace.plot(), out / name))})
            run.say(
                f"{fact.label}: {trace.kind} {trace.clean:.3f} clean, {trace.corrupted:.3f} corrupted, "
                f"{trace.at(trace.peak()):.3f} at {trace.peak()}, in the subject at {trace.peak(trace.subject)}"
            )
        if not traces[0].known:
            run.say(f"{fact.label}: the model does not know it, the answer has rank {traces[0].rank}")
        run.say(f"{traces[0].cost.seconds:.1f} s, {traces[0].cost.token_layers} token-layers", dim=True)
    _write(out / "traces.json", records)
    run.say(f"figures and traces.json: {out}")
    run.result({"traces": records})


def _average(run: Run, facts: list[Fact], out: Path, limit: int | None, ending: str, options: dict[str, Any]) -> None:
    model = run.load()
    found = locate.average_trace(model, facts, limit=limit, cache=out / "traces", progress=run.talks, **options)
    figures = [
        save(panels(found, role_map), out / f"average-map.{ending}"),
        save(panels(found, effect_lines), out / f"average-lines.{ending}"),
    ]
    _write(out / "average.json", found.as_record())
    for line in found.told():
        run.say(line)
    run.say(f"{', '.join(str(one) for one in figures)}, {out / 'average.json'}")
    run.result(found.as_record())


def _write(path: Path, record: Any) -> None:
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(record, ensure_ascii=False), encoding="utf-8")
