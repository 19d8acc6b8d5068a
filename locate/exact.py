"""A screen's estimates against exact effects: units restored one at a time, and rank correlations.

1. Restoring a unit: the corrupted runs with that unit alone put back to what it was in the clean run, the rest computed
   from there, as in `causal_trace`; rows of many units go through the model together.
2. Its exact effect: the metric in those runs minus the metric in the corrupted runs, mean over the samples.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from scipy.stats import pearsonr, spearmanr
from torch import Tensor

from locate.contrast import Contrast, Runs, Unit
from locate.screen import Screen
from locate.trace import Trace
from surgery.errors import SurgeryError
from surgery.model import Model
from surgery.numbers import mean_and_error

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DRIFT = 1e-3
"""Largest change of the metric, in parts of its distance between the two runs, that repeating a run may make."""


@dataclass(frozen=True)
class Agreement:
    """How well estimates follow exact effects.

    Attributes:
        spearman: rank correlation, -1 to 1; the many small effects decide it.
        pearson: linear correlation, -1 to 1; the few large effects decide it.
        found: of the tenth of the units with the largest exact effects by magnitude, the share that is among the tenth
            with the largest estimates; 0.1 by chance.
        cells: number of units compared.
    """

    spearman: float
    pearson: float
    found: float
    cells: int

    def __post_init__(self) -> None:
        if not (abs(self.spearman) <= 1 + 1e-9 and abs(self.pearson) <= 1 + 1e-9 and 0 <= self.found <= 1):
            raise ValueError(f"{self.spearman}, {self.pearson} and {self.found} are no correlations and share")

    def __str__(self) -> str:
        return (
            f"rank correlation {self.spearman:.2f}, linear {self.pearson:.2f}, {self.found:.0%} of the largest tenth "
            f"found, over {self.cells} units"
        )

    @classmethod
    def of(cls, estimated: Float[np.ndarray, " cells"], exact: Float[np.ndarray, " cells"]) -> Agreement:
        """Correlations of two lists of effects.

        Raises:
            SurgeryError: there is nothing to correlate: fewer than 3 units, or one list is all the same.
        """
        if len(exact) < 3 or np.ptp(estimated) == 0 or np.ptp(exact) == 0:
            raise SurgeryError(
                f"{len(exact)} effects, from {exact.min():g} to {exact.max():g}, cannot be ranked; compare at least 3, "
                "with a corruption that changes the answer"
            )
        k = max(1, len(exact) // 10)
        largest = [set(np.argsort(-np.abs(effects), kind="stable")[:k].tolist()) for effects in (estimated, exact)]
        return cls(
            spearman=float(spearmanr(estimated, exact)[0]),
            pearson=float(pearsonr(estimated, exact)[0]),
            found=len(largest[0] & largest[1]) / k,
            cells=len(exact),
        )


@dataclass(frozen=True, eq=False)
class Verified:
    """Units of a screen, restored exactly.

    Attributes:
        screen: the screen.
        units: the units, in the order they were given in.
        estimated: their scores in the screen.
        exact: the metric with the unit restored minus the metric without, mean over the samples.
        errors: standard error of each exact effect over the samples, 0 where there is only one.
        forwards: forward passes, of up to some thousand tokens each.
        seconds: wall-clock time.
    """

    screen: Screen
    units: tuple[Unit, ...]
    estimated: Float[np.ndarray, " units"]
    exact: Float[np.ndarray, " units"]
    errors: Float[np.ndarray, " units"]
    forwards: int
    seconds: float

    def __post_init__(self) -> None:
        if not len(self.units) == len(self.estimated) == len(self.exact) == len(self.errors):
            raise ValueError(f"{len(self.units)} units do not label {len(self.exact)} effects")

    @property
    def agreement(self) -> Agreement:
        """Correlations over the units; among the top of a screen they are lower than over all units."""
        return Agreement.of(self.estimated, self.exact)

    def as_record(self) -> dict[str, Any]:
        """Everything but the screen, as JSON values."""
        return {
            "unit": self.screen.unit,
            "metric": self.screen.metric.name,
            "method": str(self.screen.method),
            "units": [str(unit) for unit in self.units],
            "estimated": self.estimated.tolist(),
            "exact": self.exact.tolist(),
            "errors": self.errors.tolist(),
            "cost": {"forwards": self.forwards, "seconds": self.seconds},
        }

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw estimates against exact effects; see `locate.figures.estimates`."""
        from locate.figures import estimates

        return estimates(self, ax)


