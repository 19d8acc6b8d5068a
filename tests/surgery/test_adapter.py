"""Adapters that PEFT wrote, read back as edits: the same answers, and what is more than plain LoRA is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from by_hand import FACT, delta_of, edit_of, in_dtype
from safetensors.torch import load_file, save_file
from tiny import tiny_model, tiny_tokenizer

from surgery import Model, SurgeryError, WrongWeights, export, from_peft, load, to_peft

IDS = torch.tensor([[5, 60, 7, 300, 9]])
MLP = "transformer.h.1.mlp.c_proj"
# of PEFT's own, and of PEFT with this transformers
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
]


def foreign(model: Model, folder: Path, *, train: bool = True, **settings: Any) -> torch.Tensor:
    """Write an adapter as PEFT does, with random numbers in it; its answers."""
    fan = type(model.hf.get_submodule(model.anatomy.names("mlp")[1])).__name__ == "Conv1D"
    given = {"r": 2, "lora_alpha": 7, "target_modules": list(model.anatomy.names("mlp")), **settings}
    copy = in_dtype(model, torch.float32)
    wrapped = peft.get_peft_model(copy.hf, peft.LoraConfig(fan_in_fan_out=fan, **given)).eval()
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if train and "lora_" in name:
                weight.copy_(0.2 * torch.randn(weight.shape, generator=draw))
        wrapped.save_pretrained(str(folder))
        return wrapped(IDS).logits


@pytest.mark.parametrize(
    "settings",
    [{}, {"use_rslora": True}, {"init_lora_weights": "gaussian"}],
    ids=["plain", "rslora", "gaussian"],
)
@pytest.mark.parametrize("patterns", [False, True], ids=["", "patterns"])
@pytest.mark.parametrize("architecture", ["gpt2", "llama", "falcon"])
def test_an_adapter_of_somebody_else_is_an_edit(
    architecture: str, patterns: bool, settings: dict[str, Any], tmp_path: Path
) -> None:
    model = load((tiny_model(architecture), tiny_tokenizer()))
    if patterns:
        ends = [name.partition(".")[2] for name in model.anatomy.names("mlp")]
        alphas = {ends[2].replace(".2.", ".[12]."): 5}
        settings = {**settings, "rank_pattern": {ends[1]: 3}, "alpha_pattern": alphas}
    expected = foreign(model, tmp_path / "adapter", **settings)
    with pytest.raises(SurgeryError, match="does not say what the adapter is for; give claim='removed' or 'rewritten'"):
        from_peft(model, tmp_path / "adapter")
    made = from_peft(model, tmp_path / "adapter", claim="removed", facts=[FACT])
    assert (made.method, made.claim, made.facts, made.base) == ("peft", "removed", (FACT,), model.fingerprint)
    assert {delta.rank for delta in made.deltas} == ({2, 3} if patterns else {2})
    with made.applied(model), torch.no_grad():
        found = model.hf(IDS).logits
    assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()))
    with torch.no_grad():
        assert (model.hf(IDS).logits - expected).abs().max() > 0.1


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"use_dora": True}, "use_dora=True"),
        ({"bias": "all"}, "bias='all'"),
        ({"lora_bias": True}, "lora_bias=True"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save=\['lm_head'\]"),
        ({"target_modules": ["wte"]}, "base_model.model.transformer.wte.lora_embedding_A"),
    ],
    ids=str,
)
def test_more_than_plain_lora_is_refused(small: Model, tmp_path: Path, settings: dict[str, Any], says: str) -> None:
    foreign(small, tmp_path / "adapter", **{"target_modules": [MLP], **settings})
    with pytest.raises(SurgeryError, match=f"is no plain LoRA: it (has|holds) .*{says}.* with PEFT instead"):
        from_peft(small, tmp_path / "adapter", claim="removed")


def test_what_is_not_understood_is_refused(small: Model, tmp_path: Path) -> None:
    folder = to_peft(small, edit_of(small, delta_of(small, MLP)), tmp_path / "adapter")
    config, tensors = json.loads((folder / export.CONFIG).read_text()), load_file(folder / export.WEIGHTS)
    left, right = (f"base_model.model.{MLP}.lora_{side}.weight" for side in "BA")

    def refused(says: str, changed: dict[str, Any] | None = None, held: dict[str, torch.Tensor] | None = None) -> None:
        (folder / export.CONFIG).write_text(json.dumps({**config, **(changed or {})}))
        save_file(tensors if held is None else held, folder / export.WEIGHTS, metadata={"format": "pt"})
        with pytest.raises(SurgeryError, match=says):
            from_peft(small, folder, claim="removed")

    refused("it has use_xora=True", {"use_xora": True})
    refused("it has init_lora_weights='olora'", {"init_lora_weights": "olora"})
    refused("holds an adapter of type IA3; only LoRA", {"peft_type": "IA3"})
    refused("c_proj is of rank 2, but 5 by adapter_config.json", {"r": 5})
    refused("c_proj has lora_A alone", held={right: tensors[right]})
    refused("it holds other.weight", held={**tensors, "other.weight": torch.ones(1)})
    names = {key.replace("h.1.mlp", "h.1.mlpp"): one for key, one in tensors.items()}
    refused(r"no module 'transformer.h.1.mlpp.c_proj'; did you mean", held=names)
    refused(r"is \(32, 80\) here", held={left: tensors[left][:9].contiguous(), right: tensors[right]})
    larger = {**tensors, left: 2 * tensors[left]}
    refused("is about another adapter than the one beside it; delete it", held=larger)
    (folder / export.ABOUT).write_text("{")
    refused("knowledge_surgery.json is damaged")
    (folder / export.ABOUT).unlink()
    assert from_peft(small, folder, claim="removed").method == "peft"
    (folder / export.WEIGHTS).write_bytes(b"x" * 20)
    with pytest.raises(SurgeryError, match=r"cannot read .*adapter_model.safetensors .*; save the adapter again"):
        from_peft(small, folder)
    (folder / export.WEIGHTS).unlink()
    with pytest.raises(SurgeryError, match="holds no adapter_model"):
        from_peft(small, folder)
    with pytest.raises(SurgeryError, match="give the folder of a PEFT adapter"):
        from_peft(small, tmp_path)


def test_an_adapter_of_another_size_is_refused_as_such(small: Model, tmp_path: Path) -> None:
    folder = to_peft(small, edit_of(small, delta_of(small, "transformer.h.1.attn.c_proj")), tmp_path / "adapter")
    tensors = {key.replace("attn", "mlp"): one for key, one in load_file(folder / export.WEIGHTS).items()}
    save_file(tensors, folder / export.WEIGHTS)
    with pytest.raises(WrongWeights, match=r"mlp.c_proj is \(32, 80\) here, but the edit was made for another size"):
        from_peft(small, folder)


def test_a_tied_head_is_refused(tiny_tied: Model, small: Model, tmp_path: Path) -> None:
    folder = to_peft(small, edit_of(small, delta_of(small, MLP)), tmp_path / "adapter")
    width = tiny_tied.anatomy.d_model
    held = {"A": torch.ones(2, width), "B": torch.ones(tiny_tied.hf.config.vocab_size, 2)}
    named = {f"base_model.model.lm_head.lora_{side}.weight": one for side, one in held.items()}
    save_file(named, folder / export.WEIGHTS)
    with pytest.raises(SurgeryError, match=r"lm_head shares its weight with model\.embed_tokens"):
        from_peft(tiny_tied, folder, claim="removed")
