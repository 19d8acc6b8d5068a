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


def test_the_map_shows_the_scores(traced: Trace) -> None:
    shown = traced.plot().collections[0].get_array()
    assert np.array_equal(np.asarray(shown).reshape(traced.scores.shape), traced.scores)


@pytest.mark.parametrize("text", HOSTILE)
def test_any_token_text_can_be_drawn(traced: Trace, text: str) -> None:
    hostile = dataclasses.replace(
        traced,
        tokens=(text,) * len(traced.tokens),
        fact=traced.fact.replace(target=text),
        model=text,
        corruption=f"swapped for {text}",
    )
    hostile.plot().figure.canvas.draw()


def test_given_axes_are_used_and_no_other_figure_is_made(traced: Trace) -> None:
    figure, ax = plt.subplots()
    assert traced.plot(ax) is ax
    assert plt.get_fignums() == [figure.number]


def test_a_saved_figure_is_closed(traced: Trace, tmp_path: Path) -> None:
    for ending in ("png", "svg", "pdf"):
        assert save(traced.plot(), tmp_path / "new" / f"trace.{ending}").stat().st_size > 1000
    assert plt.get_fignums() == []
