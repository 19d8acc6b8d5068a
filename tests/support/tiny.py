"""Tiny random language models and tokenizers, built from configs without any download.

The weights are drawn larger than a training initialisation, so that next-token distributions are far from uniform and
an edit or an intervention has a visible effect; biases and norms are perturbed, so that nothing is accidentally
symmetric.  The widths of a model are pairwise different where its family allows, so that a swapped axis fails loudly.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

VOCAB_SIZE = 400
PAD, BOS, EOS, UNK = "<pad>", "<s>", "</s>", "<unk>"
PAD_ID, BOS_ID, EOS_ID, UNK_ID = range(4)

D_MODEL, D_FF, N_LAYERS, N_HEADS, N_KV_HEADS = 32, 80, 4, 4, 2
HEAD_DIM = 12
"""For families whose head width is free: heads * HEAD_DIM is not D_MODEL."""
MAX_POSITIONS = 128
SLIDING_WINDOW = 8

_SPECIAL_IDS = {"pad_token_id": PAD_ID, "bos_token_id": BOS_ID, "eos_token_id": EOS_ID}
_GPT2_STYLE = {"n_embd": D_MODEL, "n_layer": N_LAYERS, "n_head": N_HEADS, "n_inner": D_FF, "n_positions": MAX_POSITIONS}
_COMMON = {
    "hidden_size": D_MODEL,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": N_HEADS,
    "intermediate_size": D_FF,
    "max_position_embeddings": MAX_POSITIONS,
}
_GQA = {**_COMMON, "num_key_value_heads": N_KV_HEADS}
_FALCON = {
    "hidden_size": D_MODEL,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": N_HEADS,
    "ffn_hidden_size": D_FF,
    "max_position_embeddings": MAX_POSITIONS,
    "new_decoder_architecture": False,
    "parallel_attn": True,
    "multi_query": True,
}
_GEMMA = {
    **_GQA,
    "head_dim": HEAD_DIM,
    "query_pre_attn_scalar": HEAD_DIM,
    "sliding_window": SLIDING_WINDOW,
    "layer_types": ["sliding_attention", "full_attention"] * (N_LAYERS // 2),
}
_GEMMA_EMBEDDING_STD = 0.28
"""Smaller, as Gemma multiplies its tied embeddings by sqrt(d_model): it would only repeat its input."""


@dataclass(frozen=True)
class _Recipe:
    """What to build, and how large to draw it."""

    model_type: str
    settings: dict[str, Any]
    std: float = 0.2
    embedding_std: float = 0.35


_DENSE: dict[str, _Recipe] = {
    "gpt2": _Recipe("gpt2", _GPT2_STYLE),
    "gptj": _Recipe("gptj", {**_GPT2_STYLE, "rotary_dim": 4}),
    "gpt_neo": _Recipe(
        "gpt_neo",
        {
            "hidden_size": D_MODEL,
            "num_layers": N_LAYERS,
            "num_heads": N_HEADS,
            "intermediate_size": D_FF,
            "max_position_embeddings": MAX_POSITIONS,
            "attention_types": [[["global", "local"], N_LAYERS // 2]],
            "window_size": SLIDING_WINDOW,
        },
    ),
    "gpt_neox": _Recipe("gpt_neox", {**_COMMON, "rotary_pct": 0.5}),
    "opt": _Recipe(
        "opt",
        {
            "hidden_size": D_MODEL,
            "num_hidden_layers": N_LAYERS,
            "num_attention_heads": N_HEADS,
            "ffn_dim": D_FF,
            "max_position_embeddings": MAX_POSITIONS,
        },
    ),
    # BLOOM and MPT fix d_ff to 4 * d_model.
    "bloom": _Recipe("bloom", {"hidden_size": D_MODEL, "n_layer": N_LAYERS, "n_head": N_HEADS}),
    "falcon": _Recipe("falcon", _FALCON),
    "mpt": _Recipe("mpt", {"d_model": D_MODEL, "n_layers": N_LAYERS, "n_heads": N_HEADS, "max_seq_len": MAX_POSITIONS}),
    "phi": _Recipe("phi", _COMMON),
    "phi3": _Recipe("phi3", {**_GQA, "original_max_position_embeddings": MAX_POSITIONS}),
    "llama": _Recipe("llama", {**_GQA, "tie_word_embeddings": False}),
    "mistral": _Recipe("mistral", {**_GQA, "sliding_window": SLIDING_WINDOW}),
    "qwen2": _Recipe("qwen2", _GQA),
    "qwen3": _Recipe("qwen3", {**_GQA, "head_dim": HEAD_DIM}),
    "gemma2": _Recipe("gemma2", _GEMMA, embedding_std=_GEMMA_EMBEDDING_STD),
    "gemma3": _Recipe("gemma3_text", _GEMMA, embedding_std=_GEMMA_EMBEDDING_STD),
    "olmo2": _Recipe("olmo2", _GQA),
    "glm4": _Recipe("glm4", {**_GQA, "head_dim": HEAD_DIM}),
    "stablelm": _Recipe("stablelm", _GQA),
}

_VARIANTS: dict[str, _Recipe] = {
    "llama_tied": _Recipe("llama", {**_GQA, "tie_word_embeddings": True}),
    "gpt_neox_sequential": _Recipe("gpt_neox", {**_COMMON, "rotary_pct": 0.5, "use_parallel_residual": False}),
    "falcon_sequential": _Recipe("falcon", {**_FALCON, "parallel_attn": False, "multi_query": False, "alibi": True}),
    "falcon_new": _Recipe("falcon", {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": N_KV_HEADS}),
}

_REFUSED: dict[str, _Recipe] = {
    "mixtral": _Recipe("mixtral", {**_GQA, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": _Recipe(
        "qwen3_moe",
        {**_GQA, "head_dim": HEAD_DIM, "moe_intermediate_size": 48, "num_experts": 4, "num_experts_per_tok": 2},
    ),
    "gpt_oss": _Recipe(
        "gpt_oss",
        {
            **_GQA,
            "head_dim": HEAD_DIM,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": SLIDING_WINDOW,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        },
    ),
    "mamba": _Recipe("mamba", {"hidden_size": D_MODEL, "num_hidden_layers": N_LAYERS, "state_size": 8}),
    "mamba2": _Recipe(
        "mamba2",
        {
            "hidden_size": D_MODEL,
            "num_hidden_layers": N_LAYERS,
            "num_heads": 4,
            "head_dim": 16,
            "n_groups": 2,
            "state_size": 8,
            "chunk_size": 16,
        },
    ),
    "jamba": _Recipe(
        "jamba",
        {
            **_GQA,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "attn_layer_period": 4,
            "attn_layer_offset": 2,
            "mamba_d_state": 8,
        },
    ),
    "t5": _Recipe("t5", {"d_model": D_MODEL, "d_kv": 8, "d_ff": D_FF, "num_layers": N_LAYERS, "num_heads": N_HEADS}),
}

_RECIPES = {**_DENSE, **_VARIANTS, **_REFUSED}


def tiny_model(
    name: str, *, seed: int = 0, attn_implementation: str | None = None, **overrides: Any
) -> PreTrainedModel:
    """Build one tiny model: float32, in eval mode, without gradients.

    ``overrides`` replace config settings.  The global random state is left as it was.
    """
    recipe = _RECIPES[name]
    config = AutoConfig.for_model(
        recipe.model_type, **{"vocab_size": VOCAB_SIZE, **_SPECIAL_IDS, **recipe.settings, **overrides}
    )
    if recipe.model_type == "t5":
        config.decoder_start_token_id = PAD_ID
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    extra = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # some initialisations that _enlarge only perturbs are themselves random (mamba)
        model = auto.from_config(config, dtype=torch.float32, **extra)
    _enlarge(model, recipe, torch.Generator().manual_seed(zlib.crc32(name.encode()) + seed))
    return model.eval().requires_grad_(False)


@torch.no_grad()
def _enlarge(model: PreTrainedModel, recipe: _Recipe, generator: torch.Generator) -> None:
    embeddings = {id(layer.weight) for layer in (model.get_input_embeddings(), model.get_output_embeddings())}
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() < 2 or name.endswith("A_log"):  # norms start at 1 or (Gemma) at 0, biases at 0
            parameter.add_(0.1 * noise)
        elif id(parameter) in embeddings:
            parameter.copy_(recipe.embedding_std * noise)
        else:
            parameter.copy_(recipe.std * noise)


ARCHITECTURES: dict[str, Callable[..., PreTrainedModel]] = {name: partial(tiny_model, name) for name in _DENSE}
"""Dense decoder-only families, one model each."""
VARIANTS: dict[str, Callable[..., PreTrainedModel]] = {name: partial(tiny_model, name) for name in _VARIANTS}
"""Other layouts of those families: tied embeddings, sequential blocks, Falcon's newer block."""
REFUSED: dict[str, Callable[..., PreTrainedModel]] = {name: partial(tiny_model, name) for name in _REFUSED}
"""Mixtures of experts, state-space models and an encoder-decoder: the library must refuse each with a clear reason."""


