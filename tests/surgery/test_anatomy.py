"""The parts of every supported architecture, by name and by what they do; and the architectures that are refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny import ARCHITECTURES, D_FF, D_MODEL, N_LAYERS, REFUSED, VOCAB_SIZE, tiny_tokenizer
from torch import nn
from transformers.pytorch_utils import Conv1D

from surgery import Model, Site, SurgeryError, UnsupportedModel, load
from surgery.anatomy import examine
from surgery.hooks import Trace, hidden
from surgery.linear_map import oriented
from surgery.site import Kind

IDS = torch.tensor([[5, 60, 7, 300, 9, 44, 13, 8, 99, 120, 222]])

LLAMA = ("model.layers.{}", "self_attn.o_proj", "mlp.down_proj", "model.norm", "model.embed_tokens")
DENSE = "self_attention.dense", "mlp.dense_4h_to_h"
# block, attention's and mlp's map within it, final norm, embedding
PARTS = {
    "gpt2": ("transformer.h.{}", "attn.c_proj", "mlp.c_proj", "transformer.ln_f", "transformer.wte"),
    "gptj": ("transformer.h.{}", "attn.out_proj", "mlp.fc_out", "transformer.ln_f", "transformer.wte"),
    "gpt_neo": ("transformer.h.{}", "attn.attention.out_proj", "mlp.c_proj", "transformer.ln_f", "transformer.wte"),
    "gpt_neox": (
        "gpt_neox.layers.{}",
        "attention.dense",
        "mlp.dense_4h_to_h",
        "gpt_neox.final_layer_norm",
        "gpt_neox.embed_in",
    ),
    "opt": (
        "model.decoder.layers.{}",
        "self_attn.out_proj",
        "fc2",
        "model.decoder.final_layer_norm",
        "model.decoder.embed_tokens",
    ),
    "bloom": ("transformer.h.{}", *DENSE, "transformer.ln_f", "transformer.word_embeddings"),
    "falcon": ("transformer.h.{}", *DENSE, "transformer.ln_f", "transformer.word_embeddings"),
    "mpt": ("transformer.blocks.{}", "attn.out_proj", "ffn.down_proj", "transformer.norm_f", "transformer.wte"),
    "phi": ("model.layers.{}", "self_attn.dense", "mlp.fc2", "model.final_layernorm", "model.embed_tokens"),
    "phi3": LLAMA,
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "gemma2": LLAMA,
    "gemma3_text": LLAMA,
    "olmo2": LLAMA,
    "glm4": LLAMA,
    "stablelm": LLAMA,
}


def test_the_parts_have_their_names(tiny: Model) -> None:
    block, attention, mlp, norm, embedding = PARTS[tiny.hf.config.model_type]
    anatomy = tiny.anatomy
    assert anatomy.names("state") == tuple(block.format(i) for i in range(N_LAYERS))
    assert anatomy.names("attention") == tuple(f"{block.format(i)}.{attention}" for i in range(N_LAYERS))
    assert anatomy.names("mlp") == tuple(f"{block.format(i)}.{mlp}" for i in range(N_LAYERS))
    assert (anatomy.final_norm, anatomy.embedding) == (norm, embedding)
    assert anatomy.name(Site("L2.mlp@7")) == f"{block.format(2)}.{mlp}"
    assert anatomy.architecture == type(tiny.hf).__name__


def test_every_name_is_a_module(tiny: Model) -> None:
    modules = dict(tiny.hf.named_modules())
    for layer in tiny.anatomy.layers:
        assert {layer.state, layer.attention, layer.mlp} <= set(modules)
    assert modules[tiny.anatomy.embedding] is tiny.hf.get_input_embeddings()


def test_the_sizes_are_the_configs(tiny: Model) -> None:
    four_times = tiny.hf.config.model_type in ("bloom", "mpt")
    assert tiny.anatomy.d_ff == (4 * D_MODEL if four_times else D_FF)
    assert (tiny.anatomy.d_model, tiny.anatomy.vocab) == (D_MODEL, VOCAB_SIZE)
    assert tiny.anatomy.max_positions == (None if tiny.hf.config.model_type == "bloom" else 128)


def test_unembedding_the_last_state_gives_the_models_logits(tiny: Model) -> None:
    with torch.no_grad(), Trace(tiny.hf, tiny.anatomy.names("state")[-1]) as trace:
        logits = tiny.hf(IDS).logits
        own = tiny.anatomy.unembed(hidden(trace.output, 1))
    assert torch.allclose(own, logits, rtol=1e-4, atol=1e-4 * float(logits.abs().max()))
    assert logits.std() > 0.1


@pytest.mark.parametrize("kind", ["mlp", "attention"])
def test_a_matrix_maps_inputs_to_outputs(tiny: Model, kind: Kind) -> None:
    for layer in range(N_LAYERS):
        name, matrix = tiny.anatomy.names(kind)[layer], tiny.anatomy.matrix(Site.at(layer, kind))
        module = tiny.hf.get_submodule(name)
        with torch.no_grad(), Trace(tiny.hf, name, retain_input=True, clone=True) as trace:
            tiny.hf(IDS)
        expected = trace.input @ matrix.T + (0 if module.bias is None else module.bias)
        assert torch.allclose(trace.output, expected, rtol=1e-4, atol=1e-4)
        assert matrix.shape[0] == D_MODEL
        assert matrix.data_ptr() == module.weight.data_ptr()
    assert kind != "mlp" or matrix.shape == (D_MODEL, tiny.anatomy.d_ff)


def test_orientation_of_the_two_linear_maps() -> None:
    assert oriented(nn.Linear(3, 5)).shape == (5, 3)
    conv = Conv1D(5, 3)
    assert conv.weight.shape == (3, 5)
    assert torch.equal(oriented(conv), conv.weight.T)
    assert oriented(conv).data_ptr() == conv.weight.data_ptr()


def test_other_maps_are_refused() -> None:
    with pytest.raises(UnsupportedModel, match="Embedding holds no plain weight matrix; load the model unquantised"):
        oriented(nn.Embedding(3, 5))
    whole = nn.Linear(3, 5)
    whole.weight = nn.Parameter(whole.weight.detach().to(torch.int8), requires_grad=False)
    with pytest.raises(UnsupportedModel, match="Linear holds no plain weight"):
        oriented(whole)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("mixtral", "block model.layers.0 (MixtralDecoderLayer) holds mlp: MixtralSparseMoeBlock; mixtures of experts"),
        ("qwen3_moe", "Qwen3MoeSparseMoeBlock; mixtures of experts"),
        ("gpt_oss", "holds mlp.experts: GptOssExperts with 3-D weights gate_up_proj, down_proj; mixtures of experts"),
        ("mamba", "block backbone.layers.0 (MambaBlock) has no attention but norm: MambaRMSNorm, mixer: MambaMixer"),
        ("mamba2", "mixer: Mamba2Mixer; state-space layers are not supported"),
        ("jamba", "has no attention but mamba: JambaMambaMixer"),
        ("t5", "T5ForConditionalGeneration is an encoder-decoder; only decoder-only"),
    ],
)
def test_other_kinds_of_models_are_refused_with_what_was_found(name: str, says: str) -> None:
    with pytest.raises(UnsupportedModel) as caught:
        load((REFUSED[name](), tiny_tokenizer()))
    assert says in str(caught.value)
    assert REFUSED[name]().__class__.__name__ in str(caught.value)


def test_every_refused_model_is_tried() -> None:
    assert set(REFUSED) == {"mixtral", "qwen3_moe", "gpt_oss", "mamba", "mamba2", "jamba", "t5"}


def test_a_model_without_head_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="GPT2Model has no language-model head"):
        examine(ARCHITECTURES["gpt2"]().base_model)


@pytest.fixture
def gpt2() -> Any:
    return copy.deepcopy(ARCHITECTURES["gpt2"]())


def test_something_unknown_between_last_state_and_logits_is_refused(gpt2: Any) -> None:
    gpt2.lm_head.register_forward_hook(lambda module, args, out: out * 1.0)
    examine(gpt2)  # this much is harmless
    gpt2.transformer.register_forward_hook(lambda module, args, out: type(out)(last_hidden_state=out[0] * 2))
    with pytest.raises(
        UnsupportedModel, match=r"its logits are not head\(norm\(last state\)\) with the norm 'transformer.ln_f'"
    ):
        examine(gpt2)


def test_a_map_that_does_not_reach_its_block_is_refused(gpt2: Any) -> None:
    gpt2.transformer.h[2].mlp.dropout.register_forward_hook(lambda module, args, out: out * 0)
    with pytest.raises(UnsupportedModel, match=r"a push at transformer.h.2.mlp.c_proj does not reach the output of"):
        examine(gpt2)


def test_a_block_that_looks_back_in_time_is_refused(gpt2: Any) -> None:
    gpt2.transformer.h[1].mlp.register_forward_hook(lambda module, args, out: out + out.mean(1, keepdim=True))
    with pytest.raises(UnsupportedModel, match=r"a push at transformer.h.1"):
        examine(gpt2)


def test_examining_leaves_no_hook_behind(tiny: Model) -> None:
    assert not [name for name, one in tiny.hf.named_modules() if one._forward_hooks or one._forward_pre_hooks]


def test_a_layer_that_is_not_there_is_refused(tiny: Model) -> None:
    with pytest.raises(SurgeryError, match=r"there is no layer 4: .* has layers 0 to 3"):
        tiny.anatomy.name(Site("L4.mlp"))
