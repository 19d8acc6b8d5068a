"""A plain LoRA adapter, read back as an edit.

Read is what adds B A times its scale to the weight of a linear map and does nothing else. Whatever else an adapter can
hold (DoRA's magnitudes, biases, whole modules, embeddings, settings that are not known here) is refused: leaving it out
would give another model than PEFT's.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from surgery import edit_files
from surgery.delta import Delta
from surgery.edit import Edit, weight_of
from surgery.errors import SurgeryError
from surgery.export import ABOUT, CONFIG, WEIGHTS
from surgery.fact import Fact
from surgery.files import file_sha256
from surgery.linear_map import shared_weight
from surgery.model import Model

_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
# settings that decide nothing about a trained adapter's change, or that are read below
_KNOWN = frozenset(
    {
        "alpha_pattern", "auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "eva_config",
        "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern",
        "layers_to_transform", "lora_alpha", "lora_dropout", "megatron_core", "peft_type", "peft_version",
        "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config", "target_modules", "task_type",
        "use_rslora",
    }
)  # fmt: skip
# other ways to begin, such as pissa and olora, move the base weights too
_BEGINNINGS = (None, True, False, "gaussian", "eva", "orthogonal")


def from_peft(
    model: Model,
    folder: str | Path,
    *,
    claim: Literal["removed", "rewritten"] | None = None,
    facts: Sequence[Fact] | None = None,
) -> Edit:
    """Read a LoRA adapter's folder as an edit. One that `to_peft` wrote comes back as the edit it was.

    Args:
        model: the base model; an adapter does not say which weights it was made for, so these are taken to be them.
        folder: with `adapter_config.json` and `adapter_model.safetensors`.
        claim: what it is meant to achieve; needed where the folder does not say it.
        facts: what it is about; None for those the folder names, if any.

    Raises:
        SurgeryError: it is no such folder, holds more than a plain LoRA adapter, or no claim is known.
        WrongWeights: it is for maps of other sizes.
    """
    folder = Path(folder)
    config = _config(folder)
    try:
        tensors = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise SurgeryError(f"cannot read {folder / WEIGHTS} ({error}); save the adapter again") from error
    deltas = tuple(_deltas(model, folder, config, tensors))
    fields: dict[str, Any] = _about(folder)
    if not fields:
        fields = {"base": model.fingerprint, "method": "peft", "facts": (), "settings": {"adapter": _told(config)}}
    if claim is not None:
        fields["claim"] = claim
    if facts is not None:
        fields.update(facts=tuple(facts), hidden=None)
    if "claim" not in fields:
        raise SurgeryError(f"{folder} does not say what the adapter is for; give claim='removed' or 'rewritten'")
    return Edit(deltas=deltas, **fields)


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise SurgeryError(f"cannot read {folder / CONFIG} ({error}); give the folder of a PEFT adapter") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise SurgeryError(f"{folder} holds an adapter of type {kind}; only LoRA adds a matrix to a weight")
    wrong = [
        f"{key}={value!r}"
        for key, value in config.items()
        if key not in _KNOWN and value not in (None, False, [], {}, "none" if key == "bias" else None)
    ]
    if config.get("init_lora_weights") not in _BEGINNINGS:
        wrong.append(f"init_lora_weights={config['init_lora_weights']!r}")
    if wrong:
        raise SurgeryError(
            f"the adapter in {folder} is no plain LoRA: it has {', '.join(wrong)}; merge it into the model with PEFT "
            f"instead"
        )
    if not (folder / WEIGHTS).is_file():
        raise SurgeryError(f"{folder} holds no {WEIGHTS}; save the adapter with safe_serialization=True")
    return config


def _deltas(model: Model, folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Iterator[Delta]:
    sides: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if (match := _KEY.fullmatch(key)) is None:
            raise SurgeryError(
                f"the adapter in {folder} is no plain LoRA: it holds {key}; merge it into the model with PEFT instead"
            )
        sides.setdefault(match["module"], {})[match["side"]] = tensor
    for module, pair in sides.items():
        if set(pair) != {"A", "B"}:
            raise SurgeryError(f"the adapter in {folder} is incomplete: {module} has lora_{min(pair)} alone")
        rank = int(_of_pattern(config.get("rank_pattern"), module, config.get("r", 8)))
        alpha = _of_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha", 8))
        if rank != pair["A"].shape[0]:
            raise SurgeryError(
                f"the adapter in {folder} is damaged: {module} is of rank {pair['A'].shape[0]}, but {rank} by {CONFIG}"
            )
        scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        delta = Delta(module, (pair["B"].double() * scale).float(), pair["A"].float().T)
        weight_of(model, delta)
        if (other := shared_weight(model.hf, module)) is not None:
            raise SurgeryError(
                f"{module} shares its weight with {other}, which an edit would change too; merge the adapter into the "
                f"model with PEFT instead"
            )
        yield delta


def _of_pattern(pattern: Mapping[str, float | int] | None, module: str, otherwise: float | int) -> float | int:
    # as PEFT matches them: the first key that is the end of the module's name
    keys = (key for key in pattern or {} if re.match(rf"(.*\.)?({key})$", module))
    return (pattern or {}).get(next(keys, ""), otherwise)


def _about(folder: Path) -> dict[str, Any]:
    file = folder / ABOUT
    if not file.is_file():
        return {}
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if record["adapter"] != file_sha256(folder / WEIGHTS):
            raise SurgeryError(f"{file} is about another adapter than the one beside it; delete it to read that one")
        return edit_files.from_about(record["edit"])
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise SurgeryError(f"{file} is damaged ({error}); delete it to read the adapter without it") from error


def _told(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: config[key] for key in ("r", "lora_alpha", "use_rslora", "peft_version") if config.get(key)}
