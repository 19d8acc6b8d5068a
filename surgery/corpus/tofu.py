"""Truth ratios, and whether they tell a model that forgot from one that never knew.

Maini et al. 2024, "TOFU" (https://arxiv.org/abs/2401.06121, sections 2.2 and 2.3):
1. R = mean over perturbed answers of p(a_pert | q)^(1/|a|), by p(a_para | q)^(1/|a|): wrong answers against the true
   one, both in words that were not taught, each probability a token's. Far below 1: the model knows. Kept as log R.
2. Forget quality: the p value of a two-sample Kolmogorov-Smirnov test between R on the forget set of the model after
   removal and of one that was never trained on it. Above 0.05 the two cannot be told apart.
3. One fact gives one R, and then a test between samples means nothing. Instead its mean log R over phrasings is held
   against that of subjects no model knows, in the same words, by a permutation test.

The paper averages probabilities; its code averages the perturbed answers' losses before it exponentiates (a geometric
mean) and divides the other way round, exp(mean loss perturbed - loss true). Turning R over leaves the test as it is,
the other mean does not quite. This follows the paper. In log R, a known fact is strongly negative.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import logsumexp
from scipy.stats import ks_2samp

from surgery.corpus.invented import Corpus, Person, invented_subjects
from surgery.errors import SurgeryError, check_choice
from surgery.fact import SLOT, Fact
from surgery.likelihood import answer_likelihoods
from surgery.model import Model
from surgery.verification.controls import with_subject

SIDES = ("below", "above", "either")
FEWEST_CONTROLS = 19
"""With fewer, no p value of one fact is below 0.05."""


@dataclass(frozen=True)
class Difference:
    """How far a group stands from others, by a permutation test.

    Attributes:
        value: the group's mean.
        others: the others' mean.
        effect: the difference of the means in standard deviations of the others; nan where these are all alike.
        p: share of all ways to draw a group of that size that stand out as much or more.
        side: where to.
        draws: how many ways were looked at.
    """

    value: float
    others: float
    effect: float
    p: float
    side: str
    draws: int

    def __post_init__(self) -> None:
        if not 0 < self.p <= 1:
            raise SurgeryError(f"a p value of {self.p} is none; it lies above 0 and at most at 1")


def log_truth_ratios(model: Model, corpus: Corpus, people: Sequence[Person]) -> Float[np.ndarray, " queries"]:
    """log R of every query about some people, on the model as it is."""
    cases = [
        (corpus.form.replace(SLOT, query.question), query.paraphrased, query.perturbed)
        for person in people
        for query in person.queries
    ]
    return _log_ratios(model, cases)


def forget_quality(found: Float[np.ndarray, " n"], reference: Float[np.ndarray, " m"]) -> tuple[float, float]:
    """The Kolmogorov-Smirnov statistic of two samples of log truth ratios, and its p value.

    Raises:
        SurgeryError: a sample is too small for such a test.
    """
    if min(len(found), len(reference)) < 2:
        raise SurgeryError("forget quality compares samples; for a single fact, use truth_ratio_test")
    test = ks_2samp(found, reference)
    return float(test.statistic), float(test.pvalue)


def truth_ratio_test(
    model: Model,
    fact: Fact,
    wrong: Sequence[str],
    controls: Sequence[Fact] | None = None,
    *,
    side: str = "below",
) -> Difference:
    """Whether a model prefers a fact's answer more than it would of a subject it cannot know.

    Args:
        model: the model as it is, after a removal or before.
        fact: the fact; its prompt and paraphrases are asked.
        wrong: answers of the same kind that are not true.
        controls: the same fact about other subjects; None for 50 invented people, which suit facts about people.
        side: "below" finds facts that are still known, "above" ones whose answer is avoided, "either" both.

    Raises:
        SurgeryError: no wrong answer, the true one among them, no subject, or too few controls.
    """
    if not wrong or fact.target in wrong:
        raise SurgeryError(f"{fact.label!r} needs wrong answers, {fact.target!r} not among them")
    if controls is None:
        if not fact.subject:
            raise SurgeryError(f"{fact.label!r} has no subject to put another in the place of; give its controls")
        controls = [with_subject(fact, name) for name in invented_subjects(50, without=(fact.subject,))]
    if len(controls) < FEWEST_CONTROLS:
        raise SurgeryError(f"{len(controls)} controls are too few for a p value; give at least {FEWEST_CONTROLS}")
    asked = [[one.prompt, *one.paraphrases] for one in (fact, *controls)]
    cases = [(prompt, fact.target, tuple(wrong)) for prompts in asked for prompt in prompts]
    ratios = iter(_log_ratios(model, cases))
    means = np.array([np.mean([next(ratios) for _ in prompts]) for prompts in asked])
    return permutation_test(means[:1], means[1:], side=side)


def permutation_test(
    group: Float[np.ndarray, " n"],
    others: Float[np.ndarray, " m"],
    *,
    side: str = "below",
    draws: int = 10_000,
    seed: int = 0,
) -> Difference:
    """How often a group drawn from all of them stands out as much as this one, by the difference of means.

    All ways to draw one are looked at where there are at most `draws`, else so many by the seed, and the group itself.

    Raises:
        SurgeryError: either side is empty or holds nan, or there is no such side.
    """
    check_choice("side", side, SIDES)
    if not len(group) or not len(others) or np.isnan(group).any() or np.isnan(others).any():
        raise SurgeryError("a permutation test needs values on both sides, none of them nan")
    everyone, n = np.concatenate([group, others]), len(group)
    if math.comb(len(everyone), n) <= draws:
        picked = np.array(list(itertools.combinations(range(len(everyone)), n)))
    else:
        random = np.random.RandomState(seed)
        drawn = [random.permutation(len(everyone))[:n] for _ in range(draws)]
        picked = np.array([np.arange(n), *drawn])
    # with the sum of all fixed, a group's mean orders like its difference from the rest
    means = everyone[picked].mean(1) - everyone.mean()
    signed = {"below": -means, "above": means, "either": np.abs(means)}[side]
    own = {"below": -1.0, "above": 1.0}.get(side, math.copysign(1.0, group.mean() - everyone.mean()))
    found = own * (group.mean() - everyone.mean())
    p = float((signed >= found - 1e-12 * max(1.0, np.abs(everyone).max())).mean())
    spread = float(others.std(ddof=1)) if len(others) > 1 else 0.0
    effect = float(group.mean() - others.mean()) / spread if spread > 0 else math.nan
    return Difference(float(group.mean()), float(others.mean()), effect, p, side, len(picked))


def _log_ratios(model: Model, cases: Sequence[tuple[str, str, tuple[str, ...]]]) -> Float[np.ndarray, " cases"]:
    """log R of (prompt, true answer, wrong answers)."""
    asked = [(prompt, answer) for prompt, true, wrong in cases for answer in (true, *wrong)]
    told = iter([one.log_probs.mean() for one in answer_likelihoods(model, asked)])
    ratios = []
    for _, _, wrong in cases:
        true = next(told)
        ratios.append(logsumexp([next(told) for _ in wrong]) - math.log(len(wrong)) - true)
    return np.array(ratios)
