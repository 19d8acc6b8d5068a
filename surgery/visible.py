"""Texts of others shown as text: what nobody sees, or turns the text around it, stands as its code, such as [001B]."""

from __future__ import annotations

import unicodedata

_TURNING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def visible(text: str, code: str = "[{:04X}]") -> str:
    """A text without control characters but tabs and line ends, lone surrogates, and marks of direction.

    Args:
        text: the text; a terminal or a browser would act on some of it.
        code: what stands for such a character, with `{}` for its number.
    """
    return text if text.isprintable() else "".join(code.format(ord(one)) if _unseen(one) else one for one in text)


def _unseen(one: str) -> bool:
    return one in _TURNING or (unicodedata.category(one) in ("Cc", "Cs") and one not in "\n\t")
