"""An editing method with the key statistics of each layer: its own, those shipped or cached, or fitted on texts."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Sequence

from edits.fitting import FITTED_BYTES, fit_statistics
from edits.method import Method
from edits.statistics import Statistics, find_statistics
from surgery.errors import SurgeryError
from surgery.model import Model
from surgery.site import Site

logger = logging.getLogger(__name__)


class LayerStatistics:
    """Which of some layers a method can edit, and the method ready for each.

    A method without key statistics can edit all of them, as it is. For the others, a layer has the method's own
    statistics if the method brings any, else those shipped or cached for the weights. One without is fitted on `texts`
    when it is first needed, as many layers together as `FITTED_BYTES` hold, or left out where there are no texts.

    Attributes:
        layers: those that can be edited, ascending.
        left_out: the others, with the reason.

    Raises:
        SurgeryError: the model has no such layer, none can be edited, or there are texts the method has no use for.
        WrongWeights: the method's statistics belong to other weights.
    """

    def __init__(self, model: Model, method: Method, layers: Sequence[int], texts: Sequence[str] | None) -> None:
        self._model, self._method, self._texts = model, method, texts
        self._own: Statistics | None = getattr(method, "statistics", None)
        self._found: dict[int, Statistics] = {}
        self._waiting: list[int] = []
        if texts is not None and not method.uses_statistics:
            raise SurgeryError(f"{method.name} uses no key statistics; leave the texts to fit them on away")
        if self._own is not None:
            self._own.of(model, next(iter(self._own.layers)))
        asked = sorted(set(layers))
        for layer in asked:
            model.anatomy.name(Site.at(layer, "mlp"))
            if not method.uses_statistics:
                continue
            if (found := self._existing(layer)) is not None:
                self._found[layer] = found
            elif texts is not None:
                self._waiting.append(layer)
        self.layers = tuple(sorted([*self._found, *self._waiting])) if method.uses_statistics else tuple(asked)
        self.left_out = tuple((layer, "no key statistics") for layer in asked if layer not in self.layers)
        if not self.layers:
            raise SurgeryError(
                f"none of the layers {asked} can be edited, as there are no key statistics; give texts= with some "
                f"{10 * model.anatomy.d_ff} tokens of ordinary text to fit them on"
            )

    def digest(self, layer: int) -> str:
        """A name of the layer's statistics, which says the same before and after they are fitted."""
        if not self._method.uses_statistics:
            return "no statistics"
        if layer in self._waiting:
            return hashlib.sha256(json.dumps(list(self._texts or ())).encode()).hexdigest()
        moment = self._found[layer].layers[layer]
        parts = [part.cpu().numpy().tobytes() for part in (moment.diagonal, moment.factors)]
        return hashlib.sha256(b"".join(parts)).hexdigest()

    def method(self, layer: int) -> Method:
        """The method with the layer's statistics, fitted now if they have to be.

        Raises:
            SurgeryError: the texts are too short.
        """
        if not self._method.uses_statistics:
            return self._method
        if layer not in self._found:
            together = max(1, FITTED_BYTES // (8 * self._model.anatomy.d_ff**2))
            group = [one for one in self._waiting if one >= layer and one not in self._found][:together]
            fitted = fit_statistics(self._model, self._texts or (), group, progress=False)
            self._found |= dict.fromkeys(group, fitted)
        return dataclasses.replace(self._method, statistics=self._found[layer])  # type: ignore[type-var]

    def _existing(self, layer: int) -> Statistics | None:
        known = [self._own] if self._own is not None else list(self._found.values())
        found = next((one for one in known if layer in one.layers), None)
        if found is not None or self._own is not None:
            return found
        try:
            return find_statistics(self._model, layer)
        except SurgeryError as error:
            logger.info("%s", error)
            return None
