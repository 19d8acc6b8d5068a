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
    model: Model, facts: Sequence[Fact], *, chosen: Sequence[int] = range(len(WORDINGS))
) -> Float[np.ndarray, "facts chosen"]:
    """The probability of each fact's answer after some of `all_wordings`, by number; nan where a fact has fewer."""
    return probabilities(model, facts, [_row(fact, chosen) for fact in facts])


def _row(fact: Fact, chosen: Sequence[int]) -> list[Cell]:
    texts = all_wordings(fact)
    return [(texts[i], fact.target) if i < len(texts) else None for i in chosen]
