"""What a causal trace runs, however it is run: two runs, and patches that carry states of one into the other.

1. The clean run reads the prompt; the corrupted runs read it with the subject's embeddings changed, once a sample.
2. Restoring (sufficiency) patches clean states into the corrupted runs; noising (necessity) patches corrupted states
   into the clean run.
3. A patch exchanges one position's states: a block's output, or the mlp or attention outputs of a window of layers.
   With a path severed, that position's mlp (or attention) outputs in all layers above an exchanged state stay what they
   were without it.
4. A metric reads the answer off the logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from locate.pair import Pair
from surgery.site import Kind, window

Direction = Literal["restore", "noise"]


@dataclass(frozen=True)
class Outputs:
    """One kind of output taken from a run, in a range of layers, at a patch's position."""

    kind: Kind
    layers: range
    patched: bool


@dataclass(frozen=True)
class Patch:
    """One cell of one grid.

    Attributes:
        kind: the grid it belongs to.
        layer: the cell's layer.
        state: the block's output is exchanged.
        outputs: mlp or attention outputs that are exchanged (`patched`), or held as they were without the patch.
        joins: the first block whose work differs from the run without the patch.
    """

    kind: Kind
    layer: int
    state: bool
    outputs: Outputs | None
    joins: int

    def holds(self, kind: Kind, layer: int) -> bool:
        """Whether this kind of output of a layer is set, from whichever run."""
        return self.outputs is not None and self.outputs.kind == kind and layer in self.outputs.layers


@dataclass(frozen=True, eq=False)
class Experiment:
    """Everything a trace runs.

    Attributes:
        pair: the fact, asked cleanly and corrupted.
        kinds: the grids wanted.
        width: layers exchanged at once for mlp and attention.
        positions: the positions to patch, none before the subject.
        direction: which run is patched with states of which.
        severed: the path held above an exchanged state, or None.
    """

    pair: Pair
    kinds: tuple[Kind, ...]
    width: int
    positions: range
    direction: Direction
    severed: Literal["mlp", "attention"] | None

    @property
    def layers(self) -> int:
        """Blocks of the model."""
        return len(self.pair.model.anatomy.layers)

    def patches(self) -> list[Patch]:
        """The cells of one position, those first that need the most blocks."""
        found = []
        for kind in self.kinds:
            for layer in range(self.layers):
                if kind == "state":
                    above = range(layer + 1, self.layers)
                    held = Outputs(self.severed, above, patched=False) if self.severed else None
                    found.append(Patch(kind, layer, True, held, layer + 1))
                else:
                    exchanged = window(layer, self.width, self.layers)
                    found.append(Patch(kind, layer, False, Outputs(kind, exchanged, patched=True), exchanged.start))
        return sorted(found, key=lambda patch: patch.joins)

    def read(self, states: Float[Tensor, "rows answer d_model"], rows: int = 1024) -> Float[Tensor, " rows"]:
        """The metric from last states where the answer is predicted; the vocabulary meets some rows at a time."""
        parts = [self.pair.readout(self.pair.model.anatomy.unembed(part).float()) for part in states.split(rows)]
        return torch.cat(parts)


@dataclass(frozen=True, eq=False)
class Grids:
    """What running an experiment gives.

    Attributes:
        clean: the metric in the clean run.
        corrupted: in each corrupted run.
        grids: the metric with one cell patched, by kind; nan where it was not asked for.
        passes: runs of the model, whole or from some layer up.
        token_layers: tokens times layers computed, over all rows.
    """

    clean: float
    corrupted: Float[Tensor, " samples"]
    grids: dict[Kind, Float[Tensor, "positions layers samples"]]
    passes: int
    token_layers: int


def unpatched(
    experiment: Experiment, clean: Float[Tensor, ""], corrupted: Float[Tensor, " samples"]
) -> dict[Kind, Float[Tensor, "positions layers samples"]]:
    """Grids in which no cell has an effect yet; nan where it could have one but is not asked for."""
    base = corrupted if experiment.direction == "restore" else clean.expand(experiment.pair.samples)
    shape = (experiment.pair.question.answer_start, experiment.layers, experiment.pair.samples)
    grid = base.expand(shape).clone()
    asked = experiment.positions
    grid[[at for at in range(experiment.pair.span.start, shape[0]) if at not in asked]] = torch.nan
    return {kind: grid.clone() for kind in experiment.kinds}