def verified(screen: Screen, model: Model, units: Sequence[Unit]) -> Verified:
    """Restore units of a screen exactly, one at a time.

    Args:
        screen: the screen; its corruption, draws and metric are used again.
        model: the model screened.
        units: which units, such as `screen.top(40)`.

    Raises:
        SurgeryError: no unit is given, one is none of the screen's, or the model is not the one screened.
    """
    started = time.perf_counter()
    if not units:
        raise SurgeryError("there is no unit to verify; give some, such as screen.top(20)")
    _check_units(screen, units)
    contrast = Contrast(model, screen.fact, screen.unit, screen.metric, screen.corruption, screen.samples, screen.seed)
    if len(contrast.sites) != screen.scores.shape[1] or contrast.width != len(screen.tokens):
        raise SurgeryError(f"{model.source} is not the model screened; give {screen.model}, as it was")
    clean, corrupted = contrast.clean(), contrast.corrupted()
    _check_metric(screen, clean, corrupted)
    shifts = [_shift(contrast, clean, corrupted, unit) for unit in units]
    effects = (contrast.restored(units, shifts) - corrupted.metric).double().cpu().numpy()
    exact, errors = mean_and_error(effects)
    return Verified(
        screen=screen,
        units=tuple(units),
        estimated=np.array([screen.score(unit) for unit in units]),
        exact=exact,
        errors=errors,
        forwards=contrast.forwards,
        seconds=time.perf_counter() - started,
    )


def agreement(screen: Screen, exact: Trace) -> Agreement:
    """Correlations of a screen of mlp or attention outputs with an exact trace, from the subject's first token on.

    Effects of earlier cells are 0 in both; cells the trace was not asked for are left away.

    Raises:
        SurgeryError: the trace restored something else, several layers at once or in the other direction, or is of
            another fact, corruption or metric.
    """
    if screen.unit != exact.kind:
        raise SurgeryError(f"a screen of {screen.unit} units does not estimate a trace of kind {exact.kind!r}")
    if exact.window != 1:
        raise SurgeryError(f"the trace restored {exact.window} layers at once, a screen one; trace with window=1")
    if exact.direction != "restore":
        raise SurgeryError(
            "a screen estimates what restoring does, and the trace noised; trace with direction='restore'"
        )
    for what, one, other in (
        ("fact", screen.fact, exact.fact),
        ("corruption", str(screen.corruption), exact.corruption),
        ("metric", screen.metric.name, exact.metric),
        ("number of samples", screen.samples, exact.samples),
        ("shape", screen.scores.shape, exact.scores.shape),
    ):
        if one != other:
            raise SurgeryError(f"screen and trace are not of the same {what}: {one} and {other}; repeat one of them")
    asked = ~np.isnan(exact.effects)
    asked[: screen.subject.start] = False
    # normalised effects are shares of the way from the corrupted to the clean run, whichever is higher
    sign = np.sign(screen.clean - screen.corrupted) if screen.metric.normalised else 1.0
    return Agreement.of(sign * screen.scores[asked], exact.effects[asked])


def _check_metric(screen: Screen, clean: Runs, corrupted: Runs) -> None:
    """Refuse runs that are not those of the screen."""
    drift = max(
        abs(float(clean.metric[0]) - screen.clean), abs(float(corrupted.metric.double().mean()) - screen.corrupted)
    )
    if drift > DRIFT * abs(screen.clean - screen.corrupted) + 1e-6:
        raise SurgeryError(
            f"the answer's {screen.metric.name} is off by {drift:.3g} from the screen's; "
            "give the model as it was screened"
        )


def _check_units(screen: Screen, units: Sequence[Unit]) -> None:
    for unit in units:
        place = (unit.position, unit.layer) + (() if unit.index is None else (unit.index,))
        shape = screen.scores.shape
        if (
            unit.kind != screen.unit
            or len(place) != len(shape)
            or not all(0 <= one < size for one, size in zip(place, shape, strict=True))
        ):
            raise SurgeryError(f"{unit} is no unit of this screen of {screen.unit} units with shape {list(shape)}")


def _shift(contrast: Contrast, clean: Runs, corrupted: Runs, unit: Unit) -> Float[Tensor, "samples d_model"]:
    """What restoring a unit adds to its site's output."""
    moved = (clean.units[unit.layer] - corrupted.units[unit.layer])[:, unit.position]
    if unit.index is None:
        return moved
    width = moved.shape[1] // contrast.indices
    part = slice(unit.index * width, (unit.index + 1) * width)
    return moved[:, part] @ contrast.model.anatomy.matrix(contrast.sites[unit.layer])[:, part].T
