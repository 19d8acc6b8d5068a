"""Text cut into pieces and put in the order that key statistics are summed in.

1. Every text is encoded as the tokenizer does it, a beginning-of-text token included where it adds one, and cut.
2. The pieces are drawn in a fixed order; a tenth of them comes last and is the part held out.
3. The others come in stages that double: a sixteenth, another sixteenth, an eighth, a quarter, a half.
4. Within a stage they are sorted by length, so that a batch wastes little on padding.

So a sum over the first stages is the sum of less text, drawn at random, and costs nothing besides the fit.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from surgery.errors import SurgeryError
from surgery.model import Model
from surgery.tokens import encode

ROWS = 8
STAGES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)
HELD_OUT = 1 / 10

Batch = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Pieces:
    """Token ids in batches.

    Attributes:
        batches: rows of token ids, at most `ROWS` a batch.
        marks: after how many batches each stage ends; after the last mark comes the part held out.
    """

    batches: tuple[Batch, ...]
    marks: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """How many tokens there are."""
        return self.before(len(self.batches))

    def before(self, batch: int) -> int:
        """How many tokens the batches before that one hold."""
        return sum(len(row) for rows in self.batches[:batch] for row in rows)


def read_pieces(model: Model, texts: Iterable[str], *, width: int, tokens: int | None) -> Pieces:
    """Read texts until there are enough tokens, and put them in order.

    Args:
        model: whose tokenizer; no piece is longer than it can read.
        texts: a passage each; those without content are passed over.
        width: tokens a piece has at most.
        tokens: how many tokens are enough; None reads everything.

    Raises:
        SurgeryError: the width or number of tokens is below 1.
    """
    if width < 1 or (tokens is not None and tokens < 1):
        raise SurgeryError(f"pieces of {width} tokens up to {tokens} tokens hold nothing; give positive numbers")
    width = min(width, model.anatomy.max_positions or width)
    rows: list[tuple[int, ...]] = []
    count = 0
    for text in texts:
        if not text.strip():
            continue
        ids = encode(model.tokenizer, text).ids
        cut = [tuple(ids[start : start + width]) for start in range(0, len(ids), width)]
        rows += cut
        count += len(ids)
        if tokens is not None and count >= tokens:
            break
    return _ordered(rows)


def _ordered(rows: list[tuple[int, ...]]) -> Pieces:
    drawn = [rows[i] for i in np.random.RandomState(0).permutation(len(rows))]
    kept = len(rows) - int(len(rows) * HELD_OUT)
    batches: list[Batch] = []
    marks = []
    ends = [0, *(round(kept * share) for share in STAGES), len(rows)]
    for start, end in pairwise(ends):
        stage = sorted(drawn[start:end], key=len)
        batches += [tuple(stage[first : first + ROWS]) for first in range(0, len(stage), ROWS)]
        marks.append(len(batches))
    return Pieces(tuple(batches), tuple(marks[:-1]))
