"""Natural stops, and speech against one prompt at a time."""

from __future__ import annotations

import pytest
from by_hand import Toy

from surgery.predict import continued_together, generate
from surgery.tokens import encode
from surgery.verification.classic import told_on
from surgery.verification.speech import has_stopped, speak, until_stop


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


def test_speech_is_greedy_and_stops_the_same_in_any_company(toy: Toy) -> None:
    model, facts = toy
    prompts = [fact.prompt for fact in facts[:4]] + ["The", facts[40].paraphrases[0]]
    together = speak(model, prompts, 12)
    assert together == [until_stop(generate(model, [prompt], 12)[0]) for prompt in prompts]
    assert sum(text.split()[0] == fact.target for text, fact in zip(together, facts[:4], strict=False)) >= 3
    assert speak(model, [], 5) == []


def test_a_prompt_without_much_room_cuts_no_other_short(toy: Toy) -> None:
    model, facts = toy
    prompts = [facts[0].prompt, "was " * 55, "They " * 55, "was " * 60]
    rows = [encode(model.tokenizer, prompt).ids for prompt in prompts]
    assert continued_together(model, rows, 40, 32) == [[0], [1, 2], [3]]
    assert continued_together(model, rows, 5, 3) == [[0], [1, 2, 3]]
    alone = [until_stop(generate(model, [prompt], 40)[0]) for prompt in prompts]
    assert speak(model, prompts, 40) == alone
    assert len(generate(model, prompts, 40)[0].split()) == 5
    assert len(generate(model, prompts[:1], 40)[0].split()) > 5
    # texts of a hundred tokens, which this model has no room for
    texts = told_on(model, prompts)
    assert texts == [told_on(model, [prompt])[0] for prompt in prompts]


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
