"""Key statistics from text: the second moment of the keys, summed over every token.

1. The text is cut into pieces, which are read in a fixed order (`edits.pieces`).
2. A batch of keys gives K^T K in float32, which is added up in float64 (`edits.checkpoint` keeps the sums).
3. Layers share a pass as far as their sums fit in `FITTED_BYTES`; the others take passes of their own.
4. The mean is kept as diagonal plus low rank (`edits.moment`), after a look at its eigenvalues.

About 10 d_ff tokens are enough: a rank-deficient sum is what less gives, and more changes little (`edits.convergence`
measures it on the text at hand).
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from edits.checkpoint import Checkpoint
from edits.moment import SecondMoment
from edits.pieces import Batch, Pieces, read_pieces
from edits.statistics import Statistics
from surgery.errors import SurgeryError
from surgery.hooks import TraceDict, hidden
from surgery.model import Model
from surgery.products import fast_products
from surgery.progress import counter
from surgery.site import Site
from surgery.tokens import pad

logger = logging.getLogger(__name__)

FITTED_BYTES = 2**31
"""Most that second moments may take while they are summed; a single one may be larger."""
TOKENS_PER_NEURON = 10


@runtime_checkable
class Watch(Protocol):
    """Looks at the sums while they grow, and changes nothing about them.

    What it wants to keep, it puts into `kept`, which outlives a stop.
    """

    def begin(self, pieces: Pieces) -> str:
        """Before anything is read; returns what its numbers depend on."""
        ...

    def look(self, layer: int, batch: int, total: Tensor, kept: dict[str, Tensor]) -> None:
        """After so many batches, the keys' products [d_ff, d_ff] have this total."""
        ...

    def end(self, kept: Mapping[str, Tensor]) -> None:
        """After the last layer."""
        ...


def fit_statistics(
    model: Model,
    texts: Iterable[str],
    layers: Sequence[int],
    *,
    rank: int = 64,
    corpus: str = "texts",
    width: int = 256,
    tokens: int | None = None,
    progress: bool = True,
    resume: str | Path | None = None,
    watch: Watch | None = None,
) -> Statistics:
    """Fit key statistics on texts. About 10 d_ff tokens are enough; more change little.

    A layer's sum takes 8 d_ff^2 bytes: 19 MB for d_ff = 1536, 1.6 GB for 14336. Layers beyond what `FITTED_BYTES`
    (2 GB) hold together are fitted in further passes over the same text.

    Args:
        model: whose keys.
        texts: ordinary text, a passage each; longer ones are cut into pieces of `width` tokens.
        layers: which layers.
        rank: eigenpairs kept a layer.
        corpus: name of the texts, kept for the record.
        width: tokens that share a context.
        tokens: read the texts, in their order, until there are so many tokens; None reads all.
        progress: show a bar where somebody is looking.
        resume: a file that keeps the sums, written once a minute and deleted at the end. After a stop of any kind the
            same call goes on from it and gives the same numbers, bit for bit.
        watch: looks at the sums while they grow; see `edits.fit_with_convergence`.

    Raises:
        SurgeryError: a layer does not exist, there is too little text to say anything, keys are not finite, or the
            file to resume from was left by another fit.
    """
    names = _names(model, layers)
    pieces = read_pieces(model, texts, width=width, tokens=tokens)
    _check_enough(pieces.tokens, model.anatomy.d_ff, rank)
    watched = watch.begin(pieces) if watch else ""
    together = max(1, FITTED_BYTES // (8 * model.anatomy.d_ff**2))
    groups = [tuple(names)[start : start + together] for start in range(0, len(names), together)]
    fingerprint = model.fingerprint
    about = json.dumps([fingerprint, groups, rank, pieces.batches, watched])
    kept = Checkpoint.open(resume, hashlib.sha256(about.encode()).hexdigest())
    with counter(len(groups) * len(pieces.batches), "key statistics", show=progress) as shown:
        shown.update(kept.step)
        for step in range(kept.step, len(groups) * len(pieces.batches)):
            group, batch = divmod(step, len(pieces.batches))
            _read(model, pieces, batch, {layer: names[layer] for layer in groups[group]}, kept.tensors, watch)
            if batch + 1 == len(pieces.batches):
                _finish(groups[group], pieces.tokens, rank, kept.tensors)
            kept.advance()
            shown.update(1)
    if watch:
        watch.end(kept.tensors)
    kept.remove()
    moments = {n: SecondMoment(kept.tensors[f"{n}.diagonal"], kept.tensors[f"{n}.factors"]) for n in names}
    return Statistics(moments, (fingerprint,), corpus, pieces.tokens)


def _names(model: Model, layers: Sequence[int]) -> dict[int, str]:
    if not layers:
        raise SurgeryError("give at least one layer to fit key statistics for")
    return {layer: model.anatomy.name(Site.at(layer, "mlp")) for layer in sorted(set(layers))}


def _check_enough(tokens: int, d_ff: int, rank: int) -> None:
    wanted = TOKENS_PER_NEURON * d_ff
    if rank < 1:
        raise SurgeryError(f"a rank of {rank} keeps nothing; give at least 1")
    if tokens < 2 * rank:
        raise SurgeryError(f"{tokens} tokens of text are too few for statistics of rank {rank}; give {wanted}")
    if tokens < wanted:
        logger.warning("%d tokens are few for an mlp %d wide; give %d to settle its statistics", tokens, d_ff, wanted)


def _read(
    model: Model, pieces: Pieces, at: int, names: Mapping[int, str], kept: dict[str, Tensor], watch: Watch | None
) -> None:
    """Add a batch's keys to the sums of some layers, which start with the first batch."""
    d_ff = model.anatomy.d_ff
    place = model.device if model.device.type == "cuda" else torch.device("cpu")
    for layer, product in _products(model, pieces.batches[at], names):
        name = f"{layer}.sum"
        total = kept[name].to(place) if at else torch.zeros(d_ff, d_ff, dtype=torch.float64, device=place)
        total += product.to(place)
        kept[name] = total
        if watch:
            watch.look(layer, at + 1, total, kept)


@torch.no_grad()
def _products(model: Model, rows: Batch, names: Mapping[int, str]) -> Iterable[tuple[int, Tensor]]:
    """K^T K of the keys of a batch [d_ff, d_ff] in float32, layer by layer."""
    batch = pad(rows, device=model.device)
    with (
        fast_products(model.hf),
        TraceDict(model.hf, names.values(), retain_output=False, retain_input=True, stop=True) as trace,
    ):
        model.hf(**model.inputs(batch))
    for layer, name in names.items():
        keys = hidden(trace[name].input, len(rows))[batch.mask.bool()].float()
        yield layer, keys.T @ keys


def _finish(layers: Sequence[int], count: int, rank: int, kept: dict[str, Tensor]) -> None:
    """Put diagonal and factors in the place of sums."""
    for layer in layers:
        total = kept.pop(f"{layer}.sum")
        total /= count
        moment = SecondMoment.of(total, rank)
        smallest, largest = moment.extremes()
        if not smallest > 0:
            raise SurgeryError(
                f"the key statistics of layer {layer} have an eigenvalue of {smallest:.2g}; fit them on more text"
            )
        logger.info("layer %d: eigenvalues from %.3g to %.3g", layer, smallest, largest)
        kept[f"{layer}.diagonal"], kept[f"{layer}.factors"] = moment.diagonal, moment.factors.contiguous()
