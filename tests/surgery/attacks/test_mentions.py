"""Answers are found in texts however they are written, and not inside other words."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgery.verification.mentions import mentions, normalised


@given(st.text())
def test_normalising_is_done_once(text: str) -> None:
    once = normalised(text)
    assert normalised(once) == once
    assert once == " ".join(once.split())
    assert all(character == " " or character.isalnum() for character in once)


@given(st.text(), st.sampled_from(["NFC", "NFD", "NFKC", "NFKD"]))
def test_spelling_of_characters_does_not_matter(text: str, form: str) -> None:
    assert normalised(unicodedata.normalize(form, text)) == normalised(text)
    assert normalised(f" {text}\n") == normalised(text)


@given(st.text(), st.text(min_size=1).filter(str.strip), st.text())
def test_an_answer_between_others_is_mentioned(before: str, answer: str, after: str) -> None:
    assert mentions(f"{before} {answer} {after}", answer)
    assert mentions(answer, answer)


@pytest.mark.parametrize(
    ("text", "answer", "held"),
    [
        ("in PARIS.", "Paris", True),
        ("the Parisian", "Paris", False),
        ("“São  Paulo”, Brazil", "Sao Paulo", True),
        ("Paulo, Sao", "Sao Paulo", False),
        ("Straße 5", "STRASSE", True),
        ("J. R. R. Tolkien", "J.R.R. Tolkien", True),
        ("他住在北京市", "北京", True),
        ("a C++ book", "C++", True),
        ("nothing", "?!", False),
        ("really?!", "?!", True),
        ("", "Paris", False),
    ],
)
def test_examples(text: str, answer: str, held: bool) -> None:
    assert mentions(text, answer) is held
