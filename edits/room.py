"""How much goes through a model together where gradients are wanted."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from edits.reading import Rows
from surgery.batching import RUN, in_batches
from surgery.model import Model

CPU_TOKENS = 512
"""More tokens at once make products no faster on a processor, and facts of fewer lengths waste fewer of them."""
GPU_WORK, GPU_LEAST = 2**24, 2**23
"""Of a GPU, numbers a state that go together at most; and at least, for it to be busy as long as it takes to be told of
them. Of a model 4096 wide: 4096 and 2048 tokens."""


def room_for_tokens(model: Model) -> int:
    """Tokens that go through the model together: enough to fill it, and no more than fit with what gradients keep."""
    if model.device.type != "cuda":
        return CPU_TOKENS
    a = model.anatomy
    # what autograd keeps of a block: about ten states and four inner activations a token
    each = len(a.layers) * (10 * a.d_model + 4 * a.d_ff) * model.dtype.itemsize
    fits = int(0.6 * torch.cuda.mem_get_info(model.device)[0] / each)
    return max(CPU_TOKENS, min(fits, GPU_WORK // a.d_model))


def in_chunks(model: Model, groups: Sequence[Rows]) -> list[list[int]]:
    """Which groups are searched together: of similar length, and as many as there is room for, or one alone."""
    gpu, d_model = model.device.type == "cuda", model.anatomy.d_model
    run, least = (0, GPU_LEAST // d_model) if gpu else (RUN, 0)
    tails, counts = [rows.tail for rows in groups], [len(rows.ids) for rows in groups]
    return in_batches(tails, counts, tokens=room_for_tokens(model), run=run, least=least)
