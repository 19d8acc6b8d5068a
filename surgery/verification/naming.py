"""Whether a text names a subject, and the text with another name in its place.

A subject is named where its words stand by themselves: "Niger" is not named in "Nigeria", nor "up" in "group". A word
ends where no letter or digit follows. In scripts written without spaces, and in those that attach particles to words
(`answers`), nothing shows where one ends, so there every occurrence counts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from surgery.fact import Fact
from surgery.verification.answers import attaches, is_unspaced


def names(text: str, subject: str, *, any_case: bool = False) -> bool:
    """Whether a text names a subject; no text names one without words.

    Args:
        text: where to look.
        subject: as it would stand there.
        any_case: whether capitals may differ.
    """
    if any_case:
        text, subject = text.casefold(), subject.casefold()
    return bool(subject) and _pattern(subject).search(text) is not None


def renamed(text: str, subject: str, other: str) -> str:
    """A text with another name wherever it names a subject."""
    return _pattern(subject).sub(lambda _: other, text) if subject else text


def telling_subjects(facts: Sequence[Fact]) -> tuple[str, ...]:
    """Subjects by which a text can be told to be about one of the facts.

    A word of more than half of the templates, as "is" or "of", tells nothing: one row of a file with such a subject
    would be found in nearly every text about the others.
    """
    templates = {fact.template for fact in facts}
    subjects = dict.fromkeys(fact.subject for fact in facts if fact.subject)
    found = {one: sum(names(template, one, any_case=True) for template in templates) for one in subjects}
    return tuple(one for one, count in found.items() if 2 * count <= len(templates))


@lru_cache(maxsize=1024)
def _pattern(subject: str) -> re.Pattern[str]:
    before = r"(?<!\w)" if _ends_words(subject[0]) else ""
    after = r"(?!\w)" if _ends_words(subject[-1]) else ""
    return re.compile(before + re.escape(subject) + after)


def _ends_words(letter: str) -> bool:
    """Whether another letter beside it would belong to the same word."""
    return re.match(r"\w", letter) is not None and not is_unspaced(letter) and not attaches(letter)
