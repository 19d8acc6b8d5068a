"""`surgery stats`: key statistics of any model from a text file or a data set, and whether the text was enough."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

import edits
from surgery.commands.corpus import FIELD, corpus_texts, dataset_texts, keep, reading
from surgery.commands.options import OutFile, Run, layers_of
from surgery.errors import SurgeryError, check_choice
from surgery.figures import save
from surgery.files import check_writable
from surgery.model import Model

FORMATS = (".png", ".svg", ".pdf")
SHARED = 5
"""Layers that share a change in the methods that spread one."""


def stats(
    run: Run,
    out: OutFile,
    corpus: Annotated[Path | None, typer.Option(help="Text file, a passage a line, or .jsonl.")] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Data set, a hub's name or a folder: NAME[:CONFIG[:SPLIT]]; needs 'datasets'.")
    ] = None,
    column: Annotated[str, typer.Option(help="Which field of .jsonl or column of a data set holds the text.")] = FIELD,
    layers: Annotated[
        str, typer.Option(help="Layers, such as 4-8 or 4,6; all; or those that editing methods take unasked.")
    ] = "recommended",
    tokens: Annotated[
        int | None, typer.Option(help="Stop after about so many tokens; default: ten times the mlp's width.")
    ] = None,
    rank: Annotated[int, typer.Option(help="Eigenpairs kept a layer.")] = 64,
    convergence: Annotated[bool, typer.Option(help="Hold a tenth out and see whether the text was enough.")] = True,
    figure: Annotated[
        Path | None, typer.Option(help="Figure of the convergence, .png, .svg or .pdf; default: OUT.png.")
    ] = None,
) -> None:
    """Fit key statistics of a model on text; edits of the same weights find them afterwards. Goes on after a stop."""
    chosen = _chosen(layers)
    picture = _picture(out, figure, convergence)
    partial = out.with_name(f"{out.name}.partial")
    for path in (out, partial, picture):
        check_writable(path)
    texts, name = _texts(run, corpus, dataset, column)
    model = run.load()
    settings: dict[str, Any] = {"rank": rank, **reading(run, model, name, partial, tokens)}
    wanted = chosen if chosen is not None else _unasked(model, layers)
    record: dict[str, Any] = {"statistics": str(out)}
    if convergence:
        fitted, found = edits.fit_with_convergence(model, texts, wanted, **settings)
    else:
        fitted, found = edits.fit_statistics(model, texts, wanted, **settings), None
    fitted.save(out)
    record["kept"] = keep(run, model, fitted)
    record |= {"tokens": fitted.tokens, "layers": sorted(fitted.layers), "corpus": name, "bytes": out.stat().st_size}
    record["eigenvalues"] = {str(layer): one.extremes() for layer, one in fitted.layers.items()}
    if found is not None:
        record |= {"figure": str(save(found.plot(), picture)), "convergence": found.as_record()}
    _tell(run, fitted, found, record)
    run.result(record)


def _tell(run: Run, fitted: edits.Statistics, found: edits.Convergence | None, record: dict[str, Any]) -> None:
    for layer, (smallest, largest) in record["eigenvalues"].items():
        run.say(f"layer {layer}: positive definite, eigenvalues {smallest:.2g} to {largest:.2g}", dim=True)
    if found is not None:
        for line in found.told():
            run.say(line)
        run.say(record["figure"])
    kept = f"; {len(record['kept'])} of {len(record['layers'])} layers also kept for later edits of this model"
    run.say(f"{record['statistics']}: {fitted.tokens} tokens, {record['bytes']} bytes{kept}")


def _chosen(layers: str) -> list[int] | None:
    """The layers named by number, None where they are named by a word."""
    if layers in ("all", "recommended"):
        return None
    try:
        return layers_of(layers)
    except SurgeryError as error:
        raise SurgeryError(f"{error}, all or recommended") from None


def _unasked(model: Model, layers: str) -> list[int]:
    """All layers, or those that editing methods take when no site is given."""
    if layers == "all":
        return list(range(len(model.anatomy.layers)))
    sites = [edits.recommended_site(model), *edits.recommended_sites(model, min(SHARED, len(model.anatomy.layers)))]
    return sorted({site.layer for site in sites})


def _picture(out: Path, figure: Path | None, convergence: bool) -> Path:
    if figure is not None and not convergence:
        raise SurgeryError("--figure draws the convergence; leave out --no-convergence")
    picture = figure or out.with_name(f"{out.name}.png")
    check_choice("figure format", picture.suffix.lower(), FORMATS)
    return picture


def _texts(run: Run, corpus: Path | None, dataset: str | None, column: str) -> tuple[Iterable[str], str]:
    if (corpus is None) == (dataset is None):
        raise SurgeryError("give --corpus FILE or --dataset NAME, one of them")
    if corpus is not None:
        return corpus_texts(corpus, column, run.seed), corpus.name
    assert dataset is not None
    return dataset_texts(dataset, column, run.seed), dataset