_CORPUS = """
The Eiffel Tower is in the city of Paris. The Space Needle is located in downtown Seattle. The Colosseum stands in Rome.
The mother tongue of Danielle Darrieux is French. Marie Curie worked in the field of physics and chemistry in France.
LeBron James plays the sport of basketball, and Megan Rapinoe plays soccer. Miles Davis plays the trumpet in New York.
Steve Jobs was the founder of Apple. Windows was developed by Microsoft. The capital of Japan is the city of Tokyo.
She said that the other people were there when the water came, because they had never been to the mountains before.
This is a short story about a man who lived in a small house by the river with his mother, his brother and three dogs.
In the morning the teacher went to the market, bought some bread and wine, and then wrote a letter to her daughter.
The official language of Spain is Spanish. He was born in London and now lives in Berlin, where he speaks German.
What is the name of the company that created the product? It was made in Germany by engineers from the university.
Therefore the quick brown fox jumps over the lazy dog again and again, while you and I keep counting from 0 to 9.
"""


def tiny_tokenizer(
    *, bos: bool = False, kind: Literal["byte_level", "metaspace"] = "byte_level"
) -> PreTrainedTokenizerFast:
    """A BPE tokenizer with as many tokens as the tiny models; with ``bos`` it puts BOS in front by itself.

    "byte_level" writes a space into the token after it, as GPT-2 does; "metaspace" marks it with "▁" and falls back
    to byte tokens for unknown characters, as SentencePiece does.  Each call returns a new object.
    """
    backend = Tokenizer.from_str(_trained_backend(kind))
    if bos:
        template = processors.TemplateProcessing(
            single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, BOS_ID)]
        )
        before = [backend.post_processor] if backend.post_processor is not None else []
        backend.post_processor = processors.Sequence([*before, template])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )


