"""What a base model answers, kept by the caller while many edits of it are judged.

Without one, each verification asks the base model anew; of fifty edits, half of the time goes there.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from surgery.errors import SurgeryError
from surgery.fact import Fact
from surgery.model import Model
from surgery.verification.attack import Attack, Attempt
from surgery.verification.drift import log_probs
from surgery.verification.probes import Measured, Probe, measure


class Baseline:
    """Measurements of one base model, made when first asked for.

    Args:
        model: the base model; whenever this is asked, it must be as it was then.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._base = model.fingerprint
        self._measured: dict[Probe, Measured] = {}
        self._log_probs: dict[tuple[str, ...], list[Float[Tensor, "tokens vocab"]]] = {}
        self._attempts: dict[tuple[Attack, tuple[Fact, ...]], Attempt] = {}

    def measure(self, probes: Sequence[Probe]) -> list[Measured]:
        """What the base model makes of some probes.

        Raises:
            SurgeryError: the model's weights are not those of the beginning.
        """
        self._check()
        asked = [probe for probe in dict.fromkeys(probes) if probe not in self._measured]
        self._measured.update(zip(asked, measure(self._model, asked), strict=True))
        return [self._measured[probe] for probe in probes]

    def log_probs(self, texts: Sequence[str]) -> list[Float[Tensor, "tokens vocab"]]:
        """Its next-token log-probabilities on some texts, as `drift.log_probs` gives them.

        Raises:
            SurgeryError: the model's weights are not those of the beginning.
        """
        self._check()
        key = tuple(texts)
        if key not in self._log_probs:
            self._log_probs[key] = log_probs(self._model, texts)
        return self._log_probs[key]

    def attempt(self, attack: Attack, facts: tuple[Fact, ...]) -> Attempt:
        """What an attack brings up on the base model.

        Raises:
            SurgeryError: the model's weights are not those of the beginning.
        """
        self._check()
        key = attack, facts
        if key not in self._attempts:
            self._attempts[key] = attack(self._model, facts)
        return self._attempts[key]

    def check(self, model: Model) -> None:
        """Whether this is a baseline of that model.

        Raises:
            SurgeryError: it is another one's.
        """
        if model is not self._model:
            raise SurgeryError("the baseline was measured on another model; make one with Baseline(model)")

    def _check(self) -> None:
        if self._model.fingerprint != self._base:
            raise SurgeryError(
                "the model's weights changed since its baseline was made; undo the edit, or make a new Baseline(model)"
            )
