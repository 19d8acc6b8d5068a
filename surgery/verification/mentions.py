"""Whether a text mentions an answer, however it is written.

1. Compatible forms of a character are one, accents go, case goes, also those of special letters (ß is ss).
2. Whatever is no letter or digit parts words; in scripts written without spaces every character is a word.
3. An answer is mentioned where its words stand in the text in a row, as whole words.
"""

from __future__ import annotations

import unicodedata

UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")


def normalised(text: str) -> str:
    """Its words in plain lower-case letters, one space between them."""
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold()).casefold()
    return " ".join("".join(map(_plain, folded)).split())


def mentions(text: str, answer: str) -> bool:
    """Whether an answer's words stand in a text; an answer without letters and digits, letter for letter."""
    wanted = normalised(answer)
    return f" {wanted} " in f" {normalised(text)} " if wanted else answer.strip() in text


def _plain(character: str) -> str:
    if unicodedata.category(character).startswith("M"):
        return ""
    if not character.isalnum():
        return " "
    unspaced = unicodedata.name(character, "").startswith(UNSPACED)
    return f" {character} " if unspaced else character
