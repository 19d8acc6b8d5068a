"""`surgery sweep`: which layer to edit, by editing at each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

import edits
import locate
from surgery.commands.corpus import Passages
from surgery.commands.options import Corpus, MaybeFacts, OutFolder, Run, layers_of
from surgery.errors import SurgeryError
from surgery.figures import save
from surgery.files import check_writable
from surgery.model import Model
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
    passages = Passages.of(run, corpus, out)
    check_writable(out)
    model = run.load()
    if passages is not None:
        _fit_missing(run, model, passages, range(len(model.anatomy.layers)) if wanted is None else wanted)
    traced = None
    if trace:
        asked = chosen if chosen is not None else edits.sample_facts(model, seed=run.seed)
        traced = locate.average_trace(
            model, asked, kinds=("mlp",), positions="last-subject", cache=out / "traces", progress=run.talks
        )
    found = edits.sweep(
        model, chosen, layers=wanted, trace=traced, seed=run.seed, cache=out / "edits", progress=run.talks
    )
    figure = save(found.plot(), out / "sweep.png")
    found.save(out / "sweep.json")
    if keep:
        edits.keep_sweep(found)
    for line in found.told():
        run.say(line)
    run.say(f"{figure}, {out / 'sweep.json'}")
    run.result(found.as_record())


def _fit_missing(run: Run, model: Model, passages: Passages, layers: Sequence[int]) -> None:
    """Key statistics for those of the layers that have none yet."""
    base = model.fingerprint
    if missing := [layer for layer in layers if not _has_statistics(model, layer, base)]:
        passages.fit(run, model, missing)
    else:
        run.say(f"all these layers have key statistics, so {passages.name} is not read", dim=True)


def _has_statistics(model: Model, layer: int, base: str) -> bool:
    try:
        edits.find_statistics(model, layer, base)
    except SurgeryError:
        return False
    return True
