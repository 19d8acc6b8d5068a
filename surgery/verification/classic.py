"""The classic scores of rewrites, as published with CounterFact (Meng et al. 2022, https://arxiv.org/abs/2202.05262).

1. An answer's likelihood is by its mean negative log-likelihood a token, L. Rewrite and paraphrase success: share of
   prompts with L(new) < L(old). Neighbourhood success: share of neighbours whose own answer has L(own) < L(new).
2. Magnitudes: the mean of e^-L(new) - e^-L(old), and of e^-L(own) - e^-L(new) for neighbours.
3. The score is the harmonic mean of the three successes. Exact: greedy decoding says the new answer (not published).
4. Fluency: H_2 and H_3 are the entropies, in bits, of a text's bigrams and trigrams of words, weighted by 2/3 and 4/3;
   their mean, times 100. Texts are a prompt with its continuation, 100 tokens in all, as published.
5. Consistency: cosine of the TF-IDF vectors of what was said about a fact and of reference texts. Published are
   articles on others with the new answer; here what the model says of such neighbours stands for them (`beside`).

TF-IDF is the smoothed one, ln((1 + n) / (1 + df)) + 1 on counts of words of two letters or more, as scikit-learn's
default has it; a dozen lines here are less than that dependency. Words are runs of letters and digits, and single
punctuation marks: close to, not the same as, the published tokeniser (Penn Treebank's).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

from surgery.errors import SurgeryError
from surgery.fact import Fact
from surgery.likelihood import answer_likelihoods
from surgery.model import Model
from surgery.numbers import Interval, json_values, student, wilson
from surgery.predict import continued_together, generate
from surgery.tokens import encode

COLUMNS = ("rewrite", "exact", "paraphrase", "neighbourhood")
PUBLISHED = [0, 2, 3]
ROWS = 40
RESAMPLES = 2000
LENGTH = 100
GRAMS = ((2, 2 / 3), (3, 4 / 3))


@dataclass(frozen=True, eq=False)
class Classic:
    """CounterFact's scores of some facts.

    Attributes:
        successes: in the order of `COLUMNS`, each from 0 to 1; nan where a fact has no paraphrases or neighbours.
        magnitudes: of rewrite, paraphrase and neighbourhood, -1 to 1.
    """

    successes: Float[np.ndarray, "facts 4"]
    magnitudes: Float[np.ndarray, "_ 3"]

    def __post_init__(self) -> None:
        if len(self.successes) != len(self.magnitudes):
            raise SurgeryError(f"{len(self.successes)} successes are not of {len(self.magnitudes)} facts")

    def summary(self, seed: int = 0) -> dict[str, Interval]:
        """Means over facts with 95 % intervals: Wilson's of shares, Student's of magnitudes, and of their harmonic mean
        the bootstrap's, as no formula is known for it.
        """
        found = {name: wilson(self.successes[:, i].tolist()) for i, name in enumerate(COLUMNS)}
        for i, column in enumerate(PUBLISHED):
            found[f"{COLUMNS[column]} magnitude"] = student(self.magnitudes[:, i].tolist(), least=-1.0, most=1.0)
        return {**found, "harmonic": bootstrapped(self.successes, seed)}

    def as_record(self) -> dict[str, Any]:
        """The summary, as JSON values."""
        return json_values(self.summary())


def score(model: Model, facts: Sequence[Fact]) -> Classic:
    """The scores of each fact on the model as it is.

    Raises:
        SurgeryError: a fact has no new answer.
    """
    if without := next((fact for fact in facts if fact.new_target is None), None):
        raise SurgeryError(f"{without.label!r} has no new_target, so it was not rewritten; give one")
    prompts = [[fact.prompt, *fact.paraphrases, *(one.prompt for one in fact.neighbours)] for fact in facts]
    olds = [[fact.target] * (1 + len(fact.paraphrases)) + [one.target for one in fact.neighbours] for fact in facts]
    asked = [
        (prompt, answer)
        for fact, rows, own in zip(facts, prompts, olds, strict=True)
        for prompt, old in zip(rows, own, strict=True)
        for answer in (old, str(fact.new_target))
    ]
    found = iter(likelihoods(model, asked))
    successes, magnitudes = [], []
    for fact, rows in zip(facts, prompts, strict=True):
        pairs = [(next(found), next(found)) for _ in rows]
        ahead = np.array([math.exp(-new[0]) - math.exp(-old[0]) for old, new in pairs])
        wins = np.array([new[0] < old[0] for old, new in pairs], dtype=float)
        own, after = slice(1, 1 + len(fact.paraphrases)), slice(1 + len(fact.paraphrases), None)
        successes.append([wins[0], float(pairs[0][1][1]), _mean(wins[own]), _mean(1 - wins[after])])
        magnitudes.append([ahead[0], _mean(ahead[own]), _mean(-ahead[after])])
    return Classic(np.array(successes).reshape(-1, 4), np.array(magnitudes).reshape(-1, 3))


def likelihoods(model: Model, asked: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
    """For each prompt and answer: mean negative log-likelihood a token, and whether greedy decoding says it."""
    return [(-float(one.log_probs.mean()), bool(one.greedy.all())) for one in answer_likelihoods(model, asked)]


def harmonic(successes: Float[np.ndarray, "facts 4"]) -> float:
    """Harmonic mean of the means of rewrite, paraphrase and neighbourhood; nan where one was not measured."""
    means = np.array([_mean(column[~np.isnan(column)]) for column in successes[:, PUBLISHED].T])
    if np.isnan(means).any():
        return math.nan
    return 0.0 if means.min() <= 0 else float(stats.hmean(means))


def bootstrapped(successes: Float[np.ndarray, "facts 4"], seed: int = 0) -> Interval:
    """The harmonic mean with its 95 % interval, by 2,000 draws of the facts."""
    count = len(successes)
    if count < 2:
        return Interval(harmonic(successes), math.nan, math.nan, count)
    random = np.random.RandomState(seed)
    draws = [harmonic(successes[random.randint(count, size=count)]) for _ in range(RESAMPLES)]
    known = [one for one in draws if not math.isnan(one)] or [math.nan]
    low, high = np.percentile(known, [2.5, 97.5])
    return Interval(harmonic(successes), float(low), float(high), count)


def told_on(
    model: Model, prompts: Sequence[str], *, length: int = LENGTH, seed: int | None = None, top_k: int = 5
) -> list[str]:
    """Prompts with their continuations, so many tokens in all.

    Args:
        model: the model that speaks.
        prompts: what it goes on from.
        length: tokens of the whole text.
        seed: of draws among the likeliest tokens, as published; None is greedy.
        top_k: among how many.
    """
    ids = [encode(model.tokenizer, prompt).ids for prompt in prompts]
    random = None if seed is None else np.random.RandomState(seed)
    texts = [""] * len(prompts)
    for rows in continued_together(model, ids, length, ROWS):
        most = max(length - len(ids[rows[0]]), 1)
        said = generate(model, [prompts[i] for i in rows], most, random=random, top_k=top_k if random else None)
        for i, text in zip(rows, said, strict=True):
            whole = encode(model.tokenizer, _joined(prompts[i], text))
            texts[i] = whole.text[: whole.offsets[min(length, len(whole.ids)) - 1][1]]
    return texts


def fluency(texts: Sequence[str]) -> Interval:
    """Mean n-gram entropy of some texts, with Student's 95 % interval; English prose of 100 tokens has some 620."""
    return student([ngram_entropy(text) for text in texts], least=0.0)


