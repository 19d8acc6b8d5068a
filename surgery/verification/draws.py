"""Many continuations of each prompt, drawn at temperature 1.

1. Each prompt is read once; its cache is repeated for its draws.
2. A draw's next token is the first whose cumulative probability reaches the draw's next number from [0, 1).
3. The numbers are given, so what a prompt is continued with does not depend on what else is drawn beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from surgery.model import Model
from surgery.predict import end_tokens, text_of
from surgery.tokens import encode, pad

ROWS = 128


def draw(model: Model, prompts: Sequence[str], numbers: Float[np.ndarray, "prompts draws tokens"]) -> list[list[str]]:
    """Continue each prompt several times, to the model's end token or last position.

    Args:
        model: the model that speaks.
        prompts: what it continues, all shorter than it can read.
        numbers: for each token of each draw, where in the cumulative distribution it falls, at least 0 and below 1.

    Returns:
        for each prompt its continuations alone, without special tokens.
    """
    said: list[list[str]] = []
    step = max(1, ROWS // numbers.shape[1])
    for start in range(0, len(prompts), step):
        part = prompts[start : start + step]
        texts = iter(_drawn(model, part, numbers[start : start + step]))
        said += [[next(texts) for _ in range(numbers.shape[1])] for _ in part]
    return said


@torch.no_grad()
def _drawn(model: Model, prompts: Sequence[str], numbers: Float[np.ndarray, "prompts draws tokens"]) -> list[str]:
    draws, most = numbers.shape[1:]
    flat = torch.from_numpy(numbers.reshape(-1, most)).to(model.device)
    batch = pad([encode(model.tokenizer, prompt).ids for prompt in prompts], side="left", device=model.device)
    inputs: dict[str, Any] = {**model.inputs(batch), "use_cache": True}
    if (limit := model.anatomy.max_positions) is not None:
        most = min(most, limit - batch.ids.shape[1] + 1)
    ends = torch.tensor(sorted(end_tokens(model)), dtype=torch.long, device=model.device)
    going = torch.ones(len(flat), dtype=torch.bool, device=model.device)
    said: list[list[int]] = [[] for _ in flat]
    for i in range(most):
        out = model.hf.base_model(**inputs)
        logits = model.anatomy.head(out.last_hidden_state[:, -1]).float()
        chosen = _choose(logits.repeat_interleave(draws, 0) if i == 0 else logits, flat[:, i])
        going &= ~torch.isin(chosen, ends)
        for row in going.nonzero()[:, 0].tolist():
            said[row].append(int(chosen[row]))
        if not going.any():
            break
        cache = out.past_key_values
        if i == 0:
            cache.batch_repeat_interleave(draws)
            inputs = {
                key: value.repeat_interleave(draws, 0) if isinstance(value, Tensor) else value
                for key, value in inputs.items()
            }
        inputs |= {"input_ids": chosen[:, None], "past_key_values": cache}
        inputs["attention_mask"] = torch.nn.functional.pad(inputs["attention_mask"], (0, 1), value=1)
        if "position_ids" in inputs:
            inputs["position_ids"] = inputs["position_ids"][:, -1:] + 1
    return [text_of(model, ids) for ids in said]


def _choose(logits: Float[Tensor, "rows vocab"], numbers: Float[Tensor, " rows"]) -> Int[Tensor, " rows"]:
    sums = logits.softmax(-1).cumsum(-1)
    # the last sum is 1 but for rounding; right=True passes over tokens of probability 0
    found = torch.searchsorted(sums, (numbers.to(sums) * sums[:, -1])[:, None], right=True)[:, 0]
    return found.clamp(max=logits.shape[-1] - 1)
