"""Many facts at once, each with exactly its value, in one layer.

Gupta et al. 2024, "EMMET" (https://arxiv.org/abs/2403.14236), eq. 10: dW = R (K^T C^-1 K + a I)^-1 K^T C^-1, ROME for a
batch: with one fact and a = 0 it is ROME's change. Published defaults: layer 17 of GPT2-XL with C times 10,000, layer 5
of GPT-J with C times 100,000, a = 0.1. Published pitfall: a is absolute, so it means nothing on one model and much on
another; here it is in units of the mean k^T C^-1 k.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from edits.grid import ClosedForm
from edits.method import register
from edits.solve import Constrained, Solver


@register
@dataclass(frozen=True, kw_only=True)
class Emmet(ClosedForm):
    """All facts in one batch, one layer, equality up to a little slack; settings as in `edits.grid.ClosedForm`.

    EMMET (https://arxiv.org/abs/2403.14236), eq. 10: dW = R (K^T C^-1 K + a I)^-1 K^T C^-1. Published: a = 0.1 with C
    times 10,000 to 100,000. Here: a = 0.02 of the mean k^T C^-1 k, balanced keys, nearly the same names weighed in C.
    """

    name: ClassVar[str] = "emmet"
    solver: Solver = field(default_factory=lambda: Constrained(slack=0.02))
