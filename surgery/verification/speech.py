"""What a model says in its own words: where it comes to a stop, and whether it said an answer.

1. It speaks greedily, to its end token or a natural stop: a line's end, or a full stop that ends a sentence. Full stops
   inside numbers, after initials ("J. R. R. Tolkien") and after capitalised words of two letters ("St. Louis") do not.
2. Texts are compared without letters' case, accents, punctuation and articles; dotted initials are one word.
3. An answer was said where its words stand in the text as whole words (in scripts that have no letters' case, and so
   often no spaces, anywhere). Of two answers, the one that was said is the one that comes first.
Teacher forcing would give away an answer's beginning and its length (https://arxiv.org/abs/2502.11177).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Literal

from surgery.model import Model
from surgery.predict import generate
from surgery.tokens import encode

ROWS = 32
MOST_TOKENS = 40
ARTICLES = frozenset({"a", "an", "the"})
_STOP = re.compile(r"\n|(?<!\b[^\W\d_])(?<!\b[A-Z][a-z])\.(?=\s)")
_ACCENTS = re.compile("[\u0300-\u036f]")
_INITIAL = re.compile(r"\b(\w)\.\s?(?=\w\.)")

Said = Literal["old", "new", "neither"]


def speak(model: Model, prompts: Sequence[str], most: int = MOST_TOKENS) -> list[str]:
    """What the model says after each prompt, up to a natural stop.

    Args:
        model: the model that speaks.
        prompts: what it goes on from.
        most: most tokens it may say.
    """
    lengths = [len(encode(model.tokenizer, prompt).ids) for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda i: lengths[i])
    said = [""] * len(prompts)
    for start in range(0, len(order), ROWS):
        rows = order[start : start + ROWS]
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


def normalised(text: str) -> str:
    """A text as answers are compared: words without case, accents, punctuation and articles, a space between them."""
    plain = unicodedata.normalize("NFKD", text)
    plain = unicodedata.normalize("NFKD", _ACCENTS.sub("", plain).casefold())
    plain = unicodedata.normalize("NFKC", _ACCENTS.sub("", plain))
    plain = _INITIAL.sub(r"\1", plain).replace("'", "").replace("’", "")
    words = "".join(one if unicodedata.category(one)[0] in "LNM" else " " for one in plain).split()
    return " ".join([word for word in words if word not in ARTICLES] or words)


def said_which(text: str, old: Sequence[str], new: Sequence[str] = ()) -> Said:
    """Which of two answers a text gives, the old or the new one: the first, and of two at one place the longer one.

    Args:
        text: what was said.
        old: ways to write the old answer.
        new: ways to write the new one; none where there is none.
    """
    within = normalised(text)
    found: list[tuple[int, int, Said]] = []
    named: tuple[tuple[Said, Sequence[str]], ...] = (("old", old), ("new", new))
    for name, answers in named:
        for words in map(normalised, answers):
            if one := re.search(_whole(words), within):
                found.append((one.start(), -len(words), name))
    return min(found)[2] if found else "neither"


def _whole(words: str) -> str:
    """A pattern that finds some words as whole ones."""
    if not words:
        return r"(?!)"
    before, after = (r"(?<!\w)", r"(?!\w)")
    uncased = [unicodedata.category(one) in ("Lo", "Mn", "Mc") for one in (words[0], words[-1])]
    return ("" if uncased[0] else before) + re.escape(words) + ("" if uncased[1] else after)
