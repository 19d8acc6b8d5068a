"""How likely a model finds texts and answers, token by token, sorted by length so that little is padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float

from surgery.batching import by_length
from surgery.model import Model
from surgery.products import fast_products
from surgery.tokens import ask, encode, pad

ROWS = 32
POSITIONS = 512
"""Positions whose logits stand in memory at a time."""


@dataclass(frozen=True, eq=False)
class Likelihood:
    """How likely some tokens are, each given all before it.

    Attributes:
        log_probs: of each token, in nats.
        greedy: whether each is the likeliest at its place.
    """

    log_probs: Float[np.ndarray, " tokens"]
    greedy: Bool[np.ndarray, " tokens"]


def text_likelihoods(model: Model, texts: Sequence[str], *, most: int | None = None) -> list[Likelihood]:
    """Of the tokens of each text but the first, which nothing precedes.

    Args:
        model: the model.
        texts: each with at least one token.
        most: tokens of a text that are looked at; None for all.
    """
    return _likelihoods(model, [(encode(model.tokenizer, text).ids[:most], 1) for text in texts])


def answer_likelihoods(model: Model, asked: Sequence[tuple[str, str]]) -> list[Likelihood]:
    """Of the tokens of each answer after its prompt.

    Raises:
        SurgeryError: a prompt or an answer has no tokens.
    """
    questions = [ask(model.tokenizer, prompt, answer) for prompt, answer in asked]
    return _likelihoods(model, [(question.ids, question.answer_start) for question in questions])


@torch.no_grad()
def _likelihoods(model: Model, rows: Sequence[tuple[tuple[int, ...], int]]) -> list[Likelihood]:
    """Of the tokens of each row from a position on.

    A row's last token is predicted, not read: rows that differ in it alone are read once.
    """
    of_row: dict[tuple[int, ...], list[int]] = {}
    for i, (ids, _) in enumerate(rows):
        of_row.setdefault(ids[:-1], []).append(i)
    read = [ids for ids in of_row if ids]
    found = dict.fromkeys(range(len(rows)), Likelihood(np.zeros(0), np.zeros(0, dtype=bool)))
    with fast_products(model.hf):
        for batch in by_length(read, ROWS):
            part = [read[i] for i in batch]
            states = model.normed_states(pad(part, device=model.device))
            owners = [(at, i) for at, ids in enumerate(part) for i in of_row[ids]]
            picked = torch.cat([states[at, rows[i][1] - 1 : len(part[at])] for at, i in owners])
            wanted = [rows[i][0][rows[i][1] :] for _, i in owners]
            numbers, tops = _read(model, picked, [token for own in wanted for token in own])
            ends = np.cumsum([len(own) for own in wanted])[:-1]
            each = zip(owners, np.split(numbers, ends), np.split(tops, ends), strict=True)
            found.update((i, Likelihood(own, top)) for (_, i), own, top in each)
    return [found[i] for i in range(len(rows))]


def _read(
    model: Model, states: Float[torch.Tensor, "tokens d_model"], ids: Sequence[int]
) -> tuple[Float[np.ndarray, " tokens"], Bool[np.ndarray, " tokens"]]:
    """Log-probability of the token wanted at each place, and whether it is the likeliest."""
    wanted = torch.tensor(ids, device=states.device)
    numbers, tops = [], []
    for some, own in zip(states.split(POSITIONS), wanted.split(POSITIONS), strict=True):
        logits = model.anatomy.head(some).float()
        numbers.append(logits.log_softmax(-1).gather(1, own[:, None])[:, 0].double().cpu().numpy())
        tops.append((logits.argmax(-1) == own).cpu().numpy())
    return np.concatenate(numbers), np.concatenate(tops)
