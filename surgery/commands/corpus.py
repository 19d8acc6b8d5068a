"""Text for key statistics: the lines of a file, a field of JSON lines, or a column of a data set.

Every command reads as much of it and keeps what it has summed in the same way (`reading`).
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import edits
from edits.fitting import TOKENS_PER_NEURON
from surgery.commands.options import Run, lines_of
from surgery.errors import SurgeryError
from surgery.model import Model

SHUFFLED = 1000
"""Of a data set that is read as it comes, texts are drawn among so many."""
FIELD = "text"
"""Which field of .jsonl holds the text, where no other is named."""


@dataclass(frozen=True)
class Passages:
    """The text of a file, read before anything that takes long.

    Attributes:
        texts: in an order drawn by the seed.
        name: of the file, for the record.
        partial: keeps what is summed, to go on from after a stop.
    """

    texts: list[str]
    name: str
    partial: Path

    @classmethod
    def of(cls, run: Run, corpus: Path | None, out: Path) -> Passages | None:
        """The text of `--corpus`, None without one.

        Args:
            run: the common options.
            corpus: the file.
            out: what the command writes; sums are kept beside it.

        Raises:
            SurgeryError: the file cannot be read, or a line of .jsonl has no text.
        """
        if corpus is None:
            return None
        partial = out.with_name(f"{out.name}.statistics.partial")
        return cls(corpus_texts(corpus, FIELD, run.seed), corpus.name, partial)

    def fit(self, run: Run, model: Model, layers: Sequence[int]) -> edits.Statistics:
        """Key statistics of these layers, kept for later edits too.

        Raises:
            SurgeryError: as `edits.fit_statistics`.
        """
        fitted = edits.fit_statistics(model, self.texts, layers, **reading(run, model, self.name, self.partial))
        keep(run, model, fitted)
        return fitted


def keep(run: Run, model: Model, fitted: edits.Statistics) -> list[int]:
    """Keep key statistics for later edits; of too little text, only layers of which edits find none of more.

    Returns:
        the layers that are kept; of others it says why not.
    """
    wanted, layers = TOKENS_PER_NEURON * model.anatomy.d_ff, dict(fitted.layers)
    for layer in fitted.layers if fitted.tokens < wanted else ():
        with suppress(SurgeryError):  # there are none at all
            had = edits.find_statistics(model, layer, fitted.fingerprints[0])
            if had.tokens > fitted.tokens:
                del layers[layer]
                run.say(
                    f"layer {layer}: not kept for later edits, whose statistics are of {had.tokens} tokens; "
                    f"give {wanted} or more to replace them"
                )
    if layers:
        edits.keep_statistics(dataclasses.replace(fitted, layers=layers))
    return sorted(layers)


def reading(run: Run, model: Model, name: str, partial: Path, tokens: int | None = None) -> dict[str, Any]:
    """How every command fits statistics on a text: so many tokens of it, ten times the mlp's width if not said."""
    if partial.is_file():
        run.say(f"going on from {partial}")
    tokens = TOKENS_PER_NEURON * model.anatomy.d_ff if tokens is None else tokens
    return {"corpus": name, "tokens": tokens, "progress": run.talks, "resume": partial}


def corpus_texts(corpus: Path, column: str, seed: int) -> list[str]:
    """The passages of a text file, or of the field `column` of a .jsonl file, in an order drawn by the seed.

    Files often hold neighbours of one topic; their first tokens alone would stand for little else.

    Raises:
        SurgeryError: the file cannot be read, or a line has no such field of text.
    """
    lines = lines_of(corpus)
    texts = [_field(corpus, i, line, column) for i, line in enumerate(lines, 1)] if _is_jsonl(corpus) else lines
    return [texts[i] for i in np.random.RandomState(seed).permutation(len(texts))]


def _is_jsonl(file: Path) -> bool:
    return file.suffix.lower() == ".jsonl"


def _field(file: Path, number: int, line: str, column: str) -> str:
    if not line.strip():
        return ""
    try:
        text = json.loads(line)[column]
    except (json.JSONDecodeError, KeyError, TypeError, IndexError):
        text = None
    if not isinstance(text, str):
        raise SurgeryError(
            f'{file}, line {number}: has no text in the field "{column}"; name another with surgery stats --column'
        )
    return text


def dataset_texts(name: str, column: str, seed: int) -> Iterator[str]:
    """The texts of a data set, read as they are needed, in an order drawn by the seed.

    Args:
        name: NAME, NAME:CONFIG, NAME:CONFIG:SPLIT or NAME::SPLIT; a hub's name or a local folder. The split is `train`
            unless another is named.
        column: which column holds the text.
        seed: of the order.

    Raises:
        SurgeryError: the package `datasets` is missing, or there is no such data set, configuration, split or column.
    """
    try:
        from datasets import load_dataset
    except ImportError:
        raise SurgeryError(
            "--dataset needs the package 'datasets'; install it with pip install 'knowledge-surgery[datasets]', or "
            "give --corpus FILE"
        ) from None
    source, config, split, *more = *name.split(":"), *[""] * (3 - len(name.split(":")))
    if more or not source:
        raise SurgeryError(f"{name!r} names no data set; write NAME, NAME:CONFIG, NAME:CONFIG:SPLIT or NAME::SPLIT")
    try:
        loaded = load_dataset(source, config or None, split=split or "train", streaming=True)
        rows = iter(loaded.shuffle(seed=seed, buffer_size=SHUFFLED))
        first = next(rows, None)
    except (OSError, ValueError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise SurgeryError(
            f"cannot load the data set {name!r}: {reason.rstrip('.')}. Give a name the hub has, while it can be "
            "reached, a local folder, or --corpus FILE"
        ) from error
    if first is None or not isinstance(first.get(column), str):
        have = ", ".join(first) if first else "nothing"
        raise SurgeryError(f"the data set {name!r} has no text in a column {column!r}; it has {have}: use --column")
    return _column(itertools.chain([first], rows), column)


def _column(rows: Iterable[dict[str, object]], column: str) -> Iterator[str]:
    for row in rows:
        text = row[column]
        if isinstance(text, str):  # a missing value is no text
            yield text
