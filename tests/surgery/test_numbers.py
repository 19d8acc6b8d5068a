"""Intervals against scipy's, and results as JSON."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import stats

from surgery.numbers import Interval, counted, json_values, student, wilson

VALUES = [0.2, -0.1, 0.4, 0.05]


def test_a_mean_has_students_interval() -> None:
    found = student([*VALUES, math.nan])
    low, high = stats.t.interval(0.95, 3, np.mean(VALUES), stats.sem(VALUES))
    assert (found.mean, found.low, found.high) == pytest.approx((np.mean(VALUES), low, high))
    assert found.cases == 4
    assert Interval.around(found.mean, float(stats.sem(VALUES)), 4) == found


def test_ends_stay_within_what_is_possible() -> None:
    found = student(VALUES, least=0.0, most=0.2)
    assert (found.low, found.high) == (0.0, 0.2)


@pytest.mark.parametrize(("values", "cases"), [([], 0), ([math.nan], 0), ([0.5], 1)])
def test_one_case_has_no_interval(values: list[float], cases: int) -> None:
    found = student(values)
    assert found.cases == cases
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert math.isnan(found.mean) == (cases == 0)


@pytest.mark.parametrize(("yes", "count"), [(0, 5), (3, 7), (9, 9)])
def test_a_share_has_wilsons_interval(yes: int, count: int) -> None:
    found = wilson([1.0] * yes + [0.0] * (count - yes) + [math.nan])
    known = stats.binomtest(yes, count).proportion_ci(method="wilson")
    assert (found.mean, found.low, found.high) == pytest.approx((yes / count, known.low, known.high))
    assert found.cases == count
    assert math.isnan(wilson([]).mean)


def test_results_become_json() -> None:
    value = {"a": (Interval(0.5, math.nan, math.inf, 1), None), "b": [{"c": "d"}]}
    assert json.loads(json.dumps(json_values(value))) == {
        "a": [{"mean": 0.5, "low": None, "high": None, "cases": 1}, None],
        "b": [{"c": "d"}],
    }


def test_one_of_something_is_told_as_one() -> None:
    assert [counted(count, "case") for count in (0, 1, 2)] == ["0 cases", "1 case", "2 cases"]
