"""A fact's own prompt and its first paraphrases, asked by attacks that change the model and not the words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from surgery.fact import Fact
from surgery.model import Model
from surgery.predict import rate
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
    asked = [
        (i, j, text) for i, fact in enumerate(facts) for j, text in enumerate(all_wordings(fact)[:most]) if j >= start
    ]
    asked.sort(key=lambda one: len(one[2]))
    answers = rate(model, [(text, facts[i].target) for i, _, text in asked])
    scores = np.full((len(facts), most), np.nan)
    for (i, j, _), answer in zip(asked, answers, strict=True):
        scores[i, j] = answer.probability
    return scores
