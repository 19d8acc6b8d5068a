"""What weights are known by: SHA-256 over a model's parameters, each hashed on its own, several at a time.

A weight's hash holds as long as nobody writes to it. PyTorch counts what is written to a tensor, but for what goes past
it by `weight.data` or from outside; so hashes are kept only inside a block that promises there is no such thing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import UInt8
from torch import Tensor
from transformers import PreTrainedModel

WORTH_THREADS = 2**23
"""Bytes of a model whose hash threads are worth starting for; fewer are hashed sooner than these run."""
PIECE = 2**25
"""Bytes that are fetched from a GPU at a time: fresh memory for a whole weight costs more than its hash."""


def fingerprint(hf: PreTrainedModel) -> str:
    """SHA-256 over every parameter of a model: name, type, shape and bytes; tied weights count once."""
    return Digests().of(hf)


def tensor_sha256(weight: Tensor) -> bytes:
    """SHA-256 of a tensor's bytes in their stored order."""
    whole = hashlib.sha256()
    for piece in _pieces(weight.detach().contiguous().flatten().view(torch.uint8)):
        whole.update(piece.numpy().data)
    return whole.digest()


def _pieces(data: UInt8[Tensor, " bytes"]) -> Iterator[UInt8[Tensor, " _"]]:
    """Bytes as they are on the CPU, or one after the other through the same memory there."""
    if data.device.type == "cpu":
        yield data
        return
    room = torch.empty(min(len(data), PIECE), dtype=torch.uint8, pin_memory=data.device.type == "cuda")
    for piece in data.split(PIECE):
        yield room[: len(piece)].copy_(piece)


def stamp(weight: Tensor) -> tuple[int, int]:
    """What changes when a weight is written to, as PyTorch counts it, or gets other memory."""
    return weight.data_ptr(), weight._version


@dataclass
class Digests:
    """The hashes of a model's weights, kept as long as `keeping` lasts, and not at all outside."""

    _depth: int = 0
    _kept: dict[str, tuple[Tensor, tuple[int, int], bytes]] = field(default_factory=dict)

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """A block in which a weight is hashed again only where PyTorch saw it written to, or it has other memory."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth:
                self._kept.clear()

    def of(self, hf: PreTrainedModel) -> str:
        """The model's fingerprint."""
        weights = sorted(hf.named_parameters())
        if sum(weight.nbytes for _, weight in weights) < WORTH_THREADS:
            digests = [self._digest(name, weight) for name, weight in weights]
        else:
            # the largest first: one begun last would be waited for alone
            order = sorted(range(len(weights)), key=lambda i: -weights[i][1].nbytes)
            with ThreadPoolExecutor() as pool:
                begun = {i: pool.submit(self._digest, *weights[i]) for i in order}
            digests = [begun[i].result() for i in range(len(weights))]
        return hashlib.sha256(b"".join(digests)).hexdigest()

    def _digest(self, name: str, weight: Tensor) -> bytes:
        if not self._depth:
            return _hashed(name, weight)
        # the weight itself is kept, so that no other can take its place in memory
        now, kept = stamp(weight), self._kept.get(name)
        if kept is None or kept[0] is not weight or kept[1] != now:
            kept = self._kept[name] = weight, now, _hashed(name, weight)
        return kept[2]


def _hashed(name: str, weight: Tensor) -> bytes:
    head = f"{name} {weight.dtype} {tuple(weight.shape)}".encode()
    return hashlib.sha256(head + tensor_sha256(weight)).digest()
