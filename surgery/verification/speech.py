"""What a model says in its own words, and where it comes to a stop; `answers` tells which answer that was.

1. It speaks greedily, to its end token or a natural stop: a line's end, or a full stop that ends a sentence. Full stops
   inside numbers, after initials ("J. R. R. Tolkien") and after capitalised words of two letters ("St. Louis") do not.
Teacher forcing would give away an answer's beginning and its length (https://arxiv.org/abs/2502.11177).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from surgery.model import Model
from surgery.predict import continued_together, generate
from surgery.tokens import encode

ROWS = 32
MOST_TOKENS = 40
_STOP = re.compile(r"\n|(?<!\b[^\W\d_])(?<!\b[A-Z][a-z])\.(?=\s)")


def speak(model: Model, prompts: Sequence[str], most: int = MOST_TOKENS) -> list[str]:
    """What the model says after each prompt, up to a natural stop.

    Args:
        model: the model that speaks.
        prompts: what it goes on from.
        most: most tokens it may say.
    """
    said = [""] * len(prompts)
    ids = [encode(model.tokenizer, prompt).ids for prompt in prompts]
    for rows in continued_together(model, ids, most, ROWS):
        texts = generate(model, [prompts[i] for i in rows], most, until=has_stopped)
        for i, text in zip(rows, texts, strict=True):
            said[i] = until_stop(text)
    return said


def has_stopped(text: str) -> bool:
    """Whether a text holds a natural stop."""
    return _STOP.search(text.lstrip()) is not None


def until_stop(text: str) -> str:
    """A text up to its first natural stop, that included, without the white space around."""
    text = text.lstrip()
    found = _STOP.search(text)
    return text[: found.end()].rstrip() if found else text.rstrip()
