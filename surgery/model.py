"""A loaded model with its tokenizer and anatomy, and how to ask it."""

from __future__ import annotations

import copy
import inspect
import logging
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from surgery.anatomy import Anatomy, embedding_table, examine, probe_ids
from surgery.checkpoint import converted_gguf, default_gguf, quiet_transformers, usable_folder
from surgery.errors import SurgeryError
from surgery.fingerprint import Digests
from surgery.tokens import Batch

if TYPE_CHECKING:
    from surgery.replay import Axes

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Model:
    """A causal language model one can operate on.

    Attributes:
        hf: the transformers model, in evaluation mode.
        tokenizer: its tokenizer.
        anatomy: where its parts are.
        source: what it was loaded from, for reports.
        perplexities: what was measured of it, by fingerprint of the weights and texts.
    """

    hf: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    anatomy: Anatomy
    source: str
    perplexities: dict[tuple[str, tuple[str, ...]], float] = field(default_factory=dict, init=False, repr=False)
    _digests: Digests = field(default_factory=Digests, init=False, repr=False)

    @property
    def device(self) -> torch.device:
        """Where its token embedding is, and so where token ids go."""
        return embedding_table(self.hf).device

    @property
    def dtype(self) -> torch.dtype:
        """Type of its weights."""
        return embedding_table(self.hf).dtype

    @property
    def fingerprint(self) -> str:
        """SHA-256 over name, type, shape and bytes of every parameter, read anew at each call (0.3 s for 500 MB)."""
        return self._digests.of(self.hf)

    def read_once(self) -> AbstractContextManager[None]:
        """A block in which `fingerprint` reads again only what was written to, as PyTorch counts it.

        For blocks in which no weight is changed by `weight.data` or from outside PyTorch.
        """
        return self._digests.keeping()

    @cached_property
    def block_axes(self) -> list[dict[str, Axes]]:
        """What the axes of each block's arguments mean, by name (`surgery.replay`); found once, by a short run.

        Raises:
            CannotReplay: the blocks cannot be run one by one.
        """
        from surgery.replay import Replay  # which needs a model first

        with torch.no_grad():
            return Replay(self, tuple(probe_ids(self.hf)[0].tolist())).axes

    def astype(self, dtype: str | torch.dtype) -> Model:
        """A copy with weights of another type; the model itself where it has that type already.

        Raises:
            SurgeryError: there is no such type.
        """
        wanted = as_dtype(dtype)
        if wanted == self.dtype:
            return self
        hf = copy.deepcopy(self.hf).to(wanted)  # type: ignore[arg-type]  # transformers' decorator hides the signature
        return Model(hf, self.tokenizer, examine(hf), self.source)

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """Keyword arguments that give the model a batch, positions included where it takes them.

        Raises:
            SurgeryError: a row is longer than the model can read.
        """
        limit = self.anatomy.max_positions
        if limit is not None and int(batch.mask.sum(1).max()) > limit:
            raise SurgeryError(
                f"a text of {int(batch.mask.sum(1).max())} tokens is too long: {self.source} reads {limit}"
            )
        given: dict[str, Any] = {"input_ids": batch.ids, "attention_mask": batch.mask, "use_cache": False}
        if _takes_positions(self.hf):
            given["position_ids"] = batch.positions
        return given

    def normed_states(self, batch: Batch) -> Float[Tensor, "batch width d_model"]:
        """Last hidden states after the final norm; the head, often the largest product, is left to the caller."""
        return self.hf.base_model(**self.inputs(batch)).last_hidden_state

    def logits_at(self, batch: Batch, columns: Tensor) -> Float[Tensor, "batch *picked vocab"]:
        """Logits at one column a row [batch], or at several [batch, picked], in float32."""
        rows = torch.arange(len(columns), device=columns.device)
        states = self.normed_states(batch)
        picked = states[rows, columns] if columns.ndim == 1 else states[rows[:, None], columns]
        return self.anatomy.head(picked).float()


def load(
    source: str | Path | tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> Model:
    """Load a model to operate on. Code that comes with a checkpoint is never run.

    Args:
        source: None for the default model; else a hub id, a local folder, a `.gguf` file, or (model, tokenizer), which
            is put into evaluation mode and used as it is.
        device: where to; by default the first GPU if there is one, else the CPU.
        dtype: the weights' type; by default float32 on the CPU (exact, and as fast there), else the checkpoint's.

    Raises:
        SurgeryError: there is no such model or no weights in it, or device or dtype are unknown.
        UnsupportedModel: its architecture is not supported.
    """
    if isinstance(source, tuple):
        if device is not None or dtype is not None:
            raise SurgeryError("a model that is already loaded keeps its device and dtype; move it before load()")
        hf, tokenizer = source
        hf.eval()
        return Model(hf, tokenizer, examine(hf), getattr(hf, "name_or_path", "") or type(hf).__name__)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")) if _is_device(device) else None
    if place is None:
        raise SurgeryError(f"there is no device {str(device)!r}; write 'cpu', 'cuda' or 'cuda:1'")
    kind: Any = as_dtype(dtype) if dtype is not None else (torch.float32 if place.type == "cpu" else "auto")
    name = "SmolLM2-135M-Instruct" if source is None else str(source)
    folder = _folder(source)
    with quiet_transformers():
        try:
            hf = AutoModelForCausalLM.from_pretrained(folder, dtype=kind, trust_remote_code=False)
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except (OSError, ValueError, ImportError) as error:
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise SurgeryError(
                f"cannot load {name!r}: {reason} Give a model folder, a .gguf file or a hub id"
            ) from error
    hf.to(place)  # type: ignore[arg-type]  # transformers' decorator hides the signature
    hf.eval().requires_grad_(False)
    logger.info("loaded %s on %s in %s", name, place, hf.dtype)
    return Model(hf, tokenizer, examine(hf), name)


def as_dtype(name: str | torch.dtype) -> torch.dtype:
    """A floating-point type by its name.

    Raises:
        SurgeryError: there is none of that name.
    """
    found = name if isinstance(name, torch.dtype) else getattr(torch, str(name), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise SurgeryError(f"there is no dtype {str(name)!r}; write 'float32', 'bfloat16' or 'float16'")
    return found


def _folder(source: str | Path | None) -> str:
    if source is None:
        return str(converted_gguf(default_gguf()))
    if str(source).endswith(".gguf"):
        if not Path(source).is_file():
            raise SurgeryError(f"there is no file {source}; give the path of a .gguf file")
        return str(converted_gguf(Path(source)))
    looks_local = isinstance(source, Path) or str(source).startswith((".", "/", "~")) or Path(source).exists()
    return str(usable_folder(Path(source).expanduser())) if looks_local else str(source)


def _is_device(device: str | torch.device | None) -> bool:
    try:
        torch.empty(0, device=device or "cpu")
    except (RuntimeError, AssertionError):
        return False
    return True


def _takes_positions(hf: PreTrainedModel) -> bool:
    return "position_ids" in inspect.signature(hf.forward).parameters
