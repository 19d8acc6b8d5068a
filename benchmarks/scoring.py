"""CounterFact's scores (`surgery.verification.classic`), in per cent, over facts a model prefers the true answer of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from surgery import Fact, Model, read_facts
from surgery.numbers import wilson
from surgery.verification import classic
from surgery.verification.classic import COLUMNS, likelihoods

__all__ = ["COLUMNS", "preferring", "score", "summary"]


def score(model: Model, facts: Sequence[Fact]) -> Float[np.ndarray, "facts columns"]:
    """The four scores of each fact, each from 0 to 1, on the model as it is."""
    return classic.score(model, facts).successes


def preferring(model: Model, path: Path, count: int) -> list[Fact]:
    """The first facts of a file where the model prefers the true answer."""
    return list(_preferring(model, path, count))


def _preferring(model: Model, path: Path, count: int) -> Iterator[Fact]:
    found = 0
    for fact in read_facts(path):
        if found == count:
            return
        true, new = likelihoods(model, [(fact.prompt, fact.target), (fact.prompt, str(fact.new_target))])
        if true[0] < new[0]:
            found += 1
            yield fact


def summary(scores: Float[np.ndarray, "facts columns"], seed: int = 0) -> dict[str, tuple[float, float, float]]:
    """Each score's mean with its 95 % interval, in per cent."""
    found = {name: wilson(scores[:, i].tolist()) for i, name in enumerate(COLUMNS)}
    found["harmonic"] = classic.bootstrapped(scores, seed)
    return {name: (100 * one.mean, 100 * one.low, 100 * one.high) for name, one in found.items()}
