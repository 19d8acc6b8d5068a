"""CounterFact's scores, over facts that a model prefers the true answer of.

A prompt counts as rewritten where the new answer is likelier than the true one, by mean negative log-likelihood a
token; a neighbour counts as kept where its true answer is. Exact: the new answer is what greedy decoding says.
(Meng et al. 2022, section 3.2, https://arxiv.org/abs/2202.05262.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from scipy import stats

from surgery import Fact, Model, read_facts
from surgery.predict import answer_logits
from surgery.products import fast_products
from surgery.tokens import ask

COLUMNS = ("rewrite", "exact", "paraphrase", "neighbourhood")
ROWS = 40
RESAMPLES = 2000


@torch.no_grad()
def likelihoods(model: Model, asked: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
    """For each prompt and answer: mean negative log-likelihood a token, and whether greedy decoding says it."""
    questions = [ask(model.tokenizer, prompt, answer) for prompt, answer in asked]
    order = sorted(range(len(questions)), key=lambda i: len(questions[i].ids))
    found: dict[int, tuple[float, bool]] = {}
    with fast_products(model.device, model.dtype):
        for start in range(0, len(order), ROWS):
            part = order[start : start + ROWS]
            for i, logits in zip(part, answer_logits(model, [questions[i] for i in part]), strict=True):
                ids = torch.tensor(questions[i].answer_ids, device=logits.device)
                own = logits.log_softmax(-1).gather(1, ids[:, None])
                found[i] = -float(own.mean()), bool((logits.argmax(1) == ids).all())
    return [found[i] for i in range(len(asked))]


def score(model: Model, fact: Fact) -> Float[np.ndarray, " columns"]:
    """The four scores of one fact, each from 0 to 1, on the model as it is."""
    assert fact.new_target is not None
    prompts = [fact.prompt, *fact.paraphrases, *(one.prompt for one in fact.neighbours)]
    found = likelihoods(model, [(prompt, answer) for prompt in prompts for answer in (fact.target, fact.new_target)])
    new = np.array([found[2 * i + 1][0] < found[2 * i][0] for i in range(len(prompts))], dtype=float)
    after = 1 + len(fact.paraphrases)
    return np.array([new[0], float(found[1][1]), new[1:after].mean(), 1 - new[after:].mean()])


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


def harmonic(scores: Float[np.ndarray, "facts columns"]) -> float:
    """Harmonic mean of rewrite, paraphrase and neighbourhood."""
    means = scores.mean(0)[[0, 2, 3]]
    return 0.0 if means.min() <= 0 else float(stats.hmean(means))


def summary(scores: Float[np.ndarray, "facts columns"], seed: int = 0) -> dict[str, tuple[float, float, float]]:
    """Each score's mean with its 95 % interval, in per cent: of the bootstrap over facts, 2,000 draws."""
    random = np.random.RandomState(seed)
    draws = [scores[random.randint(len(scores), size=len(scores))] for _ in range(RESAMPLES)]
    made = {}
    for i, name in enumerate(COLUMNS):
        low, high = np.percentile([one[:, i].mean() for one in draws], [2.5, 97.5])
        made[name] = (100 * float(scores[:, i].mean()), 100 * low, 100 * high)
    low, high = np.percentile([harmonic(one) for one in draws], [2.5, 97.5])
    made["harmonic"] = (100 * harmonic(scores), 100 * low, 100 * high)
    return made
