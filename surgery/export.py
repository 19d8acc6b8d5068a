"""An edit taken along to where this package is not: a whole Hugging Face folder, or a LoRA adapter for PEFT.

A LoRA adapter adds B A to a map's weight, scaled by lora_alpha / r (Hu et al. 2021, https://arxiv.org/abs/2106.09685).
A delta is that already: A = right^T, B = left, lora_alpha = r. What the edit is besides its numbers lies in a file
beside them (`ABOUT`), facts included as far as the edit has them: `surgery.redact` first where nobody should read them.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from surgery import edit_files
from surgery.checkpoint import save_plain
from surgery.delta import Delta
from surgery.edit import Edit, weight_of
from surgery.errors import SurgeryError
from surgery.files import file_sha256, whole_folder
from surgery.linear_map import shared_weight
from surgery.model import Model

ABOUT = "knowledge_surgery.json"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def to_hf(model: Model, edit: Edit, folder: str | Path) -> Path:
    """Write the edited model as a folder that transformers loads by itself; the model stays as it is.

    The folder holds weights in the model's type, configuration and tokenizer, and nothing about the edit.

    Raises:
        WrongWeights: the model's weights are not the ones the edit was made for.
        SurgeryError: there is something in the folder already, or it cannot be written.
    """
    with whole_folder(folder) as work, edit.applied(model):
        try:
            save_plain(model.hf, model.tokenizer, work)
        except (OSError, SafetensorError) as error:
            raise SurgeryError(f"cannot write the model to {folder}: {error}; choose another place") from error
    return Path(folder)


def to_peft(model: Model, edit: Edit, folder: str | Path) -> Path:
    """Write the edit as a plain LoRA adapter that `peft.PeftModel.from_pretrained` loads onto the same base.

    Raises:
        WrongWeights: the model's weights are not the ones the edit was made for.
        SurgeryError: a change is not of low rank, or one of a weight that also serves elsewhere; there is something in
            the folder already, or it cannot be written.
    """
    edit.check_base(model)
    deltas = [_adapted(model, delta) for delta in edit.deltas]
    tensors: dict[str, Tensor] = {}
    for delta in deltas:
        tensors[f"base_model.model.{delta.module}.lora_A.weight"] = delta.right.T.contiguous()
        tensors[f"base_model.model.{delta.module}.lora_B.weight"] = delta.left
    with whole_folder(folder) as work:
        save_file(tensors, work / WEIGHTS, metadata={"format": "pt"})
        about = {"adapter": file_sha256(work / WEIGHTS), "edit": edit_files.about(edit)}
        for name, record in ((CONFIG, _config(model, deltas)), (ABOUT, about)):
            (work / name).write_text(json.dumps(record, indent=1, ensure_ascii=False), encoding="utf-8")
    return Path(folder)


def _adapted(model: Model, delta: Delta) -> Delta:
    small, most = delta.compressed(), min(weight_of(model, delta).shape)
    if small.rank >= most:
        raise SurgeryError(
            f"the change of {delta.module} is of rank {small.rank} of {most}, so an adapter would be no smaller than "
            f"the weight; export the whole model, with to_hf or --to hf"
        )
    if (other := shared_weight(model.hf, delta.module)) is not None:
        raise SurgeryError(
            f"{delta.module} shares its weight with {other}, which an adapter would not change; export the whole "
            f"model, with to_hf or --to hf"
        )
    return small


def _config(model: Model, deltas: list[Delta]) -> dict[str, Any]:
    rank = Counter(delta.rank for delta in deltas).most_common(1)[0][0]
    others = {delta.module: delta.rank for delta in deltas if delta.rank != rank}
    hub = "/" in model.source and not Path(model.source).exists()
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": model.source if hub else None,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": [delta.module for delta in deltas],
        "fan_in_fan_out": any(isinstance(model.hf.get_submodule(delta.module), Conv1D) for delta in deltas),
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
