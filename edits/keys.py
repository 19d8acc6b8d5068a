"""Keys: what the edited matrix sees when the model has just read a subject.

Meng et al. 2022, eq. 3: the key k* is the input of a down-projection at the subject's last token, averaged over
contexts in front of the prompt, so that the edit belongs to the subject and not to one sentence. The same k* is used in
the direction, the denominator and the old value: the published code mixes two keys there, which collapses models
(Gupta et al. 2024, https://arxiv.org/abs/2403.07175).
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from surgery.fact import SLOT
from surgery.hooks import Trace, hidden
from surgery.model import Model
from surgery.predict import generate
from surgery.tokens import Batch

STARTS = ("The", "Therefore", "Because", "I", "You")


def sample_contexts(model: Model, *, count: int = 10, length: int = 8, seed: int = 1) -> tuple[str, ...]:
    """Contexts to read a prompt in: the bare prompt, and `count` beginnings the model makes up itself.

    Args:
        model: who makes them up.
        count: how many besides the bare prompt.
        length: tokens each, after its first word.
        seed: of the draws, which are among the five likeliest tokens.

    Returns:
        texts that end with `{}`, the bare `{}` first.
    """
    random = np.random.RandomState(seed)
    made: list[str] = [SLOT]
    starts = [STARTS[i % len(STARTS)] for i in range(count)]
    said = generate(model, starts, length, random=random, top_k=5) if count else []
    for start, text in zip(starts, said, strict=True):
        line = " ".join((start + text).replace(SLOT, "").split())
        made.append(f"{line}. {SLOT}")
    return tuple(made)


@torch.no_grad()
def keys_at(model: Model, module: str, batch: Batch, columns: Int[Tensor, " batch"]) -> Float[Tensor, "batch d_ff"]:
    """Inputs of a linear map at one column a row, in float32."""
    with Trace(model.hf, module, retain_output=False, retain_input=True, stop=True) as trace:
        model.hf(**model.inputs(batch))
    return hidden(trace.input, len(columns))[torch.arange(len(columns)), columns].float()
