"""Natural stops, the normal form of answers, which answer was said, and speech against one prompt at a time."""

from __future__ import annotations

import pytest
from by_hand import Toy
from hypothesis import example, given, settings
from hypothesis import strategies as st

from surgery.predict import generate
from surgery.verification.speech import has_stopped, normalised, said_which, speak, until_stop

quick = settings(max_examples=200, deadline=None, derandomize=True, database=None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (" Paris. It is old.", "Paris."),
        ("\n\nParis\nIt is old.", "Paris"),
        ("J. R. R. Tolkien. He wrote", "J. R. R. Tolkien."),
        ("J.R.R. Tolkien", "J.R.R. Tolkien"),
        ("St. Louis, Missouri. More", "St. Louis, Missouri."),
        ("about 3.5 metres. More", "about 3.5 metres."),
        ("no stop at all ", "no stop at all"),
        ("Orvel . I was", "Orvel ."),
        ("", ""),
    ],
)
def test_speech_ends_at_a_natural_stop(text: str, said: str) -> None:
    assert until_stop(text) == said
    assert has_stopped(text) == (said != text.strip())


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Louvre", "louvre"),
        ("  São   Tomé!", "sao tome"),
        ("J.R.R. Tolkien", "jrr tolkien"),
        ("J. R. R. Tolkien", "jrr tolkien"),
        ("the U.S.", "us"),
        ("Rolls-Royce", "rolls royce"),
        ("McDonald’s", "mcdonalds"),
        ("STRASSE straße", "strasse strasse"),
        ("The The", "the the"),
        ("a", "a"),
        ("ＦＵＬＬ width", "full width"),
        ("京都、日本", "京都 日本"),
        ("...", ""),
    ],
)
def test_the_normal_form_of_answers(text: str, normal: str) -> None:
    assert normalised(text) == normal


@quick
@given(text=st.text(max_size=30))
@example(text="The a. b. c.")
@example(text="Ǆ ℌ ſ İ")
def test_the_normal_form_has_single_spaces_small_letters_and_no_marks(text: str) -> None:
    normal = normalised(text)
    assert normal == " ".join(normal.split())
    assert not set(normal) & set(".,;:!?'\"()[]{}-_/\\\n")
    assert not any("\u0300" <= one <= "\u036f" for one in normal)


@quick
@given(words=st.lists(st.text("abcdeßéøñ", min_size=2, max_size=6), min_size=1, max_size=4))
def test_case_accents_articles_and_punctuation_do_not_matter(words: list[str]) -> None:
    plain = normalised(" ".join(words))
    assert normalised(plain) == plain
    assert normalised("  ".join(words).upper()) == plain
    assert normalised(", ".join(words) + "!") == plain
    assert normalised(f"the {' a '.join(words)}") == plain


@pytest.mark.parametrize(
    ("text", "old", "new", "said"),
    [
        ("It is in paris, france", ["Paris"], ["Rome"], "old"),
        ("It is in Rome, not Paris.", ["Paris"], ["Rome"], "new"),
        ("It is in Parisian style", ["Paris"], ["Rome"], "neither"),
        ("New York City", ["New York"], ["New York City"], "new"),
        ("the big apple", ["New York", "Big Apple"], [], "old"),
        ("Bogota", ["Bogotá"], [], "old"),
        ("它位于巴黎市", ["巴黎"], ["罗马"], "old"),
        ("", ["Paris"], ["Rome"], "neither"),
        ("anything", ["?"], [], "neither"),
    ],
)
def test_which_answer_was_said(text: str, old: list[str], new: list[str], said: str) -> None:
    assert said_which(text, old, new) == said


def test_speech_is_greedy_and_stops_the_same_in_any_company(toy: Toy) -> None:
    model, facts = toy
    prompts = [fact.prompt for fact in facts[:4]] + ["The", facts[40].paraphrases[0]]
    together = speak(model, prompts, 12)
    assert together == [until_stop(generate(model, [prompt], 12)[0]) for prompt in prompts]
    assert sum(text.split()[0] == fact.target for text, fact in zip(together, facts[:4], strict=False)) >= 3
    assert speak(model, [], 5) == []


def test_a_continuation_ends_where_it_is_told_to(toy: Toy) -> None:
    model, facts = toy
    (whole,) = generate(model, [facts[0].prompt], 8)
    asked: list[str] = []

    def third(text: str) -> bool:
        asked.append(text)
        return len(asked) == 3

    (text,) = generate(model, [facts[0].prompt], 8, until=third)
    assert text == asked[2]
    assert whole.startswith(text)
