"""Which layers are edited, and which can share a change."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer

from edits import ClosedForm, Mass, RankOne, recommended_sites
from edits.recommended import LAYERS, WINDOWS
from surgery import Fact, Model, Site, SurgeryError, load

SITES = [Site.at(layer, "mlp") for layer in range(3)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["gemma2", "gemma3", "olmo2"])
def test_layers_behind_a_norm_do_not_share(name: str, dtype: torch.dtype, tiny_fact: Fact) -> None:
    hf = tiny_model(name)
    hf.get_input_embeddings().weight.data *= 10  # states so large that a small push would be lost in their rounding
    model = load((hf.to(dtype), tiny_tokenizer()))
    assert len(recommended_sites(model, 3)) == 1
    with pytest.raises(SurgeryError, match=r"goes through a norm first in .*, so layers cannot share a change"):
        Mass(progress=False)(model, tiny_fact, SITES)


def test_layers_that_share_are_found_in_16_bits_too() -> None:
    hf = tiny_model("llama")
    hf.get_input_embeddings().weight.data *= 10
    assert len(recommended_sites(load((hf.to(torch.bfloat16), tiny_tokenizer())), 3)) == 3


@pytest.mark.parametrize(("count", "wanted"), [(1, [5]), (3, [4, 5, 6]), (5, [4, 5, 6, 7, 8]), (6, [1, 2, 3, 4, 5, 6])])
def test_as_many_layers_are_recommended_as_are_asked_for(count: int, wanted: list[int]) -> None:
    """On a depth with a published window of five, 4 to 8."""
    model = load((tiny_model("llama", num_hidden_layers=32), tiny_tokenizer()))
    assert [one.layer for one in recommended_sites(model, count)] == wanted


def test_sites_that_make_no_sense_are_refused(gpt2: Model) -> None:
    with pytest.raises(SurgeryError, match=r"memit edits mlps, such as 'L4.mlp', not \['L1.attention'\]"):
        Mass().sites(gpt2, [Site.at(1, "attention")])
    with pytest.raises(SurgeryError, match=r"rank-one edits exactly one mlp, such as 'L4.mlp', not \['L0.mlp', 'L1"):
        RankOne().sites(gpt2, SITES[:2])
    with pytest.raises(SurgeryError, match=r"memit edits mlps, such as 'L4.mlp', not \[\]"):
        Mass().sites(gpt2, [])
    with pytest.raises(SurgeryError, match="there is no layer 9"):
        Mass().sites(gpt2, [Site.at(9, "mlp")])
    for wrong in ({"layers": 0}, {"anchor": -1}, {"batch": 0}):
        with pytest.raises(SurgeryError, match="layers, batch and passes of a method must be 1 or more"):
            ClosedForm(**wrong)


def test_neighbouring_layers_are_recommended_around_the_one_to_edit(gpt2: Model) -> None:
    assert [one.layer for one in recommended_sites(gpt2, 3)] == [0, 1, 2]
    assert [one.layer for one in recommended_sites(gpt2, 9)] == [0, 1, 2]
    assert [one.layer for one in recommended_sites(gpt2, 1)] == [0]
    for family, window in WINDOWS.items():
        assert LAYERS[family] in window or family == ("gpt2", 48)