def ngram_entropy(text: str) -> float:
    """Weighted entropy of a text's bigrams and trigrams, in hundredths of a bit; 0 for one too short to have any."""
    words, found = re.findall(r"\w+|[^\w\s]", text), 0.0
    for n, weight in GRAMS:
        counts = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
        shares = np.array(list(counts.values()), dtype=float) / max(counts.total(), 1)
        found -= weight * float((shares * np.log2(shares)).sum())
    return max(100 * found / len(GRAMS), 0.0)


def consistency(texts: Sequence[str], references: Sequence[str], corpus: Sequence[str] | None = None) -> float:
    """How far texts about a fact use the words of reference texts about its new answer, 0 to 1.

    Args:
        texts: what the model said about the fact.
        references: texts about others with the fact's new answer.
        corpus: documents that tell how rare a word is; None for the references.

    Raises:
        SurgeryError: there are no references.
    """
    if not references:
        raise SurgeryError("there are no reference texts to compare with; give some about the new answer")
    documents = [set(_words(text)) for text in (references if corpus is None else corpus)]
    sides = [Counter(_words(" ".join(some))) for some in (texts, references)]
    vectors = []
    words = sorted(set(sides[0]) | set(sides[1]))
    rare = [math.log((1 + len(documents)) / (1 + sum(word in one for one in documents))) + 1 for word in words]
    for side in sides:
        vectors.append(np.array([side[word] for word in words], dtype=float) * np.array(rare))
    lengths = [float(np.linalg.norm(one)) for one in vectors]
    return float(vectors[0] @ vectors[1] / (lengths[0] * lengths[1])) if min(lengths) > 0 else 0.0


def _words(text: str) -> list[str]:
    return re.findall(r"\b\w\w+\b", text.lower())


def _joined(prompt: str, text: str) -> str:
    # some tokenizers leave a continuation's first space away
    return prompt + ("" if not text or text[0].isspace() or not text[0].isalnum() else " ") + text


def _mean(values: Float[np.ndarray, " some"]) -> float:
    return float(values.mean()) if len(values) else math.nan
