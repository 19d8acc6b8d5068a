"""Scores of the same edits made at one layer after the other, and which layer they recommend.

1. Every fact is edited alone at every layer and scored (`edits.scores`).
2. The layer recommended is the one with the highest score, the lower one of equals.
3. A trace has no say in it: on GPT-J it does not predict at which layer a fact is edited well (Hase et al. 2023,
   https://arxiv.org/abs/2301.04213). It is kept beside the scores, with their rank correlation over layers, so that one
   sees whether it would have.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from scipy import stats

from edits.scores import SCORES, close, harmonic
from locate.profile import ROLES, AverageTrace
from surgery.errors import SurgeryError
from surgery.files import written_whole
from surgery.numbers import counted, json_numbers, means, wilson_ends
from surgery.site import Site

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMAT = "knowledge-surgery sweep 1"
RATED = (*SCORES, "probability", "paraphrase probability")
"""What rating prompts gives: also the new answer's probability on the prompt, and its mean over held-out wordings."""
MEASURES = (*RATED, "drift", "steps", "seconds")
"""All that is kept of an edit: also nats a token on neutral text, steps of the method, and its seconds."""


@dataclass(frozen=True, eq=False, kw_only=True)
class TraceProfile:
    """Mean effect of restoring mlp outputs at the subject's last token.

    Attributes:
        effect: by layer of the model [depth].
        margin: half its 95 % interval over facts, nan for a single fact [depth].
        facts: how many.
        about: metric, window and corruption, in words.
    """

    effect: Float[np.ndarray, " depth"]
    margin: Float[np.ndarray, " depth"]
    facts: int
    about: str

    def as_record(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        return {**vars(self), "effect": json_numbers(self.effect), "margin": json_numbers(self.margin)}

    @classmethod
    def of(cls, average: AverageTrace) -> TraceProfile:
        """The line of an averaged trace.

        Raises:
            SurgeryError: it has no mlp outputs.
        """
        if "mlp" not in average.profiles:
            raise SurgeryError(f"the trace is of {', '.join(average.profiles)}; a sweep is laid beside one of kind mlp")
        profile, row, settings = average.profiles["mlp"], ROLES.index("last subject"), average.settings
        about = f"{settings['metric']}, window of {settings['window']}, {settings['corruption']}"
        return cls(effect=profile.mean[row], margin=profile.margin[row], facts=profile.count[row], about=about)


@dataclass(frozen=True, eq=False, kw_only=True)
class Sweep:
    """A sample of facts, each edited alone at each of some layers.

    Attributes:
        layers: those edited, ascending.
        facts: labels of the facts with the new answers.
        values: by name of `MEASURES` [layers, facts]; nan where there is nothing to measure.
        unedited: those of `RATED` for the model as it is [facts]; its neighbours are all kept.
        trace: what tracing says of the model's layers, or None.
        left_out: layers that were asked for and could not be edited, with the reason.
        failed: (layer, fact, reason) of edits the method refused; they count as the unedited model. A fact refused at
            every layer is here with layer None and nowhere else.
        method: name of the editing method.
        settings: its settings, and how far a neighbour may move.
        model: name of the model.
        depth: how many layers it has.
        fingerprints: of its weights; more than one for the same weights in other precisions.
    """

    layers: tuple[int, ...]
    facts: tuple[str, ...]
    values: Mapping[str, Float[np.ndarray, "layers facts"]]
    unedited: Mapping[str, Float[np.ndarray, " facts"]]
    trace: TraceProfile | None
    left_out: tuple[tuple[int, str], ...]
    failed: tuple[tuple[int | None, str, str], ...]
    method: str
    settings: Mapping[str, Any]
    model: str
    depth: int
    fingerprints: tuple[str, ...]

    def __post_init__(self) -> None:
        shape = (len(self.layers), len(self.facts))
        if 0 in shape or list(self.layers) != sorted(set(self.layers)) or self.layers[-1] >= self.depth:
            raise ValueError(f"{shape[0]} layers {self.layers} of {self.depth} and {shape[1]} facts are no sweep")
        for name in MEASURES:
            if self.values[name].shape != shape:
                raise ValueError(f"{name} has shape {self.values[name].shape}, not [layers, facts] {shape}")
        for name in SCORES:
            found = np.concatenate([self.values[name].ravel(), self.unedited[name]])
            if ((found < 0) | (found > 1)).any():
                raise ValueError(f"{name} is a share, from 0 to 1")
        if self.trace is not None and len(self.trace.effect) != self.depth:
            raise ValueError(f"a trace of {len(self.trace.effect)} layers is not one of {self.depth}")

    def mean(self, name: str) -> Float[np.ndarray, " layers"]:
        """A measure's mean over the facts that have it; nan where none has."""
        return means(self.values[name])

    def interval(self, name: str) -> tuple[Float[np.ndarray, " layers"], Float[np.ndarray, " layers"]]:
        """Low and high end of a score's 95 % interval over facts."""
        if name not in SCORES:
            raise SurgeryError(f"{name!r} is no share with an interval; choose one of {', '.join(SCORES)}")
        return wilson_ends(self.values[name])

    @property
    def score(self) -> Float[np.ndarray, " layers"]:
        """Harmonic mean of the three scores; nan where one of them was not measured."""
        return harmonic(self.values)

    def recommend(self) -> Site:
        """The mlp of the layer with the highest score; of equals the lowest.

        The score of a layer chosen for its score is on the high side: expect a little less of other facts.

        Raises:
            SurgeryError: the facts have no paraphrases or no neighbours, so there is no score.
        """
        if missing := [name for name in SCORES if np.isnan(self.mean(name)).all()]:
            raise SurgeryError(
                f"no fact of this sweep has a {' or a '.join(missing)}; a layer that is best without them may do any "
                "damage: give facts with paraphrases and neighbours"
            )
        score = self.score
        return Site.at(self.layers[int(np.argmax(score >= np.nanmax(score) - 1e-9))], "mlp")

    def alike(self) -> tuple[int, ...]:
        """Other layers whose score these facts do not tell from the recommended one's, at 95 %."""
        best = self.recommend().layer
        near = close(self.values, self.layers.index(best))
        return tuple(layer for layer, same in zip(self.layers, near, strict=True) if same and layer != best)

    def correlation(self, name: str = "score") -> tuple[float, int]:
        """Spearman's rank correlation of the score, or of one measure, with the trace, and over how many layers.

        It is nan where either is the same at all of them.

        Neighbouring layers are not independent, the less so the wider the trace's window: it has no p-value here.

        Raises:
            SurgeryError: the sweep has no trace.
        """
        if self.trace is None:
            raise SurgeryError("this sweep has no trace to compare with; pass trace=locate.average_trace(model, facts)")
        ours, traced = self.score if name == "score" else self.mean(name), self.trace.effect[list(self.layers)]
        both = ~(np.isnan(ours) | np.isnan(traced))
        if min(len(np.unique(ours[both])), len(np.unique(traced[both]))) < 2:
            return float("nan"), int(both.sum())
        return float(stats.spearmanr(ours[both], traced[both]).statistic), int(both.sum())

    def told(self) -> list[str]:
        """The findings, a line a layer."""
        lines = [
            f"{self.method} in {self.model}: {counted(len(self.facts), 'fact')}, each edited alone at "
            f"{counted(len(self.layers), 'layer')}"
        ]
        for reason in dict.fromkeys(reason for _, reason in self.left_out):
            layers = ", ".join(str(layer) for layer, why in self.left_out if why == reason)
            lines.append(f"left out: layers {layers}: {reason}")
        refused = [f"{fact} at {'every layer' if layer is None else layer}: {why}" for layer, fact, why in self.failed]
        lines += [f"refused: {one}" for one in refused]
        lines.append("unedited: " + ", ".join(f"{k} {means(self.unedited[k][None])[0]:.2f}" for k in SCORES))
        for i, layer in enumerate(self.layers):
            shares = ", ".join(
                f"{name} {self.mean(name)[i]:.2f} ({low[i]:.2f} to {high[i]:.2f})"
                for name in SCORES
                for low, high in [self.interval(name)]
            )
            rest = f"p(new) {self.mean('probability')[i]:.3f}, {self.mean('seconds')[i]:.1f} s"
            drift = "" if np.isnan(self.mean("drift")[i]) else f", drift {self.mean('drift')[i]:.4f} nats a token"
            lines.append(f"layer {layer}: score {self.score[i]:.3f}, {shares}, {rest}{drift}")
        return [*lines, self._told_choice(), *self._told_trace()]

    def as_record(self) -> dict[str, Any]:
        """Everything, as JSON values; null where nothing was measured."""
        plain = ("method", "model", "depth")
        trace = self.trace
        return {
            "format": FORMAT,
            **{name: getattr(self, name) for name in plain},
            "fingerprints": list(self.fingerprints),
            "settings": dict(self.settings),
            "layers": list(self.layers),
            "facts": list(self.facts),
            "values": {name: json_numbers(self.values[name]) for name in MEASURES},
            "unedited": {name: json_numbers(row) for name, row in self.unedited.items()},
            "trace": trace and trace.as_record(),
            "left_out": [list(one) for one in self.left_out],
            "failed": [list(one) for one in self.failed],
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Sweep:
        """The sweep that `as_record` gave."""
        parts: dict[str, Any] = {
            name: {key: np.array(rows, dtype=float) for key, rows in record[name].items()}
            for name in ("values", "unedited")
        }
        parts |= {name: tuple(record[name]) for name in ("layers", "facts", "fingerprints")}
        parts |= {name: tuple(tuple(one) for one in record[name]) for name in ("left_out", "failed")}
        parts |= {name: record[name] for name in ("settings", "method", "model", "depth")}
        trace = record["trace"]
        if trace is not None:
            lines = {name: np.array(trace[name], dtype=float) for name in ("effect", "margin")}
            trace = TraceProfile(**{**trace, **lines})
        return cls(trace=trace, **parts)

    def save(self, path: str | Path) -> Path:
        """Write it as one JSON file.

        Raises:
            SurgeryError: the place cannot be written to.
        """
        with written_whole(path) as temporary:
            temporary.write_text(json.dumps(self.as_record(), ensure_ascii=False), encoding="utf-8")
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> Sweep:
        """Read a file that `save` wrote.

        Raises:
            SurgeryError: there is no such file, it is damaged, or it is something else.
        """
        try:
            record = json.loads(Path(path).read_text(encoding="utf-8"))
            if not isinstance(record, dict) or record.get("format") != FORMAT:
                raise SurgeryError(f"{path} holds no layer sweep; give a file that Sweep.save wrote")
            return cls.from_record(record)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SurgeryError(f"{path} is no readable layer sweep ({error}); sweep again") from error

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw scores and trace over layers; see `edits.figures.sweep_lines`."""
        from edits.figures import sweep_lines

        return sweep_lines(self, ax)

    def _told_choice(self) -> str:
        try:
            site, alike = self.recommend(), self.alike()
        except SurgeryError as error:
            return f"no layer is recommended: {error}"
        near = f"not told from it by these facts: {', '.join(map(str, alike))}" if alike else "told from all others"
        return f"recommended: {site}, the highest harmonic mean of {', '.join(SCORES)}; {near}"

    def _told_trace(self) -> list[str]:
        if self.trace is None:
            return []
        peak = int(np.nanargmax(self.trace.effect))
        if np.isnan(self.score).all():
            return [f"trace: largest effect at layer {peak}"]
        correlation, layers = self.correlation()
        return [
            f"trace: largest effect at layer {peak} ({counted(self.trace.facts, 'fact')}); "
            f"Spearman's correlation with the score over {layers} layers {correlation:+.2f}; "
            "it had no say in the recommendation"
        ]
