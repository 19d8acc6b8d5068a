"""Which sweep speaks for a model's weights: the user's own where one is kept, else the shipped one."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

from edits.layers import Sweep
from surgery.files import cache_folder
from surgery.model import Model


def keep_sweep(sweep: Sweep) -> Path:
    """Keep a sweep for its weights: `recommended_site` takes its layer from then on. Returns the file.

    Raises:
        SurgeryError: it recommends no layer, or the cache folder cannot be written to.
    """
    sweep.recommend()
    return sweep.save(_kept(sweep.fingerprints[0], sweep.method))


def find_sweep(model: Model, method: str) -> Sweep | None:
    """The kept or shipped sweep of an editing method over these weights, None where there is none.

    Raises:
        SurgeryError: the kept file is damaged.
    """
    shipped = [
        Sweep.from_record(json.loads(one.read_text(encoding="utf-8")))
        for one in (files("surgery") / "data").iterdir()
        if one.name.startswith("layers-")
    ]
    fitting = [one for one in shipped if one.method == method and one.depth == len(model.anatomy.layers)]
    if not fitting and not _kept("", method).parent.is_dir():
        return None  # spares reading all weights for their fingerprint
    fingerprint = model.fingerprint
    if (path := _kept(fingerprint, method)).is_file():
        return Sweep.load(path)
    return next((one for one in fitting if fingerprint in one.fingerprints), None)


def _kept(fingerprint: str, method: str) -> Path:
    return cache_folder() / "sweeps" / f"{fingerprint}-{method}.json"
