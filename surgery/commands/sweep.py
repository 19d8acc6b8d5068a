"""`surgery sweep`: which layer to edit, by editing at each."""

from __future__ import annotations

from typing import Annotated

import typer

import edits
import locate
from surgery.commands.options import Corpus, MaybeFacts, OutFolder, Run, layers_of, lines_of
from surgery.errors import SurgeryError
from surgery.figures import save
from surgery.files import check_writable
from surgery.records import read_facts


def sweep(
    run: Run,
    out: OutFolder,
    facts: MaybeFacts = None,
    layers: Annotated[str | None, typer.Option(help="Layers, such as 4-8; default: all with statistics.")] = None,
    limit: Annotated[int | None, typer.Option(help="Edit only the first so many facts.")] = None,
    trace: Annotated[bool, typer.Option("--trace", help="Also trace the facts, to compare.")] = False,
    corpus: Corpus = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Let later edits of this model use the recommended layer.")
    ] = False,
) -> None:
    """Edit facts at each layer, score the edits, and recommend a layer. Goes on after a stop. The model stays."""
    chosen = read_facts(facts)[:limit] if facts else None
    if chosen is None and limit is not None:
        raise SurgeryError("--limit counts facts of a file; give --facts too")
    wanted = layers_of(layers) if layers else None
    texts = lines_of(corpus) if corpus else None
    check_writable(out)
    model = run.load()
    traced = None
    if trace:
        asked = chosen if chosen is not None else edits.sample_facts(model, seed=run.seed)
        traced = locate.average_trace(
            model, asked, kinds=("mlp",), positions="last-subject", cache=out / "traces", progress=run.talks
        )
    found = edits.sweep(
        model, chosen, layers=wanted, texts=texts, trace=traced, seed=run.seed, cache=out / "edits", progress=run.talks
    )
    figure = save(found.plot(), out / "sweep.png")
    found.save(out / "sweep.json")
    if keep:
        edits.keep_sweep(found)
    for line in found.told():
        run.say(line)
    run.say(f"{figure}, {out / 'sweep.json'}")
    run.result(found.as_record())
