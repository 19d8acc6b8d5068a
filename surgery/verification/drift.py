"""Drift: how far an edit moves the next-token distribution on text that has nothing to do with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from surgery.model import Model
from surgery.tokens import encode, pad

ROWS = 16


@dataclass(frozen=True)
class Drift:
    """Change of next-token distributions on neutral text.

    Attributes:
        divergence: mean KL(before || after) per token, in nats.
        error: its standard error over texts.
        changed: share of tokens whose likeliest successor is another one now.
        texts: how many texts.
        tokens: how many tokens in all.
        perplexity: of the texts, before and after.
    """

    divergence: float
    error: float
    changed: float
    texts: int
    tokens: int
    perplexity: tuple[float, float]


@torch.no_grad()
def log_probs(model: Model, texts: Sequence[str]) -> list[Float[Tensor, "tokens vocab"]]:
    """Next-token log-probabilities after each token of each text, in float32."""
    found: list[Float[Tensor, "tokens vocab"]] = []
    rows = [encode(model.tokenizer, text).ids for text in texts]
    for start in range(0, len(rows), ROWS):
        part = rows[start : start + ROWS]
        states = model.normed_states(pad(part, device=model.device))
        for i, ids in enumerate(part):
            found.append(model.anatomy.head(states[i, : len(ids)]).float().log_softmax(-1))
    return found


def drift(
    model: Model,
    texts: Sequence[str],
    before: Sequence[Float[Tensor, "_ vocab"]],
    after: Sequence[Float[Tensor, "_ vocab"]],
) -> Drift:
    """Compare what `log_probs` gave for some texts before and after an edit."""
    pairs = list(zip(before, after, strict=True))
    sums = torch.tensor([float((p.exp() * (p - q)).sum()) for p, q in pairs], dtype=torch.float64)
    counts = torch.tensor([len(p) for p, _ in pairs], dtype=torch.float64)
    mean = float(sums.sum() / counts.sum())
    # of a ratio of sums: by the deviations of each text's sum from what its length predicts
    n = len(pairs)
    error = float((sums - mean * counts).square().sum().sqrt() / counts.sum() * (n / max(n - 1, 1)) ** 0.5)
    changed = sum(int((p.argmax(-1) != q.argmax(-1)).sum()) for p, q in pairs)
    perplexities = _perplexity(model, texts, before), _perplexity(model, texts, after)
    return Drift(max(mean, 0.0), error, changed / float(counts.sum()), n, int(counts.sum()), perplexities)


def perplexity(model: Model, texts: Sequence[str]) -> float:
    """exp of the mean negative log-likelihood of a token, over all tokens of the texts that have one before them."""
    return _perplexity(model, texts, log_probs(model, texts))


def _perplexity(model: Model, texts: Sequence[str], rows: Sequence[Float[Tensor, "_ vocab"]]) -> float:
    total, count = 0.0, 0
    for text, own in zip(texts, rows, strict=True):
        ids = torch.tensor(encode(model.tokenizer, text).ids[1:], device=own.device)
        total -= float(own[:-1].gather(1, ids[:, None]).double().sum())
        count += len(ids)
    return math.exp(min(total / count, 700.0)) if count else float("nan")
