"""Values as safetensors files: key, old value and shift as tensors, what they are of as JSON in the header."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from edits.values import Value
from surgery.errors import SurgeryError
from surgery.fact import Fact

FORMAT = "knowledge-surgery value 1"
TENSORS = ("key", "old", "shift")


def canonical(record: Any) -> str:
    """JSON in its one form: keys in order, no spaces. Equal records are equal texts."""
    return json.dumps(record, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def value_bytes(value: Value) -> bytes:
    """A value as a file's content; equal values give equal bytes."""
    tensors = {name: getattr(value, name).detach().to("cpu", torch.float32).contiguous() for name in TENSORS}
    about = {
        "format": FORMAT,
        "agreement": value.agreement,
        "losses": value.losses,
        "prompts": value.prompts,
        "facts": [fact.as_record() for fact in value.facts],
        "contexts": value.contexts,
    }
    # one entry of metadata: several would be written in no particular order
    return save(tensors, metadata={"value": canonical(about)})


def read_value(path: Path, device: torch.device | str = "cpu") -> Value:
    """The value of a file.

    Raises:
        SurgeryError: it holds none.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            about = _about(file.metadata(), path)
            tensors = {name: file.get_tensor(name).to(device) for name in TENSORS}
        return Value(
            **tensors,
            agreement=about["agreement"],
            losses=tuple(about["losses"]),
            prompts=tuple(about["prompts"]),
            facts=_facts(about),
            contexts=tuple(about["contexts"]),
        )
    except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise SurgeryError(f"{path} is damaged or cut off ({error}); restore it from a backup") from error


def read_facts_and_loss(path: Path) -> tuple[tuple[Fact, ...], float]:
    """Of a value's file only what it is of, and the last loss; its tensors are not read.

    Raises:
        SurgeryError: it holds no value.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            about = _about(file.metadata(), path)
        return _facts(about), float(about["losses"][-1])
    except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise SurgeryError(f"{path} is damaged or cut off ({error}); restore it from a backup") from error


def difference(value: Value, other: Value) -> float:
    """Largest |a - b| / |a| of the two values' tensors."""
    parts = [(getattr(value, name), getattr(other, name)) for name in TENSORS]
    return max(float((a - b).norm() / a.norm().clamp_min(1e-30)) for a, b in parts)


def fact_key(fact: Fact) -> str:
    """What facts are put in order by."""
    return canonical(fact.as_record())


def _about(metadata: dict[str, str] | None, path: Path) -> dict[str, Any]:
    about = json.loads((metadata or {}).get("value", "null"))
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise SurgeryError(f"{path} holds no value of this package; restore it from a backup")
    return about


def _facts(about: dict[str, Any]) -> tuple[Fact, ...]:
    return tuple(Fact.from_record(record) for record in about["facts"])
