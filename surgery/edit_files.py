"""Edits on disk: one safetensors file, factors as tensors, the rest as JSON in its header. No pickle.

What an edit is besides its numbers goes into a JSON record, which files of other layouts (`surgery.adapter`) keep too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from surgery.delta import Delta
from surgery.errors import SurgeryError
from surgery.fact import Fact
from surgery.files import written_whole
from surgery.privacy import Hidden

if TYPE_CHECKING:
    from surgery.edit import Edit

FORMAT = "knowledge-surgery edit 1"


def about(edit: Edit) -> dict[str, Any]:
    """What an edit is besides its deltas, as JSON values."""
    record = {
        "format": FORMAT,
        "base": edit.base,
        "method": edit.method,
        "claim": edit.claim,
        "modules": [delta.module for delta in edit.deltas],
        "facts": [fact.as_record() for fact in edit.facts],
        "settings": dict(edit.settings),
        "log": [dict(one) for one in edit.log],
        "prompts": list(edit.prompts),
    }
    return record if edit.hidden is None else {**record, "hidden": edit.hidden.as_record()}


def from_about(record: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an edit besides its deltas, from what `about` gave.

    Raises:
        KeyError, TypeError: something is missing or of another kind.
    """
    hidden = record.get("hidden")
    return {
        "facts": tuple(Fact.from_record(one) for one in record["facts"]),
        "log": tuple(record["log"]),
        "prompts": tuple(record["prompts"]),
        "hidden": None if hidden is None else Hidden.from_record(hidden),
        **{key: record[key] for key in ("base", "method", "claim", "settings")},
    }


def write(edit: Edit, path: str | Path) -> Path:
    """Write an edit as one file, whole or not at all.

    Raises:
        SurgeryError: the place cannot be written to.
    """
    tensors = {}
    for i, delta in enumerate(edit.deltas):
        tensors[f"{i}.left"], tensors[f"{i}.right"] = delta.left, delta.right
    with written_whole(path) as temporary:
        save_file(tensors, temporary, metadata={"edit": json.dumps(about(edit), ensure_ascii=False)})
    return Path(path)


def read(path: str | Path) -> dict[str, Any]:
    """The fields of the edit in a file that `write` wrote.

    Raises:
        SurgeryError: there is no such file, it is cut off, or it is something else.
    """
    if not Path(path).is_file():
        raise SurgeryError(f"there is no edit file {path}; give a file that 'surgery edit --out' wrote")
    try:
        with safe_open(str(path), framework="pt") as file:
            record = json.loads((file.metadata() or {}).get("edit", "null"))
            if not isinstance(record, dict) or record.get("format") != FORMAT:
                raise SurgeryError(f"{path} is no edit of this package; give a file that 'surgery edit' wrote")
            deltas = tuple(
                Delta(module, file.get_tensor(f"{i}.left"), file.get_tensor(f"{i}.right"))
                for i, module in enumerate(record["modules"])
            )
        return {"deltas": deltas, **from_about(record)}
    except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise SurgeryError(f"{path} is damaged or cut off ({error}); make the edit again") from error
