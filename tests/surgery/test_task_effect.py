"""Effects on tasks as values: they check themselves, and only what is a mean over documents has an interval."""

from __future__ import annotations

import math

import pytest

from surgery import SurgeryError
from surgery.numbers import Interval, student
from surgery.verification.harness import scored
from surgery.verification.task_effect import Scored, TaskEffect, TaskEffects


def test_effects_check_themselves() -> None:
    good = TaskEffect(task="t", metric="acc", before=0.5, after=0.75, change=student([0.0, 0.5]), documents=2)
    whole = TaskEffects(effects=(good,), limit=None, seed=0, version="0", seconds=0.1)
    assert whole.first_ones == "all documents"
    for change, message in (
        (student([0.0, 0.0]), "acc went from 0.5 to 0.75, and not by 0.0"),
        (student([0.25]), "1 differences are not those of 2"),
    ):
        with pytest.raises(SurgeryError, match=message):
            TaskEffect(task="t", metric="acc", before=0.5, after=0.75, change=change, documents=2)
    with pytest.raises(SurgeryError, match="t was asked no document"):
        TaskEffect(task="t", metric="acc", before=0.5, after=0.75, change=None, documents=0)
    for effects in ((), (good, good)):
        with pytest.raises(SurgeryError, match="at least one metric, and each of them once"):
            TaskEffects(effects=effects, limit=None, seed=0, version="0", seconds=0.1)


def test_a_metric_that_some_documents_lack_is_not_paired() -> None:
    def scored(value: float, *each: float) -> Scored:
        numbers = {("t", i): one for i, one in enumerate(each)}
        return Scored(value=value, each=numbers, documents=3, higher_is_better=None)

    whole, partial = scored(0.5, 0.0, 0.5, 1.0), scored(0.5, 0.5, 0.5)
    assert (whole.is_mean, partial.is_mean, scored(0.7, 0.0, 0.5, 1.0).is_mean) == (True, False, False)
    assert TaskEffect.between("t", "acc", whole, partial).change is None
    assert TaskEffect.between("t", "acc", whole, whole).change == Interval(0.0, 0.0, 0.0, 3)


def test_a_run_is_read_by_metric_and_filter() -> None:
    """A metric is over the documents that have it; nested groups are over all theirs, once each."""

    def logged(task: str, *numbers: object, filtered: str = "none") -> list[dict[str, object]]:
        return [{"doc_id": i, "filter": filtered, "acc": one} for i, one in enumerate(numbers)]

    run = {
        "results": {
            "a": {"alias": "a", "acc,none": 0.5, "acc_stderr,none": "N/A", "acc,strict": 0.0, "sample_len": 2},
            "b": {"acc,none": 1.0, "f1,none": math.nan},
            "inner": {"acc,none": 2 / 3},
            "outer": {"acc,none": 2 / 3},
        },
        "samples": {
            "a": [*logged("a", 1.0, False), *logged("a", 0, 0, filtered="strict")],
            "b": [*logged("b", True), {"doc_id": 1, "filter": "none", "f1": (1, 0)}],
        },
        "group_subtasks": {"inner": ["a", "b"], "outer": ["inner", "b"]},
        "higher_is_better": {"a": {"acc": True}},
    }
    found = scored(run)
    assert list(found) == [
        ("a", "acc"), ("a", "acc,strict"), ("b", "acc"), ("b", "f1"), ("inner", "acc"), ("outer", "acc"),
    ]  # fmt: skip
    assert found["a", "acc"].each == {("a", 0): 1.0, ("a", 1): 0.0}
    assert (found["a", "acc"].higher_is_better, found["b", "acc"].higher_is_better) == (True, None)
    assert (found["b", "acc"].documents, found["b", "f1"].documents) == (1, 1)
    assert (found["b", "acc"].is_mean, found["b", "f1"].is_mean) == (True, False)
    assert found["inner", "acc"].each == found["outer", "acc"].each == {("a", 0): 1.0, ("a", 1): 0.0, ("b", 0): 1.0}
    assert found["outer", "acc"].is_mean
    effect = TaskEffect.between("b", "f1", found["b", "f1"], found["b", "f1"])
    assert (effect.change, effect.documents) == (None, 1)
    whole = TaskEffects(effects=(effect,), limit=None, seed=0, version="0", seconds=0.1)
    assert whole.as_record()["effects"][0]["before"] is None
