"""Drift: how far an edit moves the next-token distribution on text that has nothing to do with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from surgery.batching import by_length
from surgery.model import Model
from surgery.products import fast_products
from surgery.tokens import encode, pad

ROWS = 16
POSITIONS = 512
"""Positions whose logits are made at a time."""


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
        loss_error: standard error, over texts, of the change of the perplexity's logarithm.
    """

    divergence: float
    error: float
    changed: float
    texts: int
    tokens: int
    perplexity: tuple[float, float]
    loss_error: float = math.nan


@torch.no_grad()
def log_probs(model: Model, texts: Sequence[str]) -> list[Float[Tensor, "tokens vocab"]]:
    """Next-token log-probabilities after each token of each text, in float32."""
    found: dict[int, Float[Tensor, "tokens vocab"]] = {}
    rows = [encode(model.tokenizer, text).ids for text in texts]
    with fast_products(model.hf):
        for part in by_length(rows, ROWS):
            states = model.normed_states(pad([rows[i] for i in part], device=model.device))
            lengths = [len(rows[i]) for i in part]
            said = torch.cat([own[:length] for own, length in zip(states, lengths, strict=True)]).split(POSITIONS)
            logs = torch.cat([model.anatomy.head(some).float().log_softmax(-1) for some in said])
            found.update(zip(part, logs.split(lengths), strict=True))
    return [found[i] for i in range(len(rows))]


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
    n, error = len(pairs), _error_of_ratio(sums, counts)
    changed = sum(int((p.argmax(-1) != q.argmax(-1)).sum()) for p, q in pairs)
    (old, scored), (new, _) = _losses(model, texts, before), _losses(model, texts, after)
    perplexities = _perplexity(old, scored), _perplexity(new, scored)
    loss_error = _error_of_ratio(new - old, scored)
    return Drift(max(mean, 0.0), error, changed / float(counts.sum()), n, int(counts.sum()), perplexities, loss_error)


def perplexity(model: Model, texts: Sequence[str]) -> float:
    """exp of the mean negative log-likelihood of a token, over all tokens of the texts that have one before them."""
    return _perplexity(*_losses(model, texts, log_probs(model, texts)))


def _losses(
    model: Model, texts: Sequence[str], rows: Sequence[Float[Tensor, "_ vocab"]]
) -> tuple[Float[Tensor, " texts"], Float[Tensor, " texts"]]:
    """Each text's negative log-likelihood, and of how many tokens."""
    losses, counts = [], []
    for text, own in zip(texts, rows, strict=True):
        ids = torch.tensor(encode(model.tokenizer, text).ids[1:], device=own.device)
        losses.append(-float(own[:-1].gather(1, ids[:, None]).double().sum()))
        counts.append(len(ids))
    return torch.tensor(losses, dtype=torch.float64), torch.tensor(counts, dtype=torch.float64)


def _perplexity(losses: Float[Tensor, " texts"], counts: Float[Tensor, " texts"]) -> float:
    return math.exp(min(float(losses.sum() / counts.sum()), 700.0)) if counts.sum() else float("nan")


def _error_of_ratio(sums: Float[Tensor, " texts"], counts: Float[Tensor, " texts"]) -> float:
    """Standard error of sum / count: by the deviations of each text's sum from what its length predicts."""
    n, total = len(sums), counts.sum().clamp_min(1)
    rest = sums - sums.sum() / total * counts
    return float(rest.square().sum().sqrt() / total * (n / max(n - 1, 1)) ** 0.5)
