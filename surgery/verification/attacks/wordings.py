"""A fact's own prompt and its first paraphrases, asked by attacks that change the model and not the words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from surgery.fact import Fact
from surgery.model import Model
from surgery.verification.asking import Cell, probabilities
from surgery.verification.naming import names

WORDINGS = ("prompt", "paraphrase 1", "paraphrase 2", "paraphrase 3")


def wordings(fact: Fact) -> tuple[str, ...]:
    """The prompt and the first three paraphrases that name the subject, which a fact and its controls share."""
    return all_wordings(fact)[: len(WORDINGS)]


def all_wordings(fact: Fact) -> tuple[str, ...]:
    """The prompt and every paraphrase that names the subject."""
    return (fact.prompt, *(text for text in fact.paraphrases if not fact.subject or names(text, fact.subject)))


def rated(
    model: Model, facts: Sequence[Fact], *, start: int = 0, most: int = len(WORDINGS)
) -> Float[np.ndarray, "facts wordings"]:
    """The probability of each fact's answer after its wordings from `start` on, `most` in all; nan elsewhere."""
    return probabilities(model, facts, [_row(fact, start, most) for fact in facts])


def _row(fact: Fact, start: int, most: int) -> list[Cell]:
    cells: list[Cell] = [(text, fact.target) for text in all_wordings(fact)[:most]]
    return [None] * start + cells[start:] + [None] * (most - max(len(cells), start))
