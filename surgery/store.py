"""Results kept in a folder, a JSON file each, so that what takes long can be stopped and goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from surgery.files import written_whole


def kept(folder: Path | None, key: str, compute: Callable[[], Any]) -> Any:
    """The JSON value kept for a key, computed and kept where there is none yet.

    Args:
        folder: where; made if it is absent. None keeps nothing.
        key: everything the value depends on (weights, fact, settings); its hash names the file.
        compute: gives the value; not called where it is kept.

    Raises:
        SurgeryError: the folder cannot be made or written to.
    """
    if folder is None:
        return compute()
    path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    value = compute()
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(value), encoding="utf-8")
    return value
