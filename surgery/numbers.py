"""Two small things every result with numbers needs: means with their errors, and numbers as JSON has them."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float


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
