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

from edits.scores import intervals
from surgery import Fact, Model, read_facts
from surgery.products import fast_products
from surgery.tokens import ask, pad

COLUMNS = ("rewrite", "exact", "paraphrase", "neighbourhood")
ROWS = 40
RESAMPLES = 2000


@torch.no_grad()
def likelihoods(model: Model, asked: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
    """For each prompt and answer: mean negative log-likelihood a token, and whether greedy decoding says it.

    An answer's last token is not read, only predicted, so one row serves all answers of one token to a prompt.
    """
    questions = [ask(model.tokenizer, prompt, answer) for prompt, answer in asked]
    of_row: dict[tuple[int, ...], list[int]] = {}
    for i, question in enumerate(questions):
        of_row.setdefault(question.ids[:-1], []).append(i)
    order = sorted(of_row, key=len)
    found: dict[int, tuple[float, bool]] = {}
    with fast_products(model.device, model.dtype):
        for start in range(0, len(order), ROWS):
            rows = order[start : start + ROWS]
            states = model.normed_states(pad(rows, device=model.device))
            owners = [(at, i) for at, ids in enumerate(rows) for i in of_row[ids]]
            picked = [states[at, questions[i].answer_start - 1 : len(questions[i].ids) - 1] for at, i in owners]
            logits = model.anatomy.head(torch.cat(picked)).float().split([len(one) for one in picked])
            for (_, i), one in zip(owners, logits, strict=True):
                answer = torch.tensor(questions[i].answer_ids, device=model.device)
                own = one.log_softmax(-1).gather(1, answer[:, None])
                found[i] = -float(own.mean()), bool((one.argmax(1) == answer).all())
    return [found[i] for i in range(len(asked))]


def score(model: Model, facts: Sequence[Fact]) -> Float[np.ndarray, "facts columns"]:
    """The four scores of each fact, each from 0 to 1, on the model as it is."""
    prompts = [[fact.prompt, *fact.paraphrases, *(one.prompt for one in fact.neighbours)] for fact in facts]
    answers = [(fact.target, str(fact.new_target)) for fact in facts]
    asked = [(prompt, one) for rows, pair in zip(prompts, answers, strict=True) for prompt in rows for one in pair]
    found, made = iter(likelihoods(model, asked)), []
    for fact, rows in zip(facts, prompts, strict=True):
        pairs = [(next(found), next(found)) for _ in rows]
        new = np.array([other[0] < true[0] for true, other in pairs], dtype=float)
        after = 1 + len(fact.paraphrases)
        made.append([new[0], float(pairs[0][1][1]), new[1:after].mean(), 1 - new[after:].mean()])
    return np.array(made)


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
    """Each score's mean with its 95 % interval, in per cent.

    Of the shares, Wilson's over facts (`edits.scores`), which has a width also where all facts agree; of the harmonic
    mean, the bootstrap's over facts, 2,000 draws.
    """
    made = {}
    means, (lows, highs) = scores.mean(0), intervals(scores.T)
    for i, name in enumerate(COLUMNS):
        made[name] = (100 * float(means[i]), 100 * float(lows[i]), 100 * float(highs[i]))
    random = np.random.RandomState(seed)
    draws = [harmonic(scores[random.randint(len(scores), size=len(scores))]) for _ in range(RESAMPLES)]
    low, high = np.percentile(draws, [2.5, 97.5])
    made["harmonic"] = (100 * harmonic(scores), 100 * float(low), 100 * float(high))
    return made
