"""Which layers to edit: by a sweep of the weights, the user's own before the shipped one, else by a stated rule."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from edits.layers import Sweep
from edits.spread import adds_as_is
from surgery.errors import SurgeryError
from surgery.files import cache_folder
from surgery.model import Model
from surgery.site import Kind, Site

logger = logging.getLogger(__name__)

# (model type, layers) -> layer: published for the first six; the last is what the default model's sweep recommends, for
# its relatives
LAYERS = {
    ("gpt2", 24): 8,
    ("gpt2", 36): 12,
    ("gpt2", 48): 17,
    ("gptj", 28): 5,
    ("llama", 32): 5,
    ("mistral", 32): 5,
    ("llama", 30): 4,
}
RELATIVE_DEPTH = 1 / 6
# (model type, layers) -> layers that share a change, as published
WINDOWS = {
    ("gpt2", 48): range(13, 18),
    ("gptj", 28): range(3, 9),
    ("llama", 32): range(4, 9),
    ("mistral", 32): range(4, 9),
}


def recommended_site(model: Model) -> Site:
    """The layer to edit: what the sweep of these weights recommends, one that was kept before the shipped one.

    Without a sweep, the published layer of the model's family and depth, else a sixth of the way up.
    """
    if (sweep := find_sweep(model, "rank-one")) is not None:
        return sweep.recommend()
    depth = len(model.anatomy.layers)
    layer = LAYERS.get((model.hf.config.model_type, depth))
    if layer is None:
        layer = int(depth * RELATIVE_DEPTH)
        logger.info("no layer is known to be best for %s; taking layer %d of %d", model.source, layer, depth)
    return Site.at(layer, "mlp")


def recommended_sites(model: Model, count: int) -> list[Site]:
    """So many neighbouring layers that share a change, ascending.

    Those published for the model's family and depth where they are just as many, else those up to one above the best
    single layer, as far as there are any below the last, which nothing above it reads: published windows end there or
    up to three above, and one is best on the default model. One layer alone where what an mlp adds goes through a norm
    first, for such layers cannot share a change.
    """
    best, depth = recommended_site(model), len(model.anatomy.layers)
    if count == 1 or not adds_as_is(model, best):
        return [best]
    published = WINDOWS.get((model.hf.config.model_type, depth), range(0))
    if len(published) == count:
        return [Site.at(layer, "mlp") for layer in published]
    most = max(1, depth - 1)
    first = max(0, min(best.layer + 2 - count, most - count))
    return [Site.at(layer, "mlp") for layer in range(first, min(first + count, most))]


def checked_sites(
    model: Model, method: str, sites: Sequence[Site], *, kinds: Sequence[Kind] = ("mlp",), one: bool = False
) -> list[Site]:
    """Sites a method can edit, each once, ascending.

    Args:
        model: whose sites they are.
        method: its name, for messages.
        sites: those asked for.
        kinds: which kinds it edits.
        one: it edits one site only.

    Raises:
        SurgeryError: they are of other kinds, none or too many, or the model has no such layer.
        UnsupportedModel: the model is quantised, so that there is no matrix to change.
    """
    wrong = any(site.kind not in kinds or site.position is not None for site in sites)
    if wrong or not sites or (one and len(sites) > 1):
        parts = " and ".join(kinds)
        what = f"exactly one {parts}, such as 'L4.mlp'" if one else f"{parts}s, such as 'L4.mlp'"
        raise SurgeryError(f"{method} edits {what}, not {[str(site) for site in sites]}")
    for site in sites:
        model.anatomy.matrix(site)
    return sorted(set(sites), key=lambda site: (site.layer, site.kind))


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
