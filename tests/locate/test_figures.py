"""The heat map of a trace: what it labels, where it draws, and that no token's text can break it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes
from tiny import tiny_model, tiny_tokenizer

from locate import Gaussian, Trace, causal_trace
from surgery import Fact, load
from surgery.figures import save

HOSTILE = ("$", "$x_{1}$", "_", "{}", "\\frac{", "^^", "%d", "<>")


@pytest.fixture(scope="module")
def traced() -> Trace:
    fact = Fact(subject="Paris", template="See {} in the", target="city")
    model = load((tiny_model("gpt2"), tiny_tokenizer()))
    return causal_trace(
        model, fact, kind="mlp", window=2, corruption=Gaussian(std=0.5), samples=2, method="plain", progress=False
    )


def labels(ax: Axes) -> list[str]:
    return [label.get_text() for label in ax.get_yticklabels()]


def test_subject_tokens_are_marked_and_only_they(traced: Trace) -> None:
    ax = traced.plot()
    assert isinstance(ax, Axes)
    assert len(labels(ax)) == len(traced.tokens)
    for i, (label, token) in enumerate(zip(labels(ax), traced.tokens, strict=True)):
        assert label == token.strip() + ("*" if i in traced.subject else "")
    assert [label.endswith("*") for label in labels(ax)].count(True) == len(traced.subject)


def test_the_map_shows_the_effects_negative_ones_too(traced: Trace) -> None:
    scores = traced.scores.copy()
    scores[-1, 0] = 0.0
    lowered = dataclasses.replace(traced, scores=scores)
    image = lowered.plot().collections[0]
    assert np.array_equal(np.asarray(image.get_array()).reshape(scores.shape), lowered.effects)
    low = lowered.effects.min()
    assert image.norm.vmin == low < 0
    # grey below 0, the kind's green above it
    red, green, _, _ = image.cmap(image.norm(low))
    assert red == green
    red, green, _, _ = image.cmap(image.norm(lowered.effects.max()))
    assert green > red


def test_cells_that_were_not_asked_for_are_left_out(traced: Trace) -> None:
    scores = traced.scores.copy()
    scores[0] = np.nan
    shown = dataclasses.replace(traced, scores=scores).plot().collections[0].get_array()
    assert np.ma.getmaskarray(shown).reshape(scores.shape)[0].all()


def test_the_note_says_what_one_needs_to_judge_the_map(traced: Trace) -> None:
    told = traced.plot().get_xlabel()
    for part in (
        "probability",
        f"clean {traced.clean:.3f}",
        f"{traced.samples} samples",
        "no effect left of the subject",
    ):
        assert part in told
    broken = dataclasses.replace(traced, scores=traced.scores + np.linspace(0, 0.1, len(traced.tokens))[::-1, None])
    assert "CHECK FAILED: no effect left of the subject" in broken.plot().get_xlabel()
    assert "largest standard error" in told
    single = dataclasses.replace(traced, samples=1, errors=traced.errors * 0).plot().get_xlabel()
    assert "one sample" in single
    assert "standard error" not in single
    unknown = dataclasses.replace(traced, rank=7)
    assert "not known: the answer has rank 7" in unknown.plot().get_xlabel()


@pytest.mark.parametrize("text", HOSTILE)
def test_any_token_text_can_be_drawn(traced: Trace, text: str) -> None:
    hostile = dataclasses.replace(
        traced,
        tokens=(text,) * len(traced.tokens),
        fact=traced.fact.replace(target=text),
        model=text,
        corruption=f"swapped for {text}",
    )
    ax = hostile.plot()
    ax.figure.canvas.draw()
    assert all(label.startswith(text.replace("$", r"\$")) for label in labels(ax))


def test_characters_without_a_glyph_are_written_as_their_code(traced: Trace) -> None:
    texts = ("法", "é", *traced.tokens[2:])
    foreign = dataclasses.replace(traced, tokens=texts)
    ax = foreign.plot()
    ax.figure.canvas.draw()
    assert labels(ax)[0].startswith("[6CD5]")
    assert labels(ax)[1].startswith("é")


def test_given_axes_are_used_and_no_other_figure_is_made(traced: Trace) -> None:
    figure, ax = plt.subplots()
    assert traced.plot(ax) is ax
    assert plt.get_fignums() == [figure.number]


def test_a_saved_figure_is_closed(traced: Trace, tmp_path: Path) -> None:
    for ending in ("png", "svg", "pdf"):
        assert save(traced.plot(), tmp_path / "new" / f"trace.{ending}").stat().st_size > 1000
    assert plt.get_fignums() == []
