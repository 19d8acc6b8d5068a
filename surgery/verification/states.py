"""What a model's layers hold at the last token of some texts; nothing of the other positions is kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from surgery.hooks import TraceDict, hidden
from surgery.model import Model
from surgery.tokens import pad


@torch.no_grad()
def last_states(
    model: Model, rows: Sequence[Sequence[int]], layers: Sequence[int]
) -> Float[Tensor, "rows layers d_model"]:
    """The states after some layers at each row's last token.

    Args:
        model: the model.
        rows: token ids of the texts, read as one batch.
        layers: which layers, in the order wanted.
    """
    names = [model.anatomy.names("state")[layer] for layer in layers]
    batch = pad(rows, device=model.device)
    ends, places = batch.columns([-1] * len(rows)), torch.arange(len(rows), device=model.device)
    found: dict[str, Tensor] = {}

    def pick(output: Any, name: str) -> Any:
        found[name] = hidden(output, len(rows))[places, ends]
        return output

    with TraceDict(model.hf, names, retain_output=False, edit_output=pick, stop=True):
        model.normed_states(batch)
    return torch.stack([found[name] for name in names], 1)
