"""Change one matrix by rank one so that a subject means something else.

Meng et al. 2022, "ROME" (https://arxiv.org/abs/2202.05262), with one key everywhere (Gupta et al. 2024, "r-ROME",
https://arxiv.org/abs/2403.07175):

1. Contexts: the bare prompt and beginnings the model makes up, by a seed (`edits.keys`).
2. k* and v* of the subject's last token at one layer's down-projection (`edits.values`).
3. dW = (v* - W k*) (C^-1 k*)^T / (k*^T C^-1 k*) (`edits.solve`), C from key statistics (`edits.statistics`).
4. Several subjects are edited one after the other, each on the weights the earlier ones left; the weights are put back.

k* is a subject's key, v* its new value, C the keys' second moment. Published defaults: layer 17 of GPT2-XL, 5 of GPT-J;
20 contexts and the bare prompt, 20 steps of Adam at 0.5, KL weight 0.0625, decay 0.5, a shift of at most 4 |v|; C of
100,000 samples of Wikipedia. Here: 4 contexts and the bare prompt, their key balanced (`edits.keys`), names beside C
(`edits.namesakes`), `ValueSearch` as it comes. Published pitfall: k* in
the direction, the bare prompt's key in the denominator and the old value; their product can be next to nothing, and the
change enormous.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from edits.grid import ClosedForm
from edits.method import register
from edits.solve import Constrained, Solver


@register
@dataclass(frozen=True, kw_only=True)
class RankOne(ClosedForm):
    """One rank-one change of one down-projection a fact; settings as in `edits.grid.ClosedForm`.

    ROME (https://arxiv.org/abs/2202.05262), eq. 2, with one key (https://arxiv.org/abs/2403.07175): dW = (v* - W k*)
    (C^-1 k*)^T / (k*^T C^-1 k*). Published: 21 contexts, their mean key, 20 steps of Adam at 0.5. Here: 5 contexts, a
    balanced key, nearly the same names weighed in C, at most 25 steps of the shortest way down.
    """

    name: ClassVar[str] = "rank-one"
    solver: Solver = field(default_factory=Constrained)
    batch: int | None = 1
