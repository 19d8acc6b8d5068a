"""Direct logit attribution: what each part of a transformer adds to an answer's logit by its own path.

Elhage et al. 2021, "A mathematical framework for transformer circuits" (https://transformer-circuits.pub/2021/framework):

1. The last position's state is a sum: h = embedding + sum over layers of (attention + mlp).
2. The final norm, with its scale held at what this run gave it, is affine: N(x) = s * gain * (x - mean(x)) + bias, the
   mean only where the norm takes it out. So is a norm between a site and the residual stream.
3. The logit is w . N(h) + b, so each part adds the dot product of its output with one direction, and these add up to
   the logit exactly. Within a site the direction is pulled back through the linear map: u W, whose entries times the
   map's inputs are what single neurons add, and summed over a head's share of the inputs what that head adds.
4. Biases depend on nothing; where sites are split, they are a part of their own.

What each site adds is found out from the run (`locate.frozen`), and the whole is checked: the parts must add up to the
model's logit.

Where the model caps its logits (Gemma 2), the logit before the cap is attributed. What a part does through later
parts is not counted, and with other inputs the scales would be others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float

from locate.frozen import SITES, FrozenRun
from surgery.errors import SurgeryError
from surgery.fact import Fact
from surgery.model import Model
from surgery.predict import text_of
from surgery.site import Neuron
from surgery.tokens import ask_fact

if TYPE_CHECKING:
    from matplotlib.axes import Axes

By = Literal["layer", "head", "neuron"]
EMBEDDING, BIASES, OTHERS = "embedding", "biases", "other neurons"


@dataclass(frozen=True, eq=False)
class LogitAttribution:
    """What each part adds to a logit, or to the difference of two.

    Attributes:
        by: what attention and mlp are split into.
        names: the parts: the embedding; by layer `L4.attention` and `L4.mlp`; by head `L4.h2` and `L4.mlp`; by neuron
            `L4.attention`, the neurons of largest effect `L4.n17` and the sum of the other neurons; the biases.
        values: what each adds, in logits.
        grid: the same for every unit [layers, units]: attention and mlp, or all heads, or all neurons.
        logit: what they add up to: the answer's logit, minus the foil's if there is one, before any soft cap.
        model_logit: what the model puts out there, after its soft cap if it has one.
        target: the answer's first token, as text.
        foil: the other token, or None.
        fact: the fact asked.
        model: name of the model.
    """

    by: By
    names: tuple[str, ...]
    values: Float[np.ndarray, " parts"]
    grid: Float[np.ndarray, "layers units"]
    logit: float
    model_logit: float
    target: str
    foil: str | None
    fact: Fact
    model: str

    def __post_init__(self) -> None:
        if len(self.names) != len(self.values) or len(set(self.names)) != len(self.names):
            raise ValueError(f"{len(set(self.names))} different names do not label {len(self.values)} values")
        if not (np.isfinite(self.values).all() and np.isfinite(self.grid).all()):
            raise ValueError("attributions are finite numbers")

    @property
    def gap(self) -> float:
        """By how much the parts miss the logit: the rounding of the model's own run."""
        return self.logit - float(self.values.sum())

    @property
    def capped(self) -> bool:
        """Whether the model puts out another logit than the one attributed."""
        return self.model_logit != self.logit

    def value(self, name: str) -> float:
        """What one part adds.

        Raises:
            SurgeryError: there is no part of that name.
        """
        if name not in self.names:
            raise SurgeryError(f"there is no part {name!r} here; there are {', '.join(self.names[:4])}, ...")
        return float(self.values[self.names.index(name)])

    def top(self, k: int = 10) -> list[tuple[str, float]]:
        """The k parts of largest effect either way, largest first."""
        order = np.argsort(-np.abs(self.values), kind="stable")[:k]
        return [(self.names[i], float(self.values[i])) for i in order]

    def as_record(self) -> dict[str, Any]:
        """All parts, as JSON values; the grid too, but for neurons, which are too many."""
        record = {
            "fact": self.fact.as_record(),
            "model": self.model,
            "by": self.by,
            "target": self.target,
            "foil": self.foil,
            "logit": self.logit,
            "model_logit": self.model_logit,
            "gap": self.gap,
            "values": dict(zip(self.names, self.values.tolist(), strict=True)),
        }
        return record if self.by == "neuron" else {**record, "grid": self.grid.tolist()}

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw heads as a map, layers and neurons as bars; see `locate.figures.direct`."""
        from locate.figures.direct import attribution_bars, attribution_map

        return attribution_map(self, ax) if self.by == "head" else attribution_bars(self, ax)


@torch.no_grad()
def direct_logit_attribution(
    model: Model, fact: Fact, *, by: By = "layer", foil: str | None = None, top: int = 20
) -> LogitAttribution:
    """Split the logit of a fact's answer at the last position into what each part of the model adds to it.

    Args:
        model: the model.
        fact: the fact; the first token of its `target` is the answer.
        by: "layer" for attention and mlp of each layer, "head" for every attention head, "neuron" for mlp neurons.
        foil: an answer to compare with, such as the fact's new target: its logit is subtracted, which removes what
            favours all answers alike.
        top: by neuron, how many neurons are parts of their own.

    Raises:
        SurgeryError: an option is out of range, the foil begins like the answer, or the parts do not add up.
        UnsupportedModel: a block is no sum of its input, attention and mlp, or a head count is not to be had.
    """
    if by not in get_args(By) or top < 1:
        raise SurgeryError(f"a logit is split by layer, head or neuron, with top at least 1; not by {by!r}, top {top}")
    question, _ = ask_fact(model.tokenizer, fact, fact.target)
    answer = question.answer_ids[0]
    other = None if foil is None else ask_fact(model.tokenizer, fact, foil)[0].answer_ids[0]
    if other == answer:
        raise SurgeryError(f"the foil {foil!r} begins with the answer's own token; give one that begins differently")
    run = FrozenRun(model, question.prompt_ids, answer, other)
    parts, grid = _parts(model, run, by, top)
    found = LogitAttribution(
        by=by,
        names=tuple(parts),
        values=np.array(list(parts.values()), dtype=np.float64),
        grid=grid,
        logit=run.logit,
        model_logit=run.model_logit,
        target=text_of(model, [answer]),
        foil=None if other is None else text_of(model, [other]),
        fact=fact,
        model=model.source,
    )
    tolerance = (1e-4 if model.dtype == torch.float32 else 5e-2) * (float(np.abs(found.values).sum()) + 1)
    if not abs(found.gap) <= tolerance:
        raise SurgeryError(
            f"the parts of {model.source} add up to {found.values.sum():.4f}, not to the logit {found.logit:.4f}; "
            "load the model in float32, and if that does not help this architecture cannot be split"
        )
    return found


def _parts(
    model: Model, run: FrozenRun, by: By, top: int
) -> tuple[dict[str, float], Float[np.ndarray, "layers units"]]:
    """What each part adds, by name, and the grid of all units."""
    attention, mlp = run.writes("attention"), run.writes("mlp")
    parts: dict[str, float] = {EMBEDDING: float(run.direction @ run.states[0])}
    constant = run.constant
    if by == "layer":
        grid = np.array([[a.total, m.total] for a, m in zip(attention, mlp, strict=True)])
        parts |= {f"L{i}.{name}": grid[i, j] for i in range(len(grid)) for j, name in enumerate(SITES)}
    elif by == "head":
        grid = np.stack([one.units.view(model.anatomy.heads, -1).sum(-1).cpu().numpy() for one in attention])
        for i, one in enumerate(mlp):
            parts |= {f"L{i}.h{j}": value for j, value in enumerate(grid[i])} | {f"L{i}.mlp": one.total}
        constant += sum(float(one.bias + one.constant) for one in attention)
    else:
        grid = np.stack([one.units.cpu().numpy() for one in mlp])
        order = np.argsort(-np.abs(grid), axis=None, kind="stable")[:top]
        places = [divmod(int(place), grid.shape[1]) for place in order]
        parts |= {f"L{i}.attention": one.total for i, one in enumerate(attention)}
        parts |= {str(Neuron(*place)): grid[place] for place in places}
        parts[OTHERS] = float(grid.sum()) - sum(float(grid[place]) for place in places)
        constant += sum(float(one.bias + one.constant) for one in mlp)
    parts[BIASES] = constant
    return parts, grid
