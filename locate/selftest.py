"""How well do the locators find neurons that are known to hold a fact? A fact is planted, and looked for.

The INJ benchmark of Chang et al. 2024 (https://arxiv.org/abs/2311.09060, section 3.1), on invented facts:

1. Plant a fact in random neurons of every layer (`plant`).
2. Each locator scores all neurons of the changed model. Recall@k% of a layer is the share of its planted neurons that
   are among its k % highest scores; guessing finds k %.
3. Take the fact out again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from locate.neurons import GradientActivation, HardConcrete, IntegratedGradients, LogProbIncrease, Method, ZeroOut
from locate.neurons.text import Told, check_told
from locate.plant import Planted, draw_neurons, planted
from surgery.errors import SurgeryError
from surgery.fact import Fact
from surgery.model import Model
from surgery.progress import bar
from surgery.shipped import invented_facts

MOST_ZERO_OUT = 5000
"""Most neurons a model may have for zero-out to be among the default locators: it takes a run a neuron."""
_Looked = tuple[Float[np.ndarray, "layers shares"], float]
"""Recall of one fact by one locator, and the seconds that took."""


@dataclass(frozen=True, eq=False)
class Recall:
    """How much of what was planted one locator found.

    Attributes:
        method: the locator's configuration.
        values: share of a layer's planted neurons found, at each of the test's shares [facts, layers, shares].
        seconds: wall-clock time a fact.
    """

    method: str
    values: Float[np.ndarray, "facts layers shares"]
    seconds: float

    def __post_init__(self) -> None:
        if not ((self.values >= 0) & (self.values <= 1)).all():
            raise ValueError("recalls are shares, between 0 and 1")

    @property
    def means(self) -> tuple[float, ...]:
        """Recall at each share, mean over facts and layers."""
        return tuple(self.values.mean((0, 1)).tolist())


@dataclass(frozen=True, eq=False)
class SelfTest:
    """Recall of locators on one model.

    Attributes:
        model: name of the model.
        share: of the neurons of a layer each fact was planted in.
        at: the shares of a layer's neurons a locator may name: 0.01 is recall@1%.
        random: what guessing finds at each of them.
        planted: the facts tried, learned or not.
        recalls: the locators; empty if nothing was learned.
        left_out: default locators that were not run, with the reason.
    """

    model: str
    share: float
    at: tuple[float, ...]
    random: tuple[float, ...]
    planted: tuple[Planted, ...]
    recalls: tuple[Recall, ...]
    left_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.random) != len(self.at):
            raise ValueError(f"{len(self.random)} baselines for recall at {len(self.at)} shares")
        learned = sum(one.learned for one in self.planted)
        for recall in self.recalls:
            if recall.values.shape[0] != learned or recall.values.shape[2] != len(self.at):
                raise ValueError(f"recalls of {recall.method} are not for {learned} facts at {len(self.at)} shares")

    @property
    def failed(self) -> tuple[Planted, ...]:
        """Facts that could not be planted within the steps allowed."""
        return tuple(one for one in self.planted if not one.learned)

    def table(self) -> str:
        """Recalls in per cent, a line a locator, best first by the first column."""
        rows = sorted(self.recalls, key=lambda one: -one.means[0])
        wide = max([len("random"), *(len(one.method) for one in rows)])
        lines = ["locator".ljust(wide) + "".join(f"{f'R@{share:.3g}%':>8}" for share in np.multiply(self.at, 100))]
        lines[0] += "   s/fact"
        for one in rows:
            found = "".join(f"{100 * mean:8.1f}" for mean in one.means)
            lines.append(one.method.ljust(wide) + found + f"{one.seconds:9.1f}")
        lines.append("random".ljust(wide) + "".join(f"{100 * one:8.1f}" for one in self.random) + f"{0:9.1f}")
        lines.append(f"{len(self.planted) - len(self.failed)} of {len(self.planted)} facts planted in {self.model}")
        lines += [f"not learned: {one.fact.label} (loss {one.loss:.2f} after {one.steps} steps)" for one in self.failed]
        lines += [f"left out: {one}" for one in self.left_out]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.table()

    def as_record(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        return {
            "model": self.model,
            "share": self.share,
            "at": list(self.at),
            "random": list(self.random),
            "planted": [
                {
                    "fact": one.fact.as_record(),
                    "neurons": one.neurons.tolist(),
                    "loss_before": one.loss_before,
                    "loss": one.loss,
                    "greedy": one.greedy,
                    "steps": one.steps,
                    "learned": one.learned,
                }
                for one in self.planted
            ],
            "recalls": [
                {
                    "method": one.method,
                    "means": list(one.means),
                    "by_layer": one.values.mean(0).tolist(),
                    "seconds": one.seconds,
                }
                for one in self.recalls
            ],
            "left_out": list(self.left_out),
        }


def selftest(
    model: Model,
    *,
    facts: int | Sequence[Fact] = 1,
    methods: Sequence[Method] | None = None,
    told: Told = "all",
    share: float = 0.01,
    at: Sequence[float] = (0.01, 0.02, 0.05),
    limit: float = 0.05,
    steps: int = 200,
    seed: int = 0,
    progress: bool = True,
) -> SelfTest:
    """Plant facts one after the other, and see which locators find them.

    Args:
        model: the model; afterwards its weights are what they were.
        facts: how many of the invented facts, drawn with the seed; or facts of your own.
        methods: configured locators; by default all, zero-out only for models of few neurons.
        told: the tokens planted: all of prompt and answer, as published, or the answer's alone, which few steps learn.
        share: of the neurons of each layer to plant a fact in; at least one.
        at: shares of a layer's neurons a locator may name.
        limit: loss in nats at which learning stops.
        steps: most optimiser steps to get there.
        seed: of the facts drawn and the neurons chosen.
        progress: show bars where somebody is looking.

    Raises:
        SurgeryError: an option is out of range.
    """
    check_told(told)
    facts = _drawn(facts, seed) if isinstance(facts, int) else facts
    if not all(0 < one <= 1 for one in (share, *at)) or not facts or not at:
        raise SurgeryError(f"share {share} and at {tuple(at)} are shares of a layer's neurons, above 0 and at most 1")
    if steps < 1 or limit <= 0:
        raise SurgeryError(f"steps {steps} is at least 1 and limit {limit} above 0")
    left_out: list[str] = []
    if methods is None:
        methods = _locators(model, told, left_out)
    layers, d_ff = len(model.anatomy.layers), model.anatomy.d_ff
    named = [max(1, round(one * d_ff)) for one in at]
    tried: list[Planted] = []
    looked: list[list[_Looked]] = []
    for number, fact in enumerate(bar(facts, "self-test", show=progress)):
        neurons = draw_neurons(layers, d_ff, share, seed + number)
        with planted(model, fact, neurons, told=told, limit=limit, steps=steps) as one:
            tried.append(one)
            if one.learned:
                looked.append([_look(model, one, method, named, progress=progress) for method in methods])
    recalls = [
        Recall(str(method), np.stack([row[i][0] for row in looked]), float(np.mean([row[i][1] for row in looked])))
        for i, method in enumerate(methods)
        if looked
    ]
    return SelfTest(
        model=model.source,
        share=share,
        at=tuple(at),
        random=tuple(count / d_ff for count in named),
        planted=tuple(tried),
        recalls=tuple(recalls),
        left_out=tuple(left_out),
    )


def _look(model: Model, one: Planted, method: Method, named: Sequence[int], *, progress: bool) -> _Looked:
    """What a locator finds of the planted neurons among its so many highest scores, and how long it takes."""
    started = time.perf_counter()
    scores = method(model, one.fact, progress=progress)
    seconds = time.perf_counter() - started
    return recall_at(scores.values, one.neurons, named), seconds


def recall_at(
    scores: Float[np.ndarray, "layers d_ff"], neurons: Int[np.ndarray, "layers planted"], named: Sequence[int]
) -> Float[np.ndarray, "layers shares"]:
    """Share of each layer's planted neurons [layers, planted] among its so many highest scores."""
    order = np.argsort(-scores, axis=1, kind="stable")
    return np.array(
        [
            [len(set(best[:count]) & set(own)) / len(own) for count in named]
            for best, own in zip(order.tolist(), neurons.tolist(), strict=True)
        ]
    )


def _drawn(count: int, seed: int) -> list[Fact]:
    """So many of the invented facts."""
    known = invented_facts()
    if not 1 <= count <= len(known):
        raise SurgeryError(f"there are {len(known)} invented facts; give a number from 1 to that, not {count}")
    return [known[i] for i in np.random.RandomState(seed).permutation(len(known))[:count]]


def _locators(model: Model, told: Told, left_out: list[str]) -> list[Method]:
    methods: list[Method] = [
        LogProbIncrease(),
        GradientActivation(),
        GradientActivation(positions="all"),
        IntegratedGradients(refine=False),
        HardConcrete(told=told),
    ]
    neurons = len(model.anatomy.layers) * model.anatomy.d_ff
    if neurons <= MOST_ZERO_OUT:
        return [*methods, ZeroOut()]
    left_out.append(f"{ZeroOut()} (takes {neurons} runs of the model a fact)")
    return methods
