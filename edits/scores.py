"""How well rewrites went: three shares, their mean over facts, their interval, and the one number they come to.

1. Efficacy: a fact's own prompt prefers the new answer to the old one. Paraphrase: the share of its held-out wordings
   that do. Neighbour: the share of its neighbours whose answer's probability moved no further than a limit. (The first
   two are those of Meng et al. 2022, section 3.2, https://arxiv.org/abs/2202.05262; their third asks whether a
   neighbour still prefers its own answer to the new one, which shows large damage only.)
2. The score is the harmonic mean of their means over facts, so that none can be bought with another.
3. An interval is Wilson's with as many trials as facts (`surgery.numbers`).
4. Two settings are compared on the same facts: the jackknife over facts gives their difference's standard error.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

from surgery.numbers import LEVEL, means

SCORES = ("efficacy", "paraphrase", "neighbour")


def harmonic(values: Mapping[str, Float[np.ndarray, "settings facts"]]) -> Float[np.ndarray, " settings"]:
    """Harmonic mean of the means of `SCORES`; nan where one of them was not measured, 0 where one is 0."""
    each = np.array([means(values[name]) for name in SCORES])
    inverse = np.divide(1.0, each, out=np.full_like(each, np.inf), where=each != 0)
    return len(each) / inverse.sum(0)


def close(values: Mapping[str, Float[np.ndarray, "settings facts"]], best: int) -> Bool[np.ndarray, " settings"]:
    """Which settings the facts do not tell from the one numbered `best`, at 95 %, itself included.

    Tukey's jackknife: the difference is computed anew without each fact. A single fact tells nothing apart.
    """
    facts = values[SCORES[0]].shape[1]
    score = harmonic(values)
    if facts < 2:
        return np.ones(len(score), dtype=bool)
    dropped = [harmonic({name: np.delete(values[name], i, 1) for name in SCORES}) for i in range(facts)]
    leads = np.array([one[best] - one for one in dropped])
    error = np.sqrt((facts - 1) / facts * ((leads - leads.mean(0)) ** 2).sum(0))
    return score[best] - score <= stats.t.ppf(0.5 + LEVEL / 2, facts - 1) * error + 1e-9
