"""Whether a text gives an answer, and which of several, however they are written.

1. Compatible forms of a character are one, case goes, also that of special letters (ß is ss), and so do accents and the
   vowel points of Arabic and Hebrew. Marks that spell a letter of their own stay, as in Hindi, Thai or Japanese.
2. Whatever is no letter or digit parts words. Apostrophes, and the dots of initials (J. R. R. Tolkien, U.S.), do so or
   not: "Paris" is in "Paris's", "Italie" in "l'Italie", and "McDonald's" is "McDonalds".
3. In scripts written without spaces every character is a word.
4. An English article in front of a word does not count; at the end ("Vitamin A") it does.
5. An answer is given where its words stand in the text in a row, as whole words; in Arabic, Hebrew and Korean, which
   attach particles to words, also as a part of one. An answer without letters and digits is looked for sign by sign.
6. Of two answers, the one that was said is the one that comes first, and of two at one place the longer one.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Literal

UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "IDEOGRAPHIC", "THAI", "LAO", "KHMER", "MYANMAR")
ATTACHING = ("ARABIC", "HEBREW", "HANGUL")
ARTICLES = ("a", "an", "the")
POINTS = range(10, 37)
"""Combining classes of Hebrew, Arabic and Syriac vowel points, which are often left out."""
_INITIAL = re.compile(r"\b([^\W\d_])\.\s?(?=[^\W\d_]\.)")
_NO_WORD = re.compile(r"[^a-z0-9']")
_APOSTROPHES = dict.fromkeys(map(ord, "’‘ʼʻ"), "'")

Said = Literal["old", "new", "neither"]
Span = tuple[int, int]


def normalised(text: str) -> str:
    """A text as answers are compared: plain words, one space between them, without articles but at the end."""
    words = _spelled(text).replace("'", "").split()
    named = [word for word in words[:-1] if word not in ARTICLES] + words[-1:]
    return " ".join(words if set(words) <= {*ARTICLES} else named)


def mentions(text: str, *answers: str) -> bool:
    """Whether a text gives one of some answers."""
    return finder(answers)(text) is not None


def finder(answers: Sequence[str]) -> Callable[[str], Span | None]:
    """What finds the first of some answers in a text, at one place the longest: from where to where in its plain words.

    Args:
        answers: ways to write an answer; an empty one is never found.
    """
    normal = sorted(filter(None, map(normalised, answers)), key=len, reverse=True)
    pattern = re.compile("|".join(map(_whole, normal)) or r"(?!)")
    signs = [one.strip() for one in answers if one.strip() and not normalised(one)]

    def find(text: str) -> Span | None:
        found = [one.span() for one in [pattern.search(_spelled(text))] if one]
        for sign in signs:
            if sign in text:
                place = len(_spelled(text[: text.index(sign)]))
                found.append((place, place))
        return min(found, key=lambda span: (span[0], -span[1]), default=None)

    return find


def said_which(text: str, old: Sequence[str], new: Sequence[str] = ()) -> Said:
    """Which of two answers a text gives, the old or the new one: the first, and of two at one place the longer one.

    Args:
        text: what was said.
        old: ways to write the old answer.
        new: ways to write the new one; none where there is none.
    """
    was, now = finder(old)(text), finder(new)(text)
    if was is None or now is None:
        return "neither" if was is now else "new" if was is None else "old"
    return "old" if (was[0], -was[1]) < (now[0], -now[1]) else "new"


def _spelled(text: str) -> str:
    """Its words in plain letters, articles and all, with an apostrophe where one may part them."""
    parted = _parted_ascii(text) if text.isascii() else _parted(text)
    return " ".join(filter(None, (word.strip("'") for word in parted.split())))


def _parted(text: str) -> str:
    """Its letters with nothing but spaces and apostrophes between them."""
    plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold()).casefold()
    plain = unicodedata.normalize("NFKC", "".join(one for one in plain if not _is_accent(one)))
    plain = _INITIAL.sub(r"\1'", plain.translate(_APOSTROPHES))
    cells: list[str] = []
    for one in plain:
        if cells and unicodedata.category(one).startswith("M"):
            cells[-1] += one
        else:
            cells.append(one)
    return "".join(map(_apart, cells))


def _parted_ascii(text: str) -> str:
    """The same of a text that has none but ASCII characters, as most have: no character needs a look of its own."""
    return _NO_WORD.sub(" ", _INITIAL.sub(r"\1'", text.casefold()))


def _is_accent(mark: str) -> bool:
    return "\u0300" <= mark <= "\u036f" or unicodedata.combining(mark) in POINTS


def _apart(cell: str) -> str:
    """A character with its marks as it stands between others: a part of a word, a word, or what parts words."""
    if cell[0] == "'":
        return "'"
    if unicodedata.category(cell[0])[0] not in "LN":
        return " "
    return f" {cell} " if is_unspaced(cell[0]) else cell


def _whole(words: str) -> str:
    """A pattern that finds some words in a row, with articles among them or not."""
    article = "|".join(map(_loose, ARTICLES))
    row = f" (?:(?:{article}) )*".join(map(_loose, words.split()))
    return ("" if attaches(words[0]) else "(?<![^ '])") + row + ("" if attaches(words[-1]) else "(?![^ '])")


def _loose(word: str) -> str:
    return "'*".join(map(re.escape, word))


def is_unspaced(letter: str) -> bool:
    """Whether a letter's script is written without spaces between words."""
    return unicodedata.name(letter, "").startswith(UNSPACED)


def attaches(letter: str) -> bool:
    """Whether a letter's script writes particles and words as one."""
    return unicodedata.category(letter) == "Lo" and unicodedata.name(letter, "").startswith(ATTACHING)
