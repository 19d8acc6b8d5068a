"""One fact edited at one layer, rated before and after, and kept.

What is kept are ratings, not verdicts: another limit for neighbours needs no new edit.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edits.layer_statistics import LayerStatistics
from edits.method import Method
from surgery.errors import SurgeryError, WrongWeights
from surgery.fact import Fact
from surgery.model import Model
from surgery.predict import rate
from surgery.shipped import neutral_texts
from surgery.site import Site
from surgery.store import kept
from surgery.verification.drift import drift as moved
from surgery.verification.drift import log_probs
from surgery.verification.probes import Probe, probes_of

logger = logging.getLogger(__name__)

Ratings = list[list[float]]
"""For each probe, the probabilities of its answer and of the new one, which is nan for a neighbour."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What one edit gave.

    Attributes:
        fact: the fact, with its new answer.
        before: ratings of its probes by the model as it is.
        after: by the edited one.
        seen: prompts the method looked at; they are not held out.
        drift: nats a token on neutral text, nan if not asked for.
        steps: of the method, nan if it does not say.
        seconds: for the edit.
        refused: why the method refused, or None.
    """

    fact: Fact
    before: Ratings
    after: Ratings
    seen: Sequence[str]
    drift: float
    steps: float
    seconds: float
    refused: str | None

    def values(self, neighbour_shift: float) -> dict[str, float]:
        """The measures of `edits.layers.MEASURES`; nan where there is nothing to measure."""
        rest = {name: getattr(self, name) for name in ("drift", "steps", "seconds")}
        return {**_measures(self._probes, self.before, self.after, neighbour_shift), **rest}

    def unedited(self) -> dict[str, float]:
        """The measures of the prompts, of the model as it is."""
        return _measures(self._probes, self.before, self.before, 1.0)

    @property
    def _probes(self) -> list[Probe]:
        return probes_of([self.fact], "rewritten", self.seen)[0]


class Trials:
    """Edits by fact and layer, made when asked for, or from a folder where they are kept."""

    def __init__(
        self, model: Model, method: Method, statistics: LayerStatistics, folder: Path | None, *, drift: bool
    ) -> None:
        self._model, self._statistics, self._folder = model, statistics, folder
        self._base = model.fingerprint
        self._settings = f"{method.name} {sorted(settings(method).items())} drift={drift}"
        self._before: dict[Fact, Ratings] = {}
        self._texts = neutral_texts() if drift else None
        self._text_before: Any = None

    def of(self, fact: Fact, layer: int) -> Trial:
        """What editing one fact at one layer gives.

        Raises:
            SurgeryError: the fact's prompts and answers cannot be read. What the method refuses is in the trial.
        """
        about = f"{self._base} {json.dumps(fact.as_record(), sort_keys=True)}"
        if fact not in self._before:
            self._before[fact] = kept(self._folder, f"ratings 1 {about}", lambda: self._ratings(fact))
        key = f"trial 1 {self._settings} {self._statistics.digest(layer)} {layer} {about}"
        record = kept(self._folder, key, lambda: self._edited(fact, layer))
        return Trial(fact=fact, before=self._before[fact], **record)

    def _edited(self, fact: Fact, layer: int) -> dict[str, Any]:
        method, site = self._statistics.method(layer), Site.at(layer, "mlp")
        if self._texts is not None and self._text_before is None:
            self._text_before = log_probs(self._model, self._texts)
        started = time.perf_counter()
        try:
            edit = method(self._model, fact, [site])
            seconds = time.perf_counter() - started
            with edit.applied(self._model):
                after = self._ratings(fact)
                shifted = self._drift()
        except WrongWeights:
            raise
        except SurgeryError as error:
            logger.info("%s is not edited at %s: %s", fact.label, site, error)
            drift = 0.0 if self._texts else np.nan
            rest = {"drift": drift, "steps": np.nan, "seconds": np.nan, "refused": str(error)}
            return {"after": self._before[fact], "seen": [], **rest}
        steps = [float(one["steps"]) for one in edit.log if "steps" in one]
        return {
            "after": after,
            "seen": list(edit.prompts),
            "drift": shifted,
            "steps": sum(steps) if steps else np.nan,
            "seconds": seconds,
            "refused": None,
        }

    def _drift(self) -> float:
        if self._texts is None:
            return np.nan
        return moved(self._model, self._texts, self._text_before, log_probs(self._model, self._texts)).divergence

    def _ratings(self, fact: Fact) -> Ratings:
        probes, _ = probes_of([fact], "rewritten", ())
        old = rate(self._model, [(probe.prompt, probe.target) for probe in probes])
        asked = [(probe.prompt, probe.new_target) for probe in probes if probe.new_target is not None]
        new = [one.probability for one in rate(self._model, asked)] + [np.nan] * (len(probes) - len(asked))
        return [[one.probability, other] for one, other in zip(old, new, strict=True)]


def settings(method: Method) -> dict[str, str]:
    """A method's settings but its statistics, in words."""
    names = [field.name for field in dataclasses.fields(method)]  # type: ignore[arg-type]  # methods are dataclasses
    return {name: repr(getattr(method, name)) for name in names if name not in ("statistics", "progress")}


def _measures(probes: Sequence[Probe], before: Ratings, after: Ratings, shift: float) -> dict[str, float]:
    rows = list(zip(probes, before, after, strict=True))
    (own,) = [now for probe, _, now in rows if probe.role == "prompt"]
    held_out = [now for probe, _, now in rows if probe.role == "paraphrase" and probe.held_out]
    moves = [abs(now[0] - was[0]) for probe, was, now in rows if probe.role == "neighbour"]
    return {
        "efficacy": float(own[1] > own[0]),
        "paraphrase": _mean([float(new > old) for old, new in held_out]),
        "neighbour": _mean([float(move <= shift) for move in moves]),
        "probability": own[1],
        "paraphrase probability": _mean([new for _, new in held_out]),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
