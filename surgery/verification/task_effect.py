"""What an edit did on tasks of lm-evaluation-harness, as values: each metric before, after, and its change.

1. A metric's change is the mean of its documents' paired differences, with Student's 95 % interval. Where no
   document changed, the interval has no width: the next one may.
2. That is the metric's own change only where the metric is the mean of one number a document. Of others, such as a
   perplexity, a corpus BLEU or a group that weighs its tasks alike, there are two numbers and no interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from surgery.errors import SurgeryError
from surgery.numbers import Interval, counted, json_values, student

DOCUMENT = tuple[str, int]
"""A task's name and the number of a document in it."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A metric as a run reports it.

    Attributes:
        value: over all documents.
        each: by document, those of which there is a number.
        documents: how many documents there were.
        higher_is_better: the direction that is good, None where the task does not tell.
    """

    value: float
    each: Mapping[DOCUMENT, float]
    documents: int
    higher_is_better: bool | None

    @property
    def is_mean(self) -> bool:
        """Whether the value is the mean of one number a document."""
        if len(self.each) != self.documents:
            return False
        return math.isclose(self.value, sum(self.each.values()) / self.documents, rel_tol=1e-6, abs_tol=1e-9)


@dataclass(frozen=True, kw_only=True)
class TaskEffect:
    """What an edit did to one metric of one task.

    Attributes:
        task: the task, or a group of tasks.
        metric: which one, with the filter of the answers behind a comma where the task has one.
        before: its value before.
        after: the same now.
        change: the mean of the documents' differences; None for a metric that is no mean over documents.
        documents: how many were asked.
        higher_is_better: the direction that is good, None where the task does not tell.
    """

    task: str
    metric: str
    before: float
    after: float
    change: Interval | None
    documents: int
    higher_is_better: bool | None = None

    def __post_init__(self) -> None:
        if self.documents < 1:
            raise SurgeryError(f"{self.task} was asked no document; a task has at least one")
        if self.change is None:
            return
        if self.change.cases != self.documents:
            raise SurgeryError(f"{self.task}: {self.change.cases} differences are not those of {self.documents}")
        if not math.isclose(self.change.mean, self.after - self.before, rel_tol=1e-5, abs_tol=1e-6):
            raise SurgeryError(
                f"{self.task}: {self.metric} went from {self.before} to {self.after}, and not by {self.change.mean}"
            )

    @classmethod
    def between(cls, task: str, metric: str, was: Scored, now: Scored) -> TaskEffect:
        """The effect between two runs on the same documents."""
        paired = was.is_mean and now.is_mean and was.each.keys() == now.each.keys()
        return cls(
            task=task,
            metric=metric,
            before=was.value,
            after=now.value,
            change=student([now.each[one] - number for one, number in was.each.items()]) if paired else None,
            documents=was.documents,
            higher_is_better=was.higher_is_better,
        )

    @property
    def told(self) -> str:
        """In words."""
        change = "no interval, as it is no mean over documents" if self.change is None else f"{self.change.mean:+.3g}"
        if self.change is not None and not math.isnan(self.change.low):
            change += f" ({self.change.low:+.3g} to {self.change.high:+.3g})"
        asked = counted(self.documents, "document")
        return f"{self.task} {self.metric}: {self.before:.3g} → {self.after:.3g}, {change}, {asked}"


@dataclass(frozen=True, kw_only=True)
class TaskEffects:
    """What an edit did on tasks.

    Attributes:
        effects: one a metric of a task, and of a group of tasks that has one.
        limit: most documents a task was to ask, the first ones; None for all.
        seed: of examples in front of the questions, and of what is sampled.
        version: of lm-evaluation-harness.
        seconds: how long it took.
    """

    effects: tuple[TaskEffect, ...]
    limit: int | None
    seed: int
    version: str
    seconds: float

    def __post_init__(self) -> None:
        names = [(one.task, one.metric) for one in self.effects]
        if not names or len(set(names)) != len(names):
            raise SurgeryError("tasks have at least one metric, and each of them once")

    def __getitem__(self, name: tuple[str, str]) -> TaskEffect:
        return next(one for one in self.effects if (one.task, one.metric) == name)

    @property
    def first_ones(self) -> str:
        """Which documents were asked, in words."""
        return "all documents" if self.limit is None else f"at most the first {self.limit} documents of each task"

    def as_record(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        return {**json_values(self), "effects": [{**json_values(one), "told": one.told} for one in self.effects]}
