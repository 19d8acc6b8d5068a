"""Train one down-projection until the model says what it should: the baseline every editing method has to beat.

1. FineTune ("FT-M", Zhang et al. 2024, https://arxiv.org/abs/2401.01286): Adam on the whole down-projection of one
   layer, L = mean over facts of the objective's loss at the tokens of its text, the prompt being masked. The matrix
   starts at W, and W + dW is what is trained.
2. ConstrainedFineTune ("FT-L", Zhu et al. 2020, https://arxiv.org/abs/2012.00363): after each step every entry of dW is
   brought back to -limit <= dW_ij <= limit.
3. The change is kept whole: Adam divides every coordinate by its own size, so dW has full rank (`edits.factors`).

Published defaults: 25 steps of 5e-4 at layer 21 of 32 (FT-M), the same at layer 0 of GPT2-XL with a limit of 5e-4
(FT-L). Steps and limits in weights' own numbers suit one model; here they are in units of the matrix's root mean
square. The layer is the one recommended for rank-one edits: on the default model, one two thirds up gives the new
answer to two neighbours of three. Published pitfall: the older code asks for all tokens of an answer at the prompt's
last position, so answers of several tokens are trained in the wrong order (see `edits.training`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from edits.factors import factored
from edits.method import register
from edits.recommended import checked_sites, recommended_site
from edits.training import Trained, added, descend, lessons_of, log_of, root_mean_square
from surgery.edit import Delta, Edit
from surgery.errors import SurgeryError
from surgery.fact import Fact
from surgery.hooks import frozen
from surgery.model import Model
from surgery.site import Site


@register
@dataclass(frozen=True, kw_only=True)
class FineTune(Trained):
    """Train a down-projection; the other settings are those of `edits.training.Trained`.

    Attributes:
        steps: most steps of Adam.
        step: length of a coordinate's step, in units of the matrix's root mean square.
        stop: end early once every fact's loss is below this.
    """

    name: ClassVar[str] = "ft-m"
    steps: int = 25
    step: float = 3e-2
    stop: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1 or self.step <= 0:
            raise SurgeryError("steps and step of fine-tuning must be above 0")

    def __call__(self, model: Model, facts: Sequence[Fact] | Fact, sites: Sequence[Site] | None = None) -> Edit:
        """The edit of all facts, trained together. The model's weights are not written to.

        Raises:
            SurgeryError: no facts, sites that are not mlps, or a fact the objective cannot use.
        """
        facts = (facts,) if isinstance(facts, Fact) else tuple(facts)
        objective, chosen, base = self.wanted(facts), self.sites(model, sites), model.fingerprint
        matrices = {model.anatomy.name(site): model.anatomy.matrix(site).detach().float() for site in chosen}
        sizes = {name: root_mean_square(matrix) for name, matrix in matrices.items()}
        changes = {name: torch.zeros_like(matrix, requires_grad=True) for name, matrix in matrices.items()}
        lessons = lessons_of(model, facts, objective, self.contexts)
        with frozen(model.hf), added(model, changes):
            told = descend(
                model,
                lessons,
                [{"params": [changes[name]], "lr": self.step * sizes[name]} for name in changes],
                steps=self.steps,
                stop=self.stop,
                after=lambda: self._bring_back_([(changes[name], sizes[name]) for name in changes]),
                progress=self.progress,
                label=f"{self.name} steps",
            )
        deltas = [Delta(name, *factored(change.detach())) for name, change in changes.items()]
        return self._edit(model, base, facts, objective, chosen, deltas, log_of(told), self.settings())

    def sites(self, model: Model, sites: Sequence[Site] | None = None) -> list[Site]:
        """The mlps to train, ascending: those given, or the one recommended for the model.

        Raises:
            SurgeryError: they are no mlps of the model.
        """
        return checked_sites(model, self.name, [recommended_site(model)] if sites is None else sites)

    def settings(self) -> dict[str, Any]:
        """What decides the numbers of an edit besides model, facts and sites, as JSON values."""
        return {name: getattr(self, name) for name in ("steps", "step", "stop")}

    def _bring_back_(self, changes: Sequence[tuple[Tensor, float]]) -> None:
        """Change what was trained back to what it may be; here it may be anything."""


@register
@dataclass(frozen=True, kw_only=True)
class ConstrainedFineTune(FineTune):
    """Train a down-projection none of whose entries may change by more than a limit.

    Attributes:
        limit: most an entry may change, in units of the matrix's root mean square.
    """

    name: ClassVar[str] = "ft-l"
    steps: int = 50
    step: float = 1e-2
    limit: float = 3e-2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.limit <= 0:
            raise SurgeryError("the limit of constrained fine-tuning must be above 0; without one, take FineTune")

    def settings(self) -> dict[str, Any]:
        """What decides the numbers of an edit besides model, facts and sites, as JSON values."""
        return {**super().settings(), "limit": self.limit}

    @torch.no_grad()
    def _bring_back_(self, changes: Sequence[tuple[Tensor, float]]) -> None:
        for change, size in changes:
            change.clamp_(-self.limit * size, self.limit * size)
