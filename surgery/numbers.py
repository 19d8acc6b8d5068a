"""What every result with numbers needs: means with their errors and 95 % intervals, and numbers as JSON has them.

1. Of a mean of numbers: Student's t over the cases. A single case has no interval.
2. Of a share: Wilson's (1927) with as many trials as cases: right for yes or no, wide for shares of several, and not of
   width zero where all cases agree.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

LEVEL = 0.95


def counted(count: int, what: str) -> str:
    """So many of something, such as "1 case" or "2 cases"."""
    return f"{count} {what}{'s' * (count != 1)}"


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval; nan where there are no cases, or, of the ends, too few for an interval."""

    mean: float
    low: float
    high: float
    cases: int

    @classmethod
    def around(
        cls, mean: float, error: float, cases: int, *, least: float = -math.inf, most: float = math.inf
    ) -> Interval:
        """Student's, from a mean and its standard error; ends beyond what is possible are cut off."""
        if cases < 2 or math.isnan(error):
            return cls(mean, math.nan, math.nan, cases)
        half = float(stats.t.ppf(0.5 + LEVEL / 2, cases - 1)) * error
        return cls(mean, max(mean - half, least), min(mean + half, most), cases)


def student(values: Sequence[float], *, least: float = -math.inf, most: float = math.inf) -> Interval:
    """The mean of some numbers, those that are nan left out; ends beyond what is possible are cut off."""
    known = np.array([one for one in values if not np.isnan(one)], dtype=float)
    if not len(known):
        return Interval(math.nan, math.nan, math.nan, 0)
    error = float(known.std(ddof=1) / np.sqrt(len(known))) if len(known) > 1 else math.nan
    return Interval.around(float(known.mean()), error, len(known), least=least, most=most)


def wilson(values: Sequence[float]) -> Interval:
    """The mean of shares, each from 0 to 1, those that are nan left out."""
    shares = np.array([values], dtype=float)
    (low,), (high,) = wilson_ends(shares)
    return Interval(float(means(shares)[0]), float(low), float(high), int((~np.isnan(shares)).sum()))


def means(values: Float[np.ndarray, "settings facts"]) -> Float[np.ndarray, " settings"]:
    """Mean over the facts that are not nan; nan where all are."""
    count = (~np.isnan(values)).sum(1)
    return np.where(count > 0, np.nansum(values, 1) / np.maximum(count, 1), np.nan)


def wilson_ends(
    values: Float[np.ndarray, "settings facts"],
) -> tuple[Float[np.ndarray, " settings"], Float[np.ndarray, " settings"]]:
    """Low and high end of the 95 % interval of the mean of shares, each from 0 to 1."""
    count = (~np.isnan(values)).sum(1)
    n, p, z = np.where(count > 0, count, np.nan), means(values), stats.norm.ppf(0.5 + LEVEL / 2)
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return np.clip(centre - half, 0.0, 1.0), np.clip(centre + half, 0.0, 1.0)


def mean_and_error(
    samples: Float[np.ndarray, "*axes samples"],
) -> tuple[Float[np.ndarray, "*axes"], Float[np.ndarray, "*axes"]]:
    """Means over the last axis with their standard errors, 0 where there is one sample; nan stays nan."""
    count = samples.shape[-1]
    mean = samples.mean(-1)
    error = np.where(np.isnan(mean), np.nan, 0.0) if count == 1 else samples.std(-1, ddof=1) / np.sqrt(count)
    return mean, error


def json_numbers(values: Float[np.ndarray, "*axes"]) -> Any:
    """An array as nested lists, with null where it is nan, which JSON does not have."""
    if values.ndim == 0:
        return None if np.isnan(values) else float(values)
    return [json_numbers(np.asarray(one)) for one in values]


def json_values(value: Any) -> Any:
    """Dataclasses, mappings and sequences as JSON has them, with null for numbers it does not have."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: json_values(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {name: json_values(one) for name, one in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return [json_values(one) for one in value] if isinstance(value, (tuple, list)) else value
