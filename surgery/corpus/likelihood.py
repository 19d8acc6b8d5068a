"""How likely a model finds texts and answers, token by token, sorted by length so that little is padding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float

from surgery.model import Model
from surgery.products import fast_products
from surgery.tokens import ask, encode, pad

ROWS = 32


def token_log_probs(model: Model, texts: Sequence[str]) -> list[Float[np.ndarray, " tokens"]]:
    """Log-probability of each token of each text but the first, in nats."""
    rows = [encode(model.tokenizer, text).ids for text in texts]
    return _log_probs(model, [(ids, 1) for ids in rows])


def answer_log_probs(model: Model, asked: Sequence[tuple[str, str]]) -> Float[np.ndarray, " asked"]:
    """Mean log-probability a token of each answer after its prompt, in nats.

    Raises:
        SurgeryError: a prompt or an answer has no tokens.
    """
    questions = [ask(model.tokenizer, prompt, answer) for prompt, answer in asked]
    found = _log_probs(model, [(question.ids, question.answer_start) for question in questions])
    return np.array([one.mean() for one in found])


@torch.no_grad()
def _log_probs(model: Model, rows: Sequence[tuple[tuple[int, ...], int]]) -> list[Float[np.ndarray, " tokens"]]:
    """Of the tokens of each row from a position on.

    A row's last token is predicted, not read: rows that differ in it alone are read once.
    """
    of_row: dict[tuple[int, ...], dict[int, list[int]]] = {}
    for i, (ids, begin) in enumerate(rows):
        of_row.setdefault(ids[:-1], {}).setdefault(begin, []).append(i)
    order = sorted((ids for ids in of_row if ids), key=len)
    found = dict.fromkeys(range(len(rows)), np.zeros(0))
    with fast_products(model.device, model.dtype):
        for start in range(0, len(order), ROWS):
            part = order[start : start + ROWS]
            states = model.normed_states(pad(part, device=model.device))
            for at, ids in enumerate(part):
                for begin, owners in of_row[ids].items():
                    said = model.anatomy.head(states[at, begin - 1 : len(ids)]).float().log_softmax(-1)
                    wanted = torch.tensor([rows[i][0][begin:] for i in owners], device=said.device)
                    own = said.gather(1, wanted.T).double().cpu().numpy()
                    found.update(zip(owners, own.T, strict=True))
    return [found[i] for i in range(len(rows))]
