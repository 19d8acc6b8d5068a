"""Models the tests share. All are read only: who changes weights changes them back, and `unchanged` checks it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pytest
import shapes  # noqa: F401  # before what it watches
import torch
from left import hooks_left
from tiny import ARCHITECTURES, VARIANTS, tiny_model, tiny_tokenizer
from toy import trained_toy

from surgery import Fact, Model, Neighbour, load

# no model hub is asked, whatever a test does
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(autouse=True)
def closed_figures() -> Iterator[None]:
    yield
    plt.close("all")


@pytest.fixture(autouse=True)
def threads(request: pytest.FixtureRequest) -> None:
    """One thread for tiny models, which a second one only slows down; what the environment allows for the real one."""
    allowed = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    torch.set_num_threads(allowed if "smol" in request.fixturenames else 1)


@pytest.fixture(scope="session", params=[*ARCHITECTURES, *VARIANTS])
def tiny(request: pytest.FixtureRequest) -> Model:
    """A tiny random model of each supported architecture."""
    build = {**ARCHITECTURES, **VARIANTS}[request.param]
    return load((build(), tiny_tokenizer()))


@pytest.fixture(scope="session")
def gpt2() -> Model:
    """The tiny one of GPT-2's architecture, where the architecture does not matter."""
    return load((tiny_model("gpt2"), tiny_tokenizer()))


@pytest.fixture(scope="session")
def tiny_fact() -> Fact:
    return Fact(
        subject="The old tower",
        template="People say that {} stands in the town of",
        target="Paris",
        new_target="Rome",
        paraphrases=("The old tower can be seen in", "Where is The old tower? It is in"),
        neighbours=(Neighbour("The river is in the town of", "Rome"),),
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files beside the folders first: they run the real model from end to end, and one begun last ends late."""
    items.sort(key=lambda item: item.path.parent != Path(__file__).parent)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The toy in two architectures, or in those a module's `TOYS` names where what it tests sees logits only."""
    if "toy" in metafunc.fixturenames:
        kinds = getattr(metafunc.module, "TOYS", ("gpt2", "llama"))
        metafunc.parametrize("toy", kinds, indirect=True, scope="session")


@pytest.fixture(scope="session")
def toy(request: pytest.FixtureRequest) -> tuple[Model, list[Fact]]:
    """A small model that really knows some 90 facts, and the facts."""
    hf, tokenizer, records = trained_toy(request.param)
    facts = [{key: value for key, value in record.items() if key != "relation"} for record in records]
    return load((hf, tokenizer)), [Fact.from_record(fact) for fact in facts]


@pytest.fixture(scope="session")
def smol() -> Model:
    """The real default model."""
    return load()


@pytest.fixture
def unchanged() -> Iterator[Callable[[Model], None]]:
    """Call it with a model: at the test's end its weights are bit-identical and no hook is left."""
    watched: list[tuple[Model, str]] = []
    yield lambda model: watched.append((model, model.fingerprint))
    for model, fingerprint in watched:
        assert model.fingerprint == fingerprint
        assert not hooks_left(model)
