"""Answers are found in texts however they are written, and not inside other words; the one said first counts."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from surgery.verification.answers import _parted, _parted_ascii, finder, mentions, normalised, said_which

quick = settings(max_examples=200, deadline=None, derandomize=True, database=None)
# what the rules are about, more often than among all characters
COMMON = st.sampled_from("aA the an'’. .京のไทยिकी파리اب\u0301\u0903ßİ")
TEXTS = st.text(st.one_of(st.characters(exclude_categories=["Cs"]), COMMON), max_size=14)
WORDS = st.text("bcdeßéøñ", min_size=2, max_size=6)
PIECES = st.sampled_from(["a", "A.", "the", "an", "x", "th'e", "y'", "B."])
ROWS = st.lists(PIECES, min_size=1, max_size=5).map(" ".join)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Louvre", "louvre"),
        ("  São   Tomé!", "sao tome"),
        ("J.R.R. Tolkien", "jrr tolkien"),
        ("J. R. R. Tolkien", "jrr tolkien"),
        ("the U.S.", "us"),
        ("It is 3.5.", "it is 3 5"),
        ("Rolls-Royce", "rolls royce"),
        ("McDonald’s", "mcdonalds"),
        ("Hawaiʻi", "hawaii"),
        ("STRASSE straße", "strasse strasse"),
        ("The Lord of the Rings", "lord of rings"),
        ("Vitamin A", "vitamin a"),
        ("The The", "the the"),
        ("a", "a"),
        ("ＦＵＬＬ width", "full width"),
        ("京都、日本", "京 都 日 本"),
        ("ガーナ", "ガ ー ナ"),
        ("दिल्ली", "दिल्ली"),
        ("יְרוּשָׁלַיִם", "ירושלים"),
        ("مُحَمَّد", "محمد"),
        ("...", ""),
    ],
)
def test_the_normal_form_of_answers(text: str, normal: str) -> None:
    assert normalised(text) == normal


@quick
@given(TEXTS)
@example("The a. b. c.")
@example("Ǆ ℌ ſ İ")
def test_normalising_is_done_once(text: str) -> None:
    once = normalised(text)
    assert normalised(once) == once
    assert once == " ".join(once.split())
    assert all(one == " " or unicodedata.category(one)[0] in "LNM" for one in once)
    assert not any("\u0300" <= one <= "\u036f" for one in once)


@quick
@given(TEXTS, st.sampled_from(["NFC", "NFD", "NFKC", "NFKD"]))
def test_spelling_of_characters_does_not_matter(text: str, form: str) -> None:
    assert normalised(unicodedata.normalize(form, text)) == normalised(text)
    assert normalised(f" {text}\n") == normalised(text)


@quick
@given(text=st.text(st.characters(codec="ascii"), max_size=40))
@example(text="J. R. R. O'Neil_2\x00's 'U.S.' `x`")
def test_plain_characters_need_no_look_at_each(text: str) -> None:
    assert _parted_ascii(text).split() == _parted(text).split()


@given(st.lists(WORDS, min_size=1, max_size=4))
def test_case_accents_articles_and_punctuation_do_not_matter(words: list[str]) -> None:
    plain = normalised(" ".join(words))
    assert normalised("  ".join(words).upper()) == plain
    assert normalised(", ".join(words) + "!") == plain
    assert normalised(f"the {' a '.join(words)}") == plain
    assert mentions(f"so {' an '.join(words)}'s end", plain)


@quick
@given(TEXTS, TEXTS.filter(str.strip), TEXTS)
def test_an_answer_between_others_is_mentioned(before: str, answer: str, after: str) -> None:
    assert mentions(f"{before} {answer} {after}", answer)
    assert mentions(answer, answer)


@quick
@given(WORDS, WORDS)
def test_a_part_of_a_word_is_none(word: str, more: str) -> None:
    assert not mentions(word + more, word)
    assert not mentions(more + word, word)


@quick
@given(st.text("京都日本ひらカナไทย", min_size=1, max_size=4), TEXTS, st.text("京都日本ひらカナ", max_size=4))
def test_without_spaces_an_answer_stands_anywhere(answer: str, before: str, after: str) -> None:
    assert mentions(before + answer + after, answer)


@quick
@given(ROWS, ROWS)
def test_texts_of_one_normal_form_mention_each_other(one: str, other: str) -> None:
    assert normalised(one) != normalised(other) or mentions(one, other)


@quick
@given(TEXTS, TEXTS, TEXTS)
def test_an_answer_is_said_where_it_is_mentioned(text: str, old: str, new: str) -> None:
    assert (said_which(text, [old]) == "old") == mentions(text, old)
    assert (said_which(text, [], [new]) == "new") == mentions(text, new)
    assert (said_which(text, [old], [new]) == "neither") == (not mentions(text, old, new))


@pytest.mark.parametrize(
    ("text", "answer", "held"),
    [
        ("in PARIS.", "Paris", True),
        ("the Parisian", "Paris", False),
        ("Paris's weather", "Paris", True),
        ("la capitale de l’Italie", "Italie", True),
        ("at McDonald's", "McDonalds", True),
        ("at McDonalds", "McDonald's", True),
        ("“São  Paulo”, Brazil", "Sao Paulo", True),
        ("Paulo, Sao", "Sao Paulo", False),
        ("Straße 5", "STRASSE", True),
        ("J. R. R. Tolkien", "J.R.R. Tolkien", True),
        ("J. R. R. Tolkien", "Tolkien", True),
        ("The Lord of the Rings", "Lord of Rings", True),
        ("Lord of Rings", "The Lord of the Rings", True),
        ("Vitamin C", "Vitamin A", False),
        ("Vitamin A is", "Vitamin A", True),
        ("他住在北京市", "北京", True),
        ("東京tokyo市、1945年", "Tokyo", True),
        ("東京tokyo市、1945年", "1945", True),
        ("กิน", "ก", False),
        ("파리에 있다", "파리", True),
        ("הוא גר בפריז", "פריז", True),
        ("दिल्ली में", "दिल्ली", True),
        ("दिल्ली में", "दिल", False),
        ("a C++ book", "C++", True),
        ("nothing", "?!", False),
        ("really?!", "?!", True),
        ("anything", " ", False),
        ("", "Paris", False),
    ],
)
def test_mentions(text: str, answer: str, held: bool) -> None:
    assert mentions(text, answer) is held


def test_any_way_to_write_an_answer_counts() -> None:
    assert mentions("the Big Apple", "New York", "Big Apple")
    assert not mentions("the Big Apple", "New York")
    assert not mentions("the Big Apple")


def test_the_first_answer_is_found_and_of_two_at_one_place_the_longer() -> None:
    find = finder(["York", "New York", "New York City", "?"])
    assert find("New York City?") == (0, len("new york city"))
    assert find("A city, York or New York") == (len("a city "), len("a city york"))
    assert find("what? York") == (4, 4)
    assert find("nowhere") is None


@pytest.mark.parametrize(
    ("text", "old", "new", "said"),
    [
        ("It is in paris, france", ["Paris"], ["Rome"], "old"),
        ("It is in Rome, not Paris.", ["Paris"], ["Rome"], "new"),
        ("It is in Parisian style", ["Paris"], ["Rome"], "neither"),
        ("New York City", ["New York"], ["New York City"], "new"),
        ("New York City", ["New York City"], ["New York"], "old"),
        ("the big apple", ["New York", "Big Apple"], [], "old"),
        ("Bogota", ["Bogotá"], [], "old"),
        ("它位于巴黎市", ["巴黎"], ["罗马"], "old"),
        ("", ["Paris"], ["Rome"], "neither"),
        ("anything", ["?"], [], "neither"),
    ],
)
def test_which_answer_was_said(text: str, old: list[str], new: list[str], said: str) -> None:
    assert said_which(text, old, new) == said