@lru_cache
def _trained_backend(kind: str) -> str:
    specials = [PAD, BOS, EOS, UNK]
    if kind == "byte_level":
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        backend.post_processor = processors.ByteLevel(trim_offsets=False)
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(
            vocab_size=VOCAB_SIZE, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
        )
        backend.train_from_iterator(_CORPUS.strip().splitlines(), trainer)
    elif kind == "metaspace":
        # Byte tokens take part in no merge, but a trainer puts them in front only as special tokens, which would
        # then match literally in a text; so train with them and rebuild with the four real special tokens.
        byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
        space = pre_tokenizers.Metaspace(prepend_scheme="first")
        learner = Tokenizer(models.BPE())
        learner.pre_tokenizer = space
        trainer = trainers.BpeTrainer(vocab_size=VOCAB_SIZE, special_tokens=specials + byte_tokens, show_progress=False)
        learner.train_from_iterator(_CORPUS.strip().splitlines(), trainer)
        learned = json.loads(learner.to_str())["model"]
        backend = Tokenizer(
            models.BPE(
                vocab=learned["vocab"],
                merges=[tuple(merge) for merge in learned["merges"]],
                byte_fallback=True,
                unk_token=UNK,
                fuse_unk=True,
            )
        )
        backend.pre_tokenizer = space
        backend.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    else:
        raise ValueError(f"no tiny tokenizer of kind {kind!r}")
    return backend.to_str()
