"""Second moments of an mlp's keys: what else the edited matrix is used for.

Meng et al. 2022 (https://arxiv.org/abs/2202.05262), eq. 2, need C = E[k k^T] over the inputs k of a down-projection on
ordinary text, uncentred.

`edits.fitting` sums it over texts, `edits.moment` keeps its diagonal plus low rank form: d_ff (rank + 1) numbers a
layer. At rank 64 in 16 bits: 0.2 MB for d_ff = 1536, where C takes 9 MB, and 1.9 MB for 14336, where it takes 820.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from edits.moment import SecondMoment
from surgery.errors import SurgeryError, WrongWeights
from surgery.files import cache_folder, written_whole
from surgery.model import Model

__all__ = ["SecondMoment", "Statistics", "cached_file", "find_statistics", "keep_statistics"]

logger = logging.getLogger(__name__)

FORMAT = "knowledge-surgery statistics 2"
UNSCALED = "knowledge-surgery statistics 1"
"""The format before factors had scales; such files are still read."""
LARGEST = 2.0**15
"""Below which float16 has to stay, 65504 being its last number."""


@dataclass(frozen=True, eq=False)
class Statistics:
    """Key statistics of some layers of one model.

    Attributes:
        layers: the second moment of each layer.
        fingerprints: of the weights they belong to; more than one for the same weights in other precisions.
        corpus: what they were fitted on, in words.
        tokens: how many tokens of it; of statistics merged from several fits the fewest.
    """

    layers: Mapping[int, SecondMoment]
    fingerprints: tuple[str, ...]
    corpus: str
    tokens: int

    def of(self, model: Model, layer: int, fingerprint: str | None = None) -> SecondMoment:
        """The second moment of a layer, if these statistics belong to the model.

        Args:
            model: the model.
            layer: the layer.
            fingerprint: of its weights, where it has been read already.

        Raises:
            WrongWeights: they belong to other weights.
            SurgeryError: that layer was not fitted.
        """
        if (found := fingerprint or model.fingerprint) not in self.fingerprints:
            raise WrongWeights(
                f"these key statistics were fitted on other weights ({self.fingerprints[0][:12]}) than these "
                f"({found[:12]}); fit them for this model: surgery stats --corpus FILE --layers {layer} --out FILE"
            )
        if layer not in self.layers:
            have = ", ".join(str(one) for one in sorted(self.layers))
            raise SurgeryError(
                f"there are no key statistics for layer {layer}, only for {have}; fit them or edit there"
            )
        return self.layers[layer]

    def merged(self, newer: Statistics) -> Statistics:
        """These and the layers of newer ones for the same weights, which replace those of the same number.

        Raises:
            WrongWeights: they belong to other weights.
        """
        if not set(self.fingerprints) & set(newer.fingerprints):
            raise WrongWeights(
                f"key statistics of other weights ({newer.fingerprints[0][:12]}) cannot join these "
                f"({self.fingerprints[0][:12]}); keep a file for each model"
            )
        if set(self.layers) <= set(newer.layers):
            return newer
        return dataclasses.replace(
            self,
            layers=dict(sorted({**self.layers, **newer.layers}.items())),
            fingerprints=tuple(dict.fromkeys(self.fingerprints + newer.fingerprints)),
            corpus="; ".join(dict.fromkeys([*self.corpus.split("; "), *newer.corpus.split("; ")])),
            tokens=min(self.tokens, newer.tokens),
        )

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file: diagonals in 32 bits, factors in 16, each column scaled by a power of 2."""
        tensors = {}
        for layer, one in self.layers.items():
            scales = _scales(one.factors)
            tensors[f"{layer}.diagonal"] = one.diagonal.float().cpu().contiguous()
            tensors[f"{layer}.factors"] = (one.factors.float().cpu() / scales).to(torch.float16).contiguous()
            tensors[f"{layer}.scales"] = scales
        about = {"format": FORMAT, "fingerprints": self.fingerprints, "corpus": self.corpus, "tokens": self.tokens}
        with written_whole(path) as temporary:
            save_file(tensors, temporary, metadata={"statistics": json.dumps(about)})
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> Statistics:
        """Read a file that `save` wrote.

        Raises:
            SurgeryError: there is no such file, or it is something else.
        """
        if not Path(path).is_file():
            raise SurgeryError(f"there is no statistics file {path}; make it with surgery stats --corpus FILE")
        try:
            with safe_open(str(path), framework="pt") as file:
                about = json.loads((file.metadata() or {}).get("statistics", "null"))
                if not isinstance(about, dict) or about.get("format") not in (FORMAT, UNSCALED):
                    raise SurgeryError(f"{path} holds no key statistics; make them with surgery stats --corpus FILE")
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (a file, not a dict)
            layers = sorted(int(key.split(".")[0]) for key in tensors if key.endswith(".diagonal"))
            moments = {layer: _moment(path, layer, tensors) for layer in layers}
            return cls(moments, tuple(about["fingerprints"]), about["corpus"], about["tokens"])
        except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
            raise SurgeryError(f"{path} is damaged or cut off ({error}); fit the statistics again") from error


def _scales(factors: Float[Tensor, "d_ff rank"]) -> Float[Tensor, " rank"]:
    """Powers of 2 that bring each column's largest entry near the end of float16, so that small ones stay exact."""
    largest = factors.float().cpu().abs().amax(0)
    return torch.exp2(torch.ceil(torch.log2(torch.where(largest > 0, largest, 1.0) / LARGEST)))


def _moment(path: str | Path, layer: int, tensors: Mapping[str, Tensor]) -> SecondMoment:
    factors = tensors[f"{layer}.factors"].float()
    scales = tensors.get(f"{layer}.scales", torch.ones(factors.shape[1]))
    try:
        return SecondMoment(tensors[f"{layer}.diagonal"], factors * scales)
    except SurgeryError as error:
        raise SurgeryError(
            f"{path} is damaged: the key statistics of layer {layer} are not positive definite; fit them again"
        ) from error


def cached_file(fingerprint: str) -> Path:
    """Where statistics fitted for weights of this fingerprint are kept for later."""
    return cache_folder() / "statistics" / f"{fingerprint}.safetensors"


def keep_statistics(statistics: Statistics) -> Path:
    """Keep statistics for later edits of their weights, beside layers already kept. Returns the file.

    Raises:
        SurgeryError: the cache folder cannot be written to.
    """
    path = cached_file(statistics.fingerprints[0])
    if path.is_file():
        try:
            statistics = Statistics.load(path).merged(statistics)
        except SurgeryError as error:
            logger.warning("%s; it is replaced", error)
    return statistics.save(path)


def find_statistics(model: Model, layer: int, fingerprint: str | None = None) -> Statistics:
    """The shipped or cached statistics of a model's weights that cover a layer.

    Args:
        model: the model.
        layer: the layer.
        fingerprint: of its weights, where it has been read already.

    Raises:
        SurgeryError: there are none; never anything else in their place.
    """
    found = fingerprint or model.fingerprint
    shipped = files("surgery") / "data"
    with as_file(shipped) as folder:
        for path in [cached_file(found), *sorted(folder.glob("*.safetensors"))]:
            if path.is_file():
                statistics = Statistics.load(path)
                if found in statistics.fingerprints and layer in statistics.layers:
                    return statistics
    raise SurgeryError(
        f"there are no key statistics for layer {layer} of {model.source} ({found[:12]}); give --corpus FILE with some "
        f"{10 * model.anatomy.d_ff} tokens of ordinary text, or fit them with edits.fit_statistics and pass them on"
    )
