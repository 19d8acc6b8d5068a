"""Settings of small layer sweeps, a method that counts what it is asked, and a sweep of made-up numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from edits import Limits, Objective, RankOne, Statistics, Sweep, ValueSearch
from edits.layers import TraceProfile
from edits.scores import SCORES
from surgery import Edit, Fact, Model, Site, SurgeryError

Toy = tuple[Model, list[Fact]]
CHOSEN = (27, 45, 72)
CONTEXTS = ("{}", "The day . {}", "They went home . {}")
SEARCH = ValueSearch(steps=25, step=0.2, clamp=8.0, stop=0.05, method="plain")
SHIFT = 0.3
# the weights of a toy are small beside the values a search finds for it
FAR = Limits(relative_change=100.0, value_norm=100.0, perplexity=1e6)
NAN = float("nan")


@dataclass(frozen=True, kw_only=True)
class Counted:
    """Rank-one editing that notes what it is asked, and can be told to refuse or to stop."""

    name: ClassVar[str] = "counted"
    uses_statistics: ClassVar[bool] = True
    asked: ClassVar[list[tuple[str, int]]] = []
    statistics: Statistics | None = None
    objective: None = None
    refuse: tuple[tuple[str, int], ...] = ()
    stop_at: ClassVar[int] = -1

    def __call__(self, model: Model, facts: Sequence[Fact] | Fact, sites: Sequence[Site] | None = None) -> Edit:
        assert isinstance(facts, Fact)
        assert sites is not None
        if len(self.asked) == Counted.stop_at:
            raise KeyboardInterrupt
        self.asked.append((facts.subject, sites[0].layer))
        if (facts.subject, sites[0].layer) in self.refuse:
            raise SurgeryError("will not")
        return self._method(model, facts, sites)

    def sites(self, model: Model, sites: Sequence[Site] | None = None) -> list[Site]:
        return self._method.sites(model, sites)

    def wanted(self, facts: Sequence[Fact]) -> Objective:
        return self._method.wanted(facts)

    @property
    def _method(self) -> RankOne:
        search = ValueSearch(steps=2, step=0.5, method="plain")
        return RankOne(statistics=self.statistics, contexts=CONTEXTS[:2], search=search, limits=FAR)


def sentences(facts: Sequence[Fact]) -> list[str]:
    return [f"{prompt} {fact.target} ." for fact in facts for prompt in (fact.prompt, *fact.paraphrases)]


def made(**changed: Any) -> Sweep:
    """A sweep of made-up numbers: five layers of a model of eight, four facts."""
    shares = {
        "efficacy": np.array([[0.0] * 4, [1.0] * 4, [1.0] * 4, [1, 1, 1, 0.0], [NAN] * 4]),
        "paraphrase": np.array([[0.0] * 4, [0.5, 0.5, 0.6, 0.6], [0.9, 1, 0.9, 1], [0.9, 1, 1, 1], [1.0] * 4]),
        "neighbour": np.array([[1.0] * 4, [1.0] * 4, [1, 0.9, 1, NAN], [1.0] * 4, [1.0] * 4]),
    }
    names = ("probability", "paraphrase probability", "drift", "steps", "seconds")
    rest = {name: np.full((5, 4), float(i)) for i, name in enumerate(names)}
    given: dict[str, Any] = {
        "layers": (1, 2, 3, 4, 6),
        "facts": ("a", "b", "c", "d"),
        "values": shares | rest,
        "unedited": {name: np.zeros(4) for name in (*SCORES, "probability", "paraphrase probability")},
        "trace": None,
        "left_out": ((0, "no key statistics"), (5, "no key statistics")),
        "failed": ((3, "a", "will not"), (None, "e", "cannot")),
        "method": "rank-one",
        "settings": {"seed": "1", "neighbour_shift": 0.05},
        "model": "made up",
        "depth": 8,
        "fingerprints": ("f",),
    }
    return Sweep(**given | changed)


def traced(effect: Sequence[float]) -> TraceProfile:
    return TraceProfile(
        effect=np.array(effect, dtype=float), margin=np.zeros(len(effect)), facts=4, about="probability"
    )
