"""Key statistics and methods with small settings, for the tests of edits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from edits import METHODS, Method, Statistics, ValueSearch, fit_statistics
from surgery import Fact, Model

SENTENCES = (
    "The old tower stands in the town of Paris, and the river runs by the house of the teacher.",
    "She said that it rained in Rome when the people came to see the mountains.",
    "Because he lived in Berlin he spoke German, and wrote a letter to his mother every morning.",
    "Where is the market? It is in the city, by the old university.",
)
LAYER = 1


@pytest.fixture(scope="session")
def tiny_statistics(tiny: Model) -> Statistics:
    return fit_statistics(tiny, SENTENCES, [LAYER], rank=8, progress=False)


@pytest.fixture(scope="session")
def other_fact(tiny_fact: Fact) -> Fact:
    return tiny_fact.replace(subject="The river", new_target="Berlin")


@pytest.fixture(scope="session")
def gpt2_statistics(gpt2: Model) -> Statistics:
    return fit_statistics(gpt2, SENTENCES, [0, LAYER], rank=8, progress=False)


@pytest.fixture(params=list(METHODS))
def quick(request: pytest.FixtureRequest) -> Callable[..., Method]:
    """Makes a registered method, with few contexts and steps where it has such settings."""
    made = METHODS[request.param]
    known = {field.name for field in dataclasses.fields(made)}  # type: ignore[arg-type]
    settings = {"contexts": ("{}", "It rained. {}"), "search": ValueSearch(steps=3), "progress": False}

    def make(statistics: Statistics, **own: Any) -> Method:
        return made(statistics=statistics, **{key: settings[key] for key in settings if key in known} | own)

    return make
