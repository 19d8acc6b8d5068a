"""What a long computation has so far, in a file it can go on from after any kind of stop."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from surgery.errors import SurgeryError
from surgery.files import check_writable, written_whole

logger = logging.getLogger(__name__)

SECONDS = 60.0
"""A file is written when the last one is so old; a stop loses no more than that."""


@dataclass(eq=False)
class Checkpoint:
    """Steps done and tensors so far.

    Attributes:
        path: the file; None keeps nothing.
        digest: of everything the tensors depend on.
        tensors: by name; whoever computes changes them in place, between two calls of `advance`.
        step: how many steps are done.
    """

    path: Path | None
    digest: str
    tensors: dict[str, Tensor] = field(default_factory=dict)
    step: int = 0
    _saved: float = field(default_factory=time.monotonic)

    @classmethod
    def open(cls, path: str | Path | None, digest: str) -> Checkpoint:
        """The checkpoint in a file, or an empty one where there is no file yet.

        Raises:
            SurgeryError: the file belongs to something else, is damaged, or could not be written.
        """
        if path is None:
            return cls(None, digest)
        path = Path(path)
        if not path.is_file():
            check_writable(path)
            return cls(path, digest)
        try:
            with safe_open(str(path), framework="pt") as file:
                about = file.metadata() or {}
                if about.get("digest") != digest:
                    raise SurgeryError(
                        f"{path} was left by another fit, of other text, layers, weights or settings; repeat that one "
                        "to go on with it, or delete the file to start over"
                    )
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (a file, not a dict)
        except (SafetensorError, OSError) as error:
            raise SurgeryError(f"{path} is damaged or cut off ({error}); delete it to start over") from error
        logger.info("going on from %s after %s steps", path, about["step"])
        return cls(path, digest, tensors, int(about["step"]))

    def advance(self) -> None:
        """Count a step as done, and write the file where that is due."""
        self.step += 1
        if self.path is not None and time.monotonic() - self._saved >= SECONDS:
            with written_whole(self.path) as temporary:
                tensors = {key: one.cpu().contiguous() for key, one in self.tensors.items()}
                save_file(tensors, temporary, metadata={"digest": self.digest, "step": str(self.step)})
            self._saved = time.monotonic()

    def remove(self) -> None:
        """Delete the file: the result has been computed."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
