"""How well a model tells a fact: the loss a mask is learned with and a fact is planted with."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy

from surgery.errors import SurgeryError
from surgery.model import Model
from surgery.tokens import Question, pad

Told = Literal["answer", "all"]


def check_told(told: str) -> None:
    """Refuse what is not a choice of tokens.

    Raises:
        SurgeryError: there is no such choice.
    """
    if told not in get_args(Told):
        raise SurgeryError(f"there are no tokens {told!r} to tell; choose 'answer' or 'all'")


def telling_loss(model: Model, question: Question, told: Told) -> tuple[Float[Tensor, ""], bool]:
    """Mean negative log probability of the tokens told, in nats, and whether each of them is the likeliest.

    They are the answer's, or all of prompt and answer but the first, which nothing comes before.
    """
    first = question.answer_start if told == "answer" else 1
    wanted = torch.tensor(question.ids[first:], device=model.device)
    batch = pad([question.ids[:-1]], device=model.device)
    logits = model.anatomy.head(model.normed_states(batch)[0, first - 1 :]).float()
    return cross_entropy(logits, wanted), bool((logits.detach().argmax(-1) == wanted).all())
