"""One step along the loss's gradient, spread over the features it belongs to, without any search.

Gu et al. 2025, "UltraEdit" (https://arxiv.org/abs/2505.14679), for each of some down-projections:

1. H are the map's inputs at the positions that predict the objective's text, G the gradients of its loss at the map's
   outputs there; a row a position [n, d_ff] and [n, d_model].
2. Lifelong normalisation: mean and standard deviation of every coordinate of H and G, over all positions of all batches
   so far, give h^ = (h - mean) / std and g^ likewise.
3. Values V_i = -step |h^_i|^2 g^_i, and dW = V^T (H H^T + I)^-1 H, the ridge solution of dW h_i = V_i. It is of rank n.
4. Batches follow one another, each on the weights the earlier ones left; the weights are put back.

Published defaults: step 1e-6 (of d_ff 14,336), 100 facts a batch, gate, up or down projections picked by hand for every
model and data set; of those lists this takes GPT-J's, output maps from 0.65 to 0.95 of the way up. The step here is
in units of the outputs' own size, shared over d_ff and layers.
Published pitfall: the first position's mean is itself, so h^ = 0 and an edit of one fact does nothing at all; with two,
each is the other's opposite. Here the statistics begin with ordinary text: each of its tokens a position, its loss the
next token's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from edits.method import register
from edits.recommended import checked_sites
from edits.training import Lesson, Trained, lessons_of, losses, together
from edits.writing import Writes
from surgery.edit import Delta, Edit
from surgery.errors import SurgeryError
from surgery.fact import Fact
from surgery.hooks import TraceDict, frozen, hidden
from surgery.model import Model
from surgery.progress import bar
from surgery.shipped import neutral_texts
from surgery.site import Site
from surgery.tokens import encode, pad

Features = tuple[Float[Tensor, "n d_ff"], Float[Tensor, "n d_model"], Float[Tensor, "n d_model"]]
"""Keys, gradients of the loss, and outputs of a map at some positions."""


class Running:
    """Mean and standard deviation of every coordinate of all rows so far, in float64 (Welford's update in batches)."""

    def __init__(self) -> None:
        self.count = 0
        self._mean: Tensor | float = 0.0
        self._squares: Tensor | float = 0.0

    def add(self, rows: Float[Tensor, "n features"]) -> None:
        """Count some rows in."""
        rows, new = rows.double(), len(rows)
        mean = rows.mean(0)
        apart, count = mean - self._mean, self.count + new
        self._mean = self._mean + apart * new / count
        self._squares = self._squares + (rows - mean).square().sum(0) + apart.square() * self.count * new / count
        self.count = count

    def normalised(self, rows: Float[Tensor, "n features"]) -> Float[Tensor, "n features"]:
        """(rows - mean) / std; 0 for a coordinate that has always been the same."""
        std = torch.as_tensor(self._squares / max(self.count - 1, 1)).sqrt()
        apart = rows.double() - self._mean
        return torch.where(std > 0, apart / std.clamp_min(1e-300), torch.zeros_like(apart))


class Seen:
    """What one map has been seen to take in, to be blamed for and to put out."""

    def __init__(self) -> None:
        self.keys, self.gradients = Running(), Running()
        self._sizes: list[Float[Tensor, " n"]] = []

    def add(self, features: Features) -> None:
        """Count some positions in."""
        self.keys.add(features[0])
        self.gradients.add(features[1])
        self._sizes.append(features[2].square().mean(1).sqrt())

    @property
    def size(self) -> float:
        """Root mean square of an output, in the median over positions: a first token's can be a thousand times more."""
        return float(torch.cat(self._sizes).median())


@torch.enable_grad()
def features_at(
    model: Model,
    names: Sequence[str],
    rows: int,
    at: tuple[Int[Tensor, " n"], Int[Tensor, " n"]],
    run: Callable[[], Float[Tensor, ""]],
) -> dict[str, Features]:
    """What some maps take in, are blamed for and put out at some positions, by map.

    Args:
        model: the model, frozen.
        names: the maps.
        rows: how many the run has.
        at: row and column of each position.
        run: runs the model and gives the loss.
    """

    nothing: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def add_nothing(output: Tensor, name: str) -> Tensor:
        outputs[name], nothing[name] = output.detach(), torch.zeros_like(output, requires_grad=True)
        return output + nothing[name]

    with TraceDict(model.hf, names, retain_output=False, retain_input=True, edit_output=add_nothing) as trace:
        loss = run()
    gradients = torch.autograd.grad(loss, list(nothing.values()))
    found = {}
    for name, gradient in zip(nothing, gradients, strict=True):
        states = (trace[name].input, gradient, outputs[name])
        keys, blame, output = (hidden(one, rows)[at].detach().float() for one in states)
        found[name] = (keys, blame, output)
    return found


def _read(model: Model, names: Sequence[str], lessons: Sequence[Lesson]) -> tuple[dict[str, Features], list[float]]:
    """Features of the lessons where their texts are predicted, and their losses."""
    questions = [question for lesson in lessons for question in lesson.questions]
    # rows begin at column 0 there
    places = [
        (i, question.answer_start - 1 + j)
        for i, question in enumerate(questions)
        for j in range(len(question.answer_ids))
    ]
    row, column = torch.tensor(places, device=model.device).unbind(1)
    told: list[float] = []

    def run() -> Tensor:
        each = losses(model, lessons)
        told.extend(each.detach().tolist())
        return each.sum()

    return features_at(model, names, len(questions), (row, column), run), told


def _read_text(model: Model, names: Sequence[str], text: str) -> dict[str, Features]:
    """Features of a text where each token but the first is predicted."""
    batch = pad([encode(model.tokenizer, text).ids], device=model.device)
    columns = torch.arange(batch.ids.shape[1] - 1, device=model.device)

    def run() -> Tensor:
        said = model.logits_at(batch, columns[None])[0].log_softmax(-1)
        return -said.gather(1, batch.ids[0, 1:, None]).sum()

    return features_at(model, names, 1, (torch.zeros_like(columns), columns), run)


def spread_over(
    keys: Float[Tensor, "n d_ff"], values: Float[Tensor, "n d_model"]
) -> tuple[Float[Tensor, "d_model n"], Float[Tensor, "d_ff n"]]:
    """left and right of V^T (H H^T + I)^-1 H."""
    h = keys.double()
    solved = torch.linalg.solve(h @ h.T + torch.eye(len(h), dtype=h.dtype, device=h.device), values.double())
    return solved.T, h.T


@register
@dataclass(frozen=True, kw_only=True)
class UltraEdit(Trained):
    """One normalised gradient step; the other settings are those of `edits.training.Trained`.

    Attributes:
        step: length of a value, in units of the outputs' root mean square, shared over the layers. At 0.5 one fact in
            three is installed on the default model, at 1 all are, and most neighbours say the new answer too.
        batch: facts edited together.
        depth: from where to where the layers are, of the way up, where no sites are given.
        texts: ordinary text the normalisation begins with; without any it begins with the facts, as published.
    """

    name: ClassVar[str] = "ultraedit"
    step: float = 1.0
    batch: int = 100
    depth: tuple[float, float] = (0.65, 0.95)
    texts: tuple[str, ...] = field(default_factory=lambda: tuple(neutral_texts()[:6]))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch < 1 or self.step <= 0 or not 0 <= self.depth[0] < self.depth[1] <= 1:
            raise SurgeryError("batch and step must be above 0, and depth two rising numbers from 0 to 1")

    def __call__(self, model: Model, facts: Sequence[Fact] | Fact, sites: Sequence[Site] | None = None) -> Edit:
        """The edit of all facts. The model's weights are bit-identical before and after, however it ends.

        Raises:
            SurgeryError: no facts, sites that are not mlps, or a fact the objective cannot use.
        """
        facts = (facts,) if isinstance(facts, Fact) else tuple(facts)
        objective, chosen, base = self.wanted(facts), self.sites(model, sites), model.fingerprint
        seen = {model.anatomy.name(site): Seen() for site in chosen}
        writes = Writes(model)
        deltas: dict[str, Delta] = {}
        log: list[dict[str, Any]] = []
        starts = range(0, len(facts), self.batch)
        try:
            with frozen(model.hf):
                for text in self.texts:
                    for name, features in _read_text(model, list(seen), text).items():
                        seen[name].add(features)
                for start in bar(starts, f"{self.name} edits", show=self.progress and len(starts) > 1):
                    lessons = lessons_of(model, facts[start : start + self.batch], objective, self.contexts)
                    made, entries = self._batch(model, lessons, seen)
                    for delta in made:
                        before = deltas.get(delta.module)
                        deltas[delta.module] = delta if before is None else before + delta
                    log += entries
                    if start != starts[-1]:
                        for delta in made:
                            writes.add(delta)
        finally:
            writes()
        return self._edit(model, base, facts, objective, chosen, tuple(deltas.values()), log, self.settings())

    def sites(self, model: Model, sites: Sequence[Site] | None = None) -> list[Site]:
        """The mlps to edit, ascending: those given, or those at `depth`.

        Raises:
            SurgeryError: they are no mlps of the model.
        """
        if sites is None:
            count = len(model.anatomy.layers)
            first, stop = (round(part * count) for part in self.depth)
            sites = [Site.at(layer, "mlp") for layer in range(first, max(stop, first + 1))]
        return checked_sites(model, self.name, sites)

    def settings(self) -> dict[str, Any]:
        """What decides the numbers of an edit besides model, facts and sites, as JSON values."""
        return {"step": self.step, "batch": self.batch, "texts": list(self.texts)}

    def _batch(
        self, model: Model, lessons: Sequence[Lesson], seen: dict[str, Seen]
    ) -> tuple[tuple[Delta, ...], list[dict[str, Any]]]:
        """The changes of one batch, and what there is to tell of each of its facts."""
        parts = [_read(model, list(seen), part) for part in together(model, lessons)]
        told = [{"loss_before": loss} for _, each in parts for loss in each]
        deltas = []
        for name, one in seen.items():
            found = [read[name] for read, _ in parts]
            for features in found:
                one.add(features)
            keys, gradients = (torch.cat([features[i] for features in found]) for i in range(2))
            normal = one.keys.normalised(keys)
            lengths = normal.square().mean(1, keepdim=True)
            values = -self.step / len(seen) * one.size * lengths * one.gradients.normalised(gradients)
            deltas.append(Delta(name, *spread_over(keys, values)))
        return tuple(deltas), told
