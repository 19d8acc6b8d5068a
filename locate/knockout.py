"""Attention knockout: from where, and in which layers, the last position takes what makes the answer.

Geva et al. 2023, section 5 (https://arxiv.org/abs/2304.14767):

1. The clean run gives the answer's probability at the last position.
2. In a window of layers around layer l, the last position may not attend to a set of positions: their scores become
   -inf before the softmax in every head. Everything else runs on.
3. The result is the relative change of the answer's probability, (p_cut - p) / p, for every l and every source: the
   subject, the other positions, the last position itself.

The rows of all layers and sources run in one batch.

Two departures are options. Many heads rest on the first token, whatever it is, and cutting that edge wrecks the answer
whatever the source it is counted to; so it is left out of subject and other positions, and the source "first" cuts it
alone. `spare_first=False` counts it in, as published. And a softmax over fewer keys gives the rest more weight; with
`renormalise=False` what was cut is missing instead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from locate.cutting import check_cuts, cut
from surgery.errors import SurgeryError
from surgery.fact import Fact
from surgery.model import Model
from surgery.progress import bar
from surgery.site import window as layers_around
from surgery.tokens import Span, ask_fact, pad

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Source = Literal["subject", "other", "last", "first"]
MOST_TOKENS = 2048
"""Tokens of one batch: rows times width."""


@dataclass(frozen=True, eq=False)
class Knockout:
    """How much the answer's probability changes when the last position cannot attend to a source.

    Attributes:
        changes: relative change of the answer's first token's probability, -1 when it is gone [layers, sources].
        clean: its probability in the clean run.
        sources: names of the sources.
        positions: the positions of each source.
        window: how many layers are cut at once; a row of `changes` belongs to the window's centre.
        first_spared: whether the first token was left out of subject and other positions.
        renormalised: whether the attention left over was made to sum to 1.
        tokens: the prompt's tokens as text.
        subject: positions of the subject.
        fact: the fact asked.
        model: name of the model.
    """

    changes: Float[np.ndarray, "layers sources"]
    clean: float
    sources: tuple[Source, ...]
    positions: tuple[tuple[int, ...], ...]
    window: int
    first_spared: bool
    renormalised: bool
    tokens: tuple[str, ...]
    subject: Span
    fact: Fact
    model: str

    def __post_init__(self) -> None:
        if not self.changes.shape[1] == len(self.sources) == len(self.positions):
            raise ValueError(f"{len(self.sources)} sources do not label changes of shape {self.changes.shape}")
        if not (self.changes >= -1).all() or not 0 < self.clean <= 1 + 1e-6:
            raise ValueError("a probability lies between 0 and 1 and cannot fall by more than itself")

    @property
    def probabilities(self) -> Float[np.ndarray, "layers sources"]:
        """The answer's probability with the edges cut."""
        return self.clean * (1 + self.changes)

    def change(self, source: Source) -> Float[np.ndarray, " layers"]:
        """Relative change by layer for one source.

        Raises:
            SurgeryError: the source was not cut.
        """
        if source not in self.sources:
            raise SurgeryError(f"the source {source!r} was not cut; there are {', '.join(self.sources)}")
        return self.changes[:, self.sources.index(source)]

    def strongest(self, source: Source) -> int:
        """The layer around which cutting a source takes most of the answer's probability."""
        return int(self.change(source).argmin())

    def as_record(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        return {
            "fact": self.fact.as_record(),
            "model": self.model,
            "window": self.window,
            "first_spared": self.first_spared,
            "renormalised": self.renormalised,
            "tokens": list(self.tokens),
            "subject": [self.subject.start, self.subject.stop],
            "sources": list(self.sources),
            "positions": [list(one) for one in self.positions],
            "clean": self.clean,
            "strongest": {source: self.strongest(source) for source in self.sources},
            "changes": self.changes.tolist(),
        }

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw a line a source; see `locate.figures.knockout`."""
        from locate.figures.knockout import knockout_lines

        return knockout_lines(self, ax)


@torch.no_grad()
def attention_knockout(
    model: Model,
    fact: Fact,
    *,
    window: int = 9,
    sources: Sequence[Source] = ("subject", "other"),
    spare_first: bool = True,
    renormalise: bool = True,
    progress: bool = True,
) -> Knockout:
    """Cut the last position's attention to parts of the prompt, a window of layers at a time.

    Args:
        model: the model.
        fact: the fact; the first token of its `target` is the answer.
        window: layers cut at once, around each layer; the published 9 of 48 layers is much in a shallow model.
        sources: what to cut: "subject"; "other", all positions that are neither subject nor last; "last" itself;
            "first", the first token alone.
        spare_first: leave the first token out of "subject" and "other"; False cuts it with them, as published.
        renormalise: make what is left of the attention sum to 1, as published; False lets the weights be missing.
        progress: show a bar where somebody is looking.

    Raises:
        SurgeryError: an option is out of range, or a source has no position in this prompt.
        UnsupportedModel: its attention cannot be cut; the message names the block's class.
    """
    wrong = [source for source in sources if source not in get_args(Source)]
    if wrong or not sources or len(set(sources)) < len(sources):
        raise SurgeryError(f"sources are some of {', '.join(get_args(Source))}, each once, not {list(sources)}")
    question, span = ask_fact(model.tokenizer, fact, fact.target)
    ids, width, depth = question.prompt_ids, question.answer_start, len(model.anatomy.layers)
    positions = tuple(_positions(source, span, width, spare_first, fact) for source in sources)
    windows = [layers_around(layer, window, depth) for layer in range(depth)]
    check_cuts(model, ids, renormalise=renormalise)
    forbidden = torch.zeros(depth, depth * len(sources) + 1, width, dtype=torch.bool, device=model.device)
    for layer, cut_layers in enumerate(windows):
        for i, where in enumerate(positions):
            for at in cut_layers:
                forbidden[at, 1 + layer * len(sources) + i, list(where)] = True
    parts = forbidden.split(max(1, MOST_TOKENS // width), dim=1)  # the first row stays clean
    found = torch.cat(
        [
            _log_probabilities(model, ids, part, question.answer_ids[0], renormalise)
            for part in bar(parts, "knocking attention out", show=progress and len(parts) > 1)
        ]
    )
    return Knockout(
        changes=torch.expm1(found[1:] - found[0]).view(depth, len(sources)).cpu().numpy(),
        clean=math.exp(float(found[0])),
        sources=tuple(sources),
        positions=positions,
        window=window,
        first_spared=spare_first,
        renormalised=renormalise,
        tokens=question.token_texts[:width],
        subject=span,
        fact=fact,
        model=model.source,
    )


def _positions(source: Source, span: Span, width: int, spare_first: bool, fact: Fact) -> tuple[int, ...]:
    before = range(1 if spare_first else 0, width - 1)
    found = {
        "subject": [i for i in before if i in span],
        "other": [i for i in before if i not in span],
        "last": [width - 1],
        "first": [0],
    }[source]
    if width < 2 or not found:
        spared = spare_first and width > 1 and source in ("subject", "other")
        raise SurgeryError(
            f"the prompt {fact.prompt!r} has no position of the source {source!r} "
            + ("between its first and its last token" if spared else "in front of its last token")
            + "; lengthen the prompt or leave the source away"
            + (", or give spare_first=False" if spared else "")
        )
    return tuple(found)


def _log_probabilities(
    model: Model, ids: tuple[int, ...], forbidden: Bool[Tensor, "layers rows width"], answer: int, renormalise: bool
) -> Float[Tensor, " rows"]:
    rows = forbidden.shape[1]
    batch = pad([ids] * rows, device=model.device)
    with cut(model, forbidden, renormalise=renormalise):
        logits = model.logits_at(batch, batch.columns([-1] * rows))
    return logits.double().log_softmax(-1)[:, answer]
