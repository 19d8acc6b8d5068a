"""ROUGE-L: how much of one text stands in another, in the same order.

1. Texts become words: lower case, letters and digits; everything else parts them.
2. LCS is the length of the longest sequence of words that both texts hold in this order, gaps allowed.
3. Precision is LCS by the words said, recall LCS by the words expected, F1 their harmonic mean (Lin 2004,
   https://aclanthology.org/W04-1013, with beta 1).
Written out here rather than taken from a package: it is these lines, and the package everybody uses drops letters
outside ASCII and brings a language toolkit along.
"""

from __future__ import annotations

import re
from collections.abc import Sequence


def words_of(text: str) -> list[str]:
    """A text's words, in lower case."""
    return re.findall(r"[^\W_]+", text.lower())


def longest_common(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(other) + 1)
    for word in one:
        before = row
        row = [0]
        for j, against in enumerate(other):
            row.append(before[j] + 1 if word == against else max(before[j + 1], row[j]))
    return row[-1]


def rouge_l(said: str, expected: str) -> float:
    """F1 of ROUGE-L, 0 to 1; 0 where either text holds no word."""
    one, other = words_of(said), words_of(expected)
    common = longest_common(one, other)
    # 2 P R / (P + R) with P = common / |one| and R = common / |other|
    return 2 * common / (len(one) + len(other)) if common else 0.0
