"""Which rows a model reads together.

Rows of a batch are padded to the longest, and every run of a model costs something whatever it reads: on a processor
its weights are read once, on a GPU its kernels are started. So rows are sorted by length and cut into batches where the
tokens read, padding included, and the runs, in units of tokens, are fewest together: a shortest path, from the front.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RUN = 64
"""Tokens that could be read in the time that a run of the model takes whatever it reads."""


def by_length(rows: Sequence[Sequence[int]], most: int, *, runs: int = 1) -> list[list[int]]:
    """Which rows to pad together, at most so many: those of like length, so that padding and runs cost least."""
    return in_batches([len(row) for row in rows], [1] * len(rows), most, runs=runs)


def in_batches(
    widths: Sequence[int],
    counts: Sequence[int],
    most: int | None = None,
    *,
    tokens: int | None = None,
    runs: int = 1,
    run: int = RUN,
    least: int = 0,
) -> list[list[int]]:
    """Which groups of rows to pad together: in order of their widths, cut where it costs the fewest tokens.

    Args:
        widths: of each group's longest row.
        counts: how many rows each has.
        most: rows of a batch, unless one group has more.
        tokens: of a batch, padding included, unless one group has more.
        runs: of the model for each batch; a continuation takes one for each of its tokens.
        run: what one costs besides its tokens, in tokens.
        least: what a batch costs at least, in tokens.
    """
    order = sorted(range(len(widths)), key=lambda i: widths[i])
    ahead = np.cumsum([0, *(counts[i] for i in order)])  # rows of all groups before one
    best, cuts = np.zeros(len(order) + 1, np.int64), [0]
    for stop in range(1, len(order) + 1):
        width = widths[order[stop - 1]]
        fits = ahead[-1] if most is None else most
        fits = fits if tokens is None else min(fits, tokens // width)
        first = min(int(np.searchsorted(ahead, ahead[stop] - fits)), stop - 1)
        read = np.maximum((ahead[stop] - ahead[first:stop]) * width, least)
        cost = best[first:stop] + runs * run + read
        cuts.append(first + int(cost.argmin()))
        best[stop] = cost.min()
    parts, stop = [], len(order)
    while stop:
        parts.append(order[cuts[stop] : stop])
        stop = cuts[stop]
    return parts[::-1]
