"""Attention whose heads share keys and values, without a copy of these for each head.

In grouped-query attention (Ainslie et al. 2023, https://arxiv.org/abs/2305.13245), G heads of queries look at one head
of keys and values. Where a mask is given, transformers repeats keys and values G times, since PyTorch's quick kernels
know of no groups then. But the G queries of a position see the same keys through the same mask:

1. They are put below each other, as G times as many positions of one head: [rows, G heads, positions, d_head] becomes
   [rows, heads, G positions, d_head], and the mask is repeated as often.
2. Attention is computed once a head of keys, and the queries are put apart again.

The numbers are the same to rounding. Kernels work through tiles of many queries at a time, so this pays where rows have
few positions, as in a replay: of an 8-billion-parameter model's value search on a GPU, attention took 29 %.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME, USUAL = "surgery_grouped", "sdpa"
ELSEWHERE = ("cache", "position_bias", "softcap", "output_attentions")
"""What transformers' own function looks after, if it is asked for."""


class GroupedAttention(AbstractContextManager[None]):
    """A block, to be entered again and again, in which a model's attention is computed by groups, where it has any.

    Masks must be made outside of it: transformers makes none for attention it does not know.
    """

    def __init__(self, hf: PreTrainedModel) -> None:
        configs: dict[int, Any] = {id(one.config): one.config for one in hf.modules() if groups_of(one) > 1}
        self._configs = [config for config in configs.values() if config._attn_implementation == USUAL]

    def __enter__(self) -> None:
        for config in self._configs:
            config._attn_implementation = NAME

    def __exit__(self, *raised: object) -> None:
        for config in self._configs:
            config._attn_implementation = USUAL


def groups_of(module: nn.Module) -> int:
    """How many heads of queries look at one of keys in a module; 0 if it is no attention of that kind."""
    return int(getattr(module, "num_key_value_groups", 0)) if hasattr(module, "config") else 0


def attention(
    module: nn.Module,
    query: Float[Tensor, "rows heads positions d_head"],
    key: Float[Tensor, "rows kv_heads keys d_head"],
    value: Float[Tensor, "rows kv_heads keys d_value"],
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **given: Any,
) -> tuple[Float[Tensor, "rows positions heads d_value"], None]:
    """What transformers asks of an attention function; where there is nothing to group, its own."""
    groups = groups_of(module)
    alike = attention_mask is not None and attention_mask.ndim == 4 and attention_mask.shape[1] == 1
    if groups < 2 or not alike or dropout or any(given.get(name) is not None for name in ELSEWHERE):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **given
        )
    assert attention_mask is not None
    rows, heads, positions, _ = query.shape
    below = query.reshape(rows, heads // groups, groups * positions, -1)
    mask = attention_mask.expand(-1, groups, -1, -1).flatten(1, 2)[:, None]
    seen = scaled_dot_product_attention(below, key, value, attn_mask=mask, scale=scaling)
    return seen.reshape(rows, heads, positions, -1).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, attention)
