"""Second moments of an mlp's keys: what else the edited matrix is used for.

Meng et al. 2022 (https://arxiv.org/abs/2202.05262), eq. 2, need C = E[k k^T] over the inputs k of a down-projection on
ordinary text, uncentred. Kept here is its diagonal plus low rank form:

1. C is summed in float64 over every token of the texts.
2. Its largest eigenpairs give the factors F (F F^T = V diag(s) V^T); the diagonal holds what they leave over.
3. C^-1 k comes from Woodbury's identity in float64, without building C.

Per layer that is d_ff (rank + 1) numbers: 0.2 MB for d_ff = 1536 and rank 64 in 16 bits, where C takes 9 MB.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from surgery.errors import SurgeryError, WrongWeights
from surgery.files import cache_folder, written_whole
from surgery.hooks import TraceDict, hidden
from surgery.model import Model
from surgery.progress import bar
from surgery.site import Site
from surgery.tokens import encode, pad

FORMAT = "knowledge-surgery statistics 1"


@dataclass(frozen=True, eq=False)
class SecondMoment:
    """C = diag(diagonal) + factors factors^T, positive definite.

    Attributes:
        diagonal: [d_ff], above 0.
        factors: [d_ff, rank].
    """

    diagonal: Float[Tensor, " d_ff"]
    factors: Float[Tensor, "d_ff rank"]

    def __post_init__(self) -> None:
        if not (self.diagonal > 0).all() or not self.factors.isfinite().all():
            raise SurgeryError("key statistics are not positive definite; fit them on more text")

    @classmethod
    def of(cls, full: Float[Tensor, "d_ff d_ff"], rank: int) -> SecondMoment:
        """Diagonal plus low rank form of a full second moment, equal to it on the diagonal.

        The diagonal is kept at or above a millionth of its mean, so neurons that never fired cannot take an
        unlimited share of an edit.
        """
        values, vectors = torch.linalg.eigh(full.double())
        best = values.argsort(descending=True)[: min(rank, len(values))]
        factors = vectors[:, best] * values[best].clamp_min(0).sqrt()
        left = full.double().diagonal() - (factors**2).sum(1)
        return cls(left.clamp_min(1e-6 * float(full.diagonal().mean())).float(), factors.float())

    def solve(self, key: Float[Tensor, " d_ff"]) -> Float[Tensor, " d_ff"]:
        """C^-1 key, in float64."""
        d, f, k = self.diagonal.double().cpu(), self.factors.double().cpu(), key.double().cpu()
        inner = torch.eye(f.shape[1], dtype=torch.float64) + f.T @ (f / d[:, None])
        return k / d - (f / d[:, None]) @ torch.linalg.solve(inner, f.T @ (k / d))

    def dense(self) -> Float[Tensor, "d_ff d_ff"]:
        """C itself, in float64."""
        f = self.factors.double()
        return torch.diag(self.diagonal.double()) + f @ f.T


@dataclass(frozen=True, eq=False)
class Statistics:
    """Key statistics of some layers of one model.

    Attributes:
        layers: the second moment of each layer.
        fingerprints: of the weights they belong to; more than one for the same weights in other precisions.
        corpus: what they were fitted on, in words.
        tokens: how many tokens of it.
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

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file: diagonals in 32 bits, factors in 16."""
        tensors = {}
        for layer, one in self.layers.items():
            tensors[f"{layer}.diagonal"] = one.diagonal.float().contiguous()
            tensors[f"{layer}.factors"] = one.factors.to(torch.float16).contiguous()
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
                if not isinstance(about, dict) or about.get("format") != FORMAT:
                    raise SurgeryError(f"{path} holds no key statistics; make them with surgery stats --corpus FILE")
                layers = {
                    int(key.split(".")[0]): SecondMoment(
                        file.get_tensor(key), file.get_tensor(key.replace("diagonal", "factors")).float()
                    )
                    for key in file.keys()  # noqa: SIM118 (a file, not a dict)
                    if key.endswith(".diagonal")
                }
            return cls(dict(sorted(layers.items())), tuple(about["fingerprints"]), about["corpus"], about["tokens"])
        except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
            raise SurgeryError(f"{path} is damaged or cut off ({error}); fit the statistics again") from error


def fit_statistics(
    model: Model,
    texts: Iterable[str],
    layers: Sequence[int],
    *,
    rank: int = 64,
    corpus: str = "texts",
    width: int = 256,
    progress: bool = True,
) -> Statistics:
    """Fit key statistics on texts. About 10 d_ff tokens are enough; more change little.

    Args:
        model: whose keys.
        texts: ordinary text, a passage each; longer ones are cut into pieces of `width` tokens.
        layers: which layers.
        rank: eigenpairs kept a layer.
        corpus: name of the texts, kept for the record.
        width: tokens that share a context.
        progress: show a bar where somebody is looking.

    Raises:
        SurgeryError: a layer does not exist, or there is too little text to say anything.
    """
    if not layers:
        raise SurgeryError("give at least one layer to fit key statistics for")
    names = {layer: model.anatomy.name(Site.at(layer, "mlp")) for layer in sorted(set(layers))}
    d_ff = model.anatomy.d_ff
    sums = {layer: torch.zeros(d_ff, d_ff, dtype=torch.float64) for layer in names}
    width = min(width, model.anatomy.max_positions or width)
    rows = [
        ids[start : start + width]
        for ids in (encode(model.tokenizer, text).ids for text in texts if text.strip())
        for start in range(0, len(ids), width)
    ]
    tokens = sum(len(row) for row in rows)
    if tokens < 2 * rank:
        raise SurgeryError(f"{tokens} tokens of text are too few for statistics of rank {rank}; give {10 * d_ff}")
    rows.sort(key=len)
    batches = [rows[start : start + 8] for start in range(0, len(rows), 8)]
    with torch.no_grad():
        for part in bar(batches, "key statistics", show=progress):
            batch = pad(part, device=model.device)
            with TraceDict(model.hf, names.values(), retain_output=False, retain_input=True, stop=True) as trace:
                model.hf(**model.inputs(batch))
            for layer, name in names.items():
                keys = hidden(trace[name].input, len(part))[batch.mask.bool()].float()
                sums[layer] += (keys.T @ keys).double().cpu()
    moments = {layer: SecondMoment.of(total / tokens, rank) for layer, total in sums.items()}
    return Statistics(moments, (model.fingerprint,), corpus, tokens)


def cached_file(fingerprint: str) -> Path:
    """Where statistics fitted for weights of this fingerprint are kept for later."""
    return cache_folder() / "statistics" / f"{fingerprint}.safetensors"


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
