"""Whether key statistics have seen enough text: what edits made with less of it would do to text held out.

1. The fit draws a tenth of the text's pieces to come last; the others come in stages that double (`edits.pieces`).
2. After each stage, the statistics so far give every fact's edit direction u = C^-1 k / (k^T C^-1 k).
3. An edit along u moves the output at another key h by u^T h of what it moves at k. Its root mean square over the held
   out keys is sqrt(u^T H u), H their second moment: what is left of the sum when the first nine tenths are taken off.
4. C is best where this is least; what is lacking falls with 1 / tokens, which gives the value of endless text.

The same number without any statistics (u = k / k^T k) says what they are good for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from edits.figures import convergence_lines
from edits.fitting import fit_statistics
from edits.keys import read_ends, subject_rows
from edits.moment import SecondMoment
from edits.pieces import Pieces
from edits.statistics import Statistics
from surgery.errors import SurgeryError
from surgery.fact import SLOT, Fact
from surgery.model import Model
from surgery.numbers import json_numbers, mean_and_error
from surgery.shipped import example_facts
from surgery.site import Site

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ENOUGH = 0.02
FACTS = 32


@dataclass(frozen=True, eq=False)
class Convergence:
    """How key statistics settle with the text they are fitted on.

    Attributes:
        layers: ascending.
        tokens: how many each point was fitted on, ascending.
        responses: [layers, points, facts], root mean square response of the held out keys to each fact's edit.
        without: [layers, facts], the same without statistics.
        held_out: how many tokens they were measured on.
        width: d_ff of the model.
        model: its name.
    """

    layers: tuple[int, ...]
    tokens: tuple[int, ...]
    responses: Float[np.ndarray, "layers points facts"]
    without: Float[np.ndarray, "layers facts"]
    held_out: int
    width: int
    model: str

    def __post_init__(self) -> None:
        shape = (len(self.layers), len(self.tokens))
        if self.responses.shape[:2] != shape or len(self.tokens) < 2 or not np.isfinite(self.responses).all():
            raise SurgeryError(f"responses of shape {self.responses.shape} do not fit {shape} layers and points")

    @property
    def mean(self) -> Float[np.ndarray, "layers points"]:
        """Mean response over the facts."""
        return self.responses.mean(-1)

    @property
    def limit(self) -> Float[np.ndarray, " layers"]:
        """The mean response after endless text, if what is lacking falls with 1 / tokens beyond the last points."""
        (before, now), (few, many) = self.mean[:, -2:].T, self.tokens[-2:]
        return (many * now - few * before) / (many - few)

    @property
    def change(self) -> Float[np.ndarray, " layers"]:
        """By which share the last doubling of the text lowered the mean response."""
        return 1 - self.mean[:, -1] / self.mean[:, -2]

    @property
    def enough(self) -> bool:
        """Whether the last doubling changed the mean response by less than 2 % at every layer."""
        return bool((np.abs(self.change) < ENOUGH).all())

    def told(self) -> list[str]:
        """The findings, a line a layer, and the judgement."""
        lines = []
        for i, layer in enumerate(self.layers):
            now, few = self.mean[i, -1], self.mean[i, 0]
            lines.append(
                f"layer {layer}: held out response {few:.4f} from {self.tokens[0]} tokens, {now:.4f} from "
                f"{self.tokens[-1]}, {self.limit[i]:.4f} expected of endless text, {self.without[i].mean():.4f} without"
            )
        most = float(np.abs(self.change).max())
        judged = "enough text" if self.enough else "give more text"
        return [
            *lines,
            f"{judged}: the last doubling changed the response by up to {most:.1%}, {ENOUGH:.0%} is the limit",
        ]

    def as_record(self) -> dict[str, Any]:
        """Everything, as JSON values; means over facts with their standard errors."""
        mean, error = mean_and_error(self.responses)
        return {
            "layers": list(self.layers),
            "tokens": list(self.tokens),
            "response": json_numbers(mean),
            "standard_error": json_numbers(error),
            "without": json_numbers(self.without.mean(-1)),
            "limit": json_numbers(self.limit),
            "change": json_numbers(self.change),
            "enough": self.enough,
            "facts": self.responses.shape[-1],
            "held_out": self.held_out,
            "d_ff": self.width,
            "model": self.model,
        }

    def plot(self, ax: Axes | None = None) -> Axes:
        """Mean response over tokens, as a share of the one without statistics, a line a layer."""
        return convergence_lines(self, ax)


def fit_with_convergence(
    model: Model,
    texts: Iterable[str],
    layers: Sequence[int],
    *,
    facts: Sequence[Fact] | None = None,
    rank: int = 64,
    **settings: Any,
) -> tuple[Statistics, Convergence]:
    """Fit key statistics, bit for bit those of `fit_statistics`, and see whether the text was enough.

    Takes no further pass over the text, but the eigenpairs of five more matrices a layer and the memory of one more.

    Args:
        model: whose keys.
        texts: ordinary text, a passage each.
        layers: which layers.
        facts: whose edits the response is measured for; default: 32 of the shipped ones.
        rank: eigenpairs kept a layer.
        settings: others of `fit_statistics`.

    Raises:
        SurgeryError: as `fit_statistics`, or the text is too short to hold some out and halve the rest.
    """
    chosen = list(facts) if facts is not None else _spread(example_facts())
    watch = _Watch(model, sorted(set(layers)), chosen, rank)
    return fit_statistics(model, texts, layers, rank=rank, watch=watch, **settings), watch.convergence()


class _Watch:
    """Edit directions at each stage's end, and what the keys held out respond to them."""

    def __init__(self, model: Model, layers: Sequence[int], facts: Sequence[Fact], rank: int) -> None:
        if not facts:
            raise SurgeryError("there are no facts to measure the convergence of key statistics with; give some")
        self._model, self._layers, self._rank = model, layers, rank
        rows = subject_rows(model, facts, (SLOT,))
        self._keys = {n: read_ends(model, rows, Site.at(n, "mlp"))[0].double().cpu() for n in layers}
        self._rows = rows

    def begin(self, pieces: Pieces) -> str:
        """Choose the stages that can be judged: those of enough tokens for the rank."""
        self._pieces = pieces
        self._points = [batch for batch in pieces.marks if pieces.before(batch) >= 2 * self._rank]
        self._points = list(dict.fromkeys(self._points))
        if len(self._points) < 2 or pieces.marks[-1] == len(pieces.batches):
            raise SurgeryError(
                f"{pieces.tokens} tokens of text are too few to hold a tenth out and halve the rest; give "
                f"{10 * self._model.anatomy.d_ff} in at least 10 passages, or fit without convergence"
            )
        return str(self._rows)

    def look(self, layer: int, batch: int, total: Tensor, kept: dict[str, Tensor]) -> None:
        """Note the directions at a stage's end; at the end of all, the responses to them."""
        name = f"{layer}.directions"
        if batch in self._points:
            keys = self._keys[layer]
            moment = SecondMoment.of(total / self._pieces.before(batch), self._rank)
            along = moment.solve(keys)
            held = [kept[name]] if name in kept else [_towards(keys, keys)[None]]
            kept[name] = torch.cat([*held, _towards(along, keys)[None]])
        if batch == self._points[-1]:
            kept[f"{layer}.before"] = _squares(kept[name], total)
        if batch == len(self._pieces.batches):
            more = _squares(kept.pop(name), total) - kept.pop(f"{layer}.before")
            kept[f"{layer}.responses"] = (more / self._held_out).clamp_min(0).sqrt()

    def end(self, kept: Mapping[str, Tensor]) -> None:
        """Take the responses out of what is kept."""
        self._responses = np.stack([kept[f"{layer}.responses"].numpy() for layer in self._layers])

    @property
    def _held_out(self) -> int:
        return self._pieces.tokens - self._pieces.before(self._points[-1])

    def convergence(self) -> Convergence:
        """The result, once the fit has ended."""
        return Convergence(
            layers=tuple(self._layers),
            tokens=tuple(self._pieces.before(batch) for batch in self._points),
            responses=self._responses[:, 1:],
            without=self._responses[:, 0],
            held_out=self._held_out,
            width=self._model.anatomy.d_ff,
            model=self._model.source,
        )


def _towards(along: Float[Tensor, "facts d_ff"], keys: Float[Tensor, "facts d_ff"]) -> Float[Tensor, "facts d_ff"]:
    """Directions scaled so that each key responds to its own with 1."""
    return along / (along * keys).sum(-1, keepdim=True)


def _squares(
    directions: Float[Tensor, "points facts d_ff"], total: Float[Tensor, "d_ff d_ff"]
) -> Float[Tensor, "points facts"]:
    """u^T S u for every direction u, in float64 on the CPU."""
    along = directions.to(total.device)
    return ((along @ total) * along).sum(-1).cpu()


def _spread(facts: Sequence[Fact]) -> list[Fact]:
    """So many facts, evenly over a list."""
    return [facts[i * len(facts) // FACTS] for i in range(FACTS)]
