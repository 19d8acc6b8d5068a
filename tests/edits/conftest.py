"""Key statistics, methods with small settings and a layer sweep, for the tests of edits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ledgers import MakeLedger, small_ledger
from sweeping import CHOSEN, CONTEXTS, FAR, SEARCH, SHIFT, Toy, sentences
from tiny import tiny_model, tiny_tokenizer

from edits import METHODS, Method, RankOne, Statistics, Sweep, ValueSearch, fit_statistics, sweep
from edits.sample import with_new_answers
from locate import AverageTrace, Gaussian, average_trace
from surgery import Fact, Model, load

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
def two_layers(tiny: Model) -> Statistics:
    """For methods that spread a change over several."""
    return fit_statistics(tiny, SENTENCES, [LAYER - 1, LAYER], rank=8, progress=False)


@pytest.fixture(scope="session")
def by_name(gpt2: Model) -> Callable[[str], Model]:
    """The tiny model of an architecture: without a gate in its mlp and stored transposed, or with one."""
    llama = load((tiny_model("llama"), tiny_tokenizer()))
    return lambda name: {"gpt2": gpt2, "llama": llama}[name]


@pytest.fixture(scope="session")
def other_fact(tiny_fact: Fact) -> Fact:
    return tiny_fact.replace(subject="The river", new_target="Berlin")


@pytest.fixture(scope="session")
def gpt2_statistics(gpt2: Model) -> Statistics:
    return fit_statistics(gpt2, SENTENCES, [0, LAYER], rank=8, progress=False)


@pytest.fixture(scope="session", params=list(METHODS))
def quick(request: pytest.FixtureRequest) -> Callable[..., Method]:
    """Makes a registered method, with few contexts and steps where it has such settings."""
    made = METHODS[request.param]
    known = {field.name for field in dataclasses.fields(made)}  # type: ignore[arg-type]
    settings = {"contexts": CONTEXTS, "search": ValueSearch(steps=3), "progress": False, "limits": FAR, "steps": 3}
    settings["names"] = 1.0  # random weights hardly tell them apart

    def make(statistics: Statistics, **own: Any) -> Method:
        given = {**settings, "statistics": statistics, **own}
        return made(**{key: given[key] for key in given if key in known or key in own})

    return make


@pytest.fixture(scope="session")
def facts(toy: Toy) -> list[Fact]:
    return with_new_answers([toy[1][i] for i in CHOSEN], seed=3)


@pytest.fixture(scope="session")
def statistics(toy: Toy) -> Statistics:
    return fit_statistics(toy[0], sentences(toy[1]), range(4), progress=False)


@pytest.fixture(scope="session")
def method(statistics: Statistics) -> RankOne:
    return RankOne(statistics=statistics, contexts=CONTEXTS, search=SEARCH, limits=FAR, progress=False)


@pytest.fixture(scope="session")
def trace(toy: Toy, facts: list[Fact]) -> AverageTrace:
    return average_trace(toy[0], facts, kinds=("mlp",), corruption=Gaussian(std=0.5), samples=2, window=1)


@pytest.fixture(scope="session")
def swept(toy: Toy, facts: list[Fact], method: RankOne, trace: AverageTrace) -> Sweep:
    return sweep(toy[0], facts[:2], method=method, trace=trace, drift=True, neighbour_shift=SHIFT)


@pytest.fixture
def make_ledger(tmp_path: Path, gpt2: Model, gpt2_statistics: Statistics) -> MakeLedger:
    """Makes ledgers of the tiny model, each in a folder of its own."""
    numbers = iter(range(100))
    return lambda: small_ledger(tmp_path / f"ledger {next(numbers)}", gpt2, gpt2_statistics)
