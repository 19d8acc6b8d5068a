"""Attention by groups of heads gives what attention by heads gives, in any model that has groups, and only inside."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from surgery import grouped
from surgery.grouped import NAME, USUAL, GroupedAttention, attention, groups_of
from surgery.model import Model


def drawn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Heads(nn.Module):
    """As much of an attention module as an attention function looks at."""

    config, is_causal = object(), True

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.num_key_value_groups = groups


@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("kind", ["bool", "added", "none"])
def test_numbers_and_gradients_are_those_of_each_head_with_its_own_keys(groups: int, kind: str) -> None:
    rows, heads, positions, keys, d = 3, 2, 4, 7, 8
    query = drawn(rows, groups * heads, positions, d, seed=1).requires_grad_()
    key, value = (drawn(rows, heads, keys, d, seed=seed).requires_grad_() for seed in (2, 3))
    seen = torch.ones(rows, 1, positions, keys, dtype=torch.bool).tril(keys - positions)
    seen[0, :, :, :2] = False
    mask = {"bool": seen, "added": torch.zeros(seen.shape).masked_fill(~seen, -1e9).double(), "none": None}[kind]
    found, weights = attention(Heads(groups), query, key, value, mask, scaling=0.3, is_causal=False)
    keys_of_each, values_of_each = (one.repeat_interleave(groups, 1) for one in (key, value))
    wanted = scaled_dot_product_attention(query, keys_of_each, values_of_each, attn_mask=mask, scale=0.3).transpose(
        1, 2
    )
    assert weights is None
    torch.testing.assert_close(found, wanted)
    given = (query, key, value)
    for own, other in zip(
        torch.autograd.grad(found.square().sum(), given), torch.autograd.grad(wanted.square().sum(), given), strict=True
    ):
        torch.testing.assert_close(own, other)


def test_what_it_does_not_know_of_is_left_to_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = []

    def noted(module: nn.Module, query: torch.Tensor, *given: object, **named: object) -> tuple[torch.Tensor, None]:
        asked.append(named)
        return query.transpose(1, 2), None

    monkeypatch.setattr(grouped, "sdpa_attention_forward", noted)
    query, key = drawn(1, 4, 2, 8, seed=1), drawn(1, 2, 3, 8, seed=2)
    mask = torch.ones(1, 1, 2, 3, dtype=torch.bool)
    a_head = torch.ones(1, 4, 2, 3, dtype=torch.bool)
    attention(Heads(2), query, key, key, mask, softcap=30.0)
    attention(Heads(2), query, key, key, a_head)
    attention(Heads(2), query, key, key, mask, dropout=0.1)
    attention(nn.Identity(), query, key, key, mask)
    assert [one.get("softcap") for one in asked] == [30.0, None, None, None]
    assert asked[2]["dropout"] == 0.1


def test_a_block_computes_its_model_by_groups_and_puts_it_back(smol: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []

    def noted(query: torch.Tensor, *given: torch.Tensor, **named: object) -> torch.Tensor:
        shapes.append(tuple(query.shape))
        return scaled_dot_product_attention(query, *given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(grouped, "scaled_dot_product_attention", noted)
    block = smol.hf.get_submodule(smol.anatomy.names("state")[3])
    states = torch.randn(2, 5, smol.anatomy.d_model, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 1, 5, 5, dtype=torch.bool).tril()
    turned = smol.hf.base_model.rotary_emb(states, torch.arange(5)[None])  # type: ignore[operator]
    with torch.no_grad():
        wanted = block(states, attention_mask=mask, position_embeddings=turned)
        assert not shapes
        with GroupedAttention(smol.hf):
            found = block(states, attention_mask=mask, position_embeddings=turned)
    assert shapes == [(2, 3, 15, 64)]  # nine heads of queries, three of keys
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert smol.hf.config._attn_implementation == USUAL


def test_an_error_inside_leaves_the_model_as_it_was(smol: Model) -> None:
    def stop() -> None:
        assert smol.hf.config._attn_implementation == NAME
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), GroupedAttention(smol.hf):
        stop()
    assert smol.hf.config._attn_implementation == USUAL


def test_a_model_without_groups_or_with_other_attention_is_left_alone(gpt2: Model, smol: Model) -> None:
    assert not any(groups_of(module) for module in gpt2.hf.modules())
    with GroupedAttention(gpt2.hf):
        assert gpt2.hf.config._attn_implementation != NAME
    smol.hf.config._attn_implementation = "eager"
    try:
        with GroupedAttention(smol.hf):
            assert smol.hf.config._attn_implementation == "eager"
        assert smol.hf.config._attn_implementation == "eager"
    finally:
        smol.hf.config._attn_implementation = USUAL
