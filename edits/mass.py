"""Many facts at once, by least squares over several layers.

1. Mass: Meng et al. 2023, "MEMIT" (https://arxiv.org/abs/2210.07229), eq. 14 and algorithm 1: the layers below and at
   the one where the values are found share the change, R / n each, written from the lowest up. dW = R K^T (lambda C + K
   K^T)^-1. Published defaults: layers 13-17 of GPT2-XL, 3-8 of GPT-J, 4-8 of Llama-3-8B, lambda 15,000 to 20,000; 25
   steps (20 on GPT2-XL) of Adam at 0.5 (0.1 on Llama-3-8B), KL weight 0.0625, decay 0.5, a shift of at most 0.75 of the
   state's norm (here lengths are in units of the mlp's output, a quarter of it on the default model), 5 contexts and
   the bare prompt. Here: three layers, 4 contexts and the bare prompt, `ValueSearch` as it comes. Published pitfalls:
   lambda is absolute, so the method leaves half of the facts out on a model with shorter keys (here it is in units of
   the keys' own size); facts about one subject share a key and are given a value each, of which least squares takes the
   mean (here they share one value).
2. MassSequence: batches with the running sum of earlier keys, dW = R K^T (lambda C + K_p K_p^T + K K^T)^-1, the
   strongest simple recipe for sequences (https://arxiv.org/abs/2605.26670).
3. Pmet: the residual spread as R / sqrt(n) (Li et al. 2024, https://arxiv.org/abs/2308.08742, eq. 13). The joint search
   over attention and mlp outputs of that paper is not part of it; the mlp's is used, the one that is written.
   Published defaults for GPT-J: layers 3-8, 30 steps at 0.2, KL weight 1, lambda 6,000.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from edits.grid import ClosedForm
from edits.method import register
from edits.solve import LeastSquares, Solver
from edits.spread import Spread


@register
@dataclass(frozen=True, kw_only=True)
class Mass(ClosedForm):
    """All facts in one batch, several layers; settings as in `edits.grid.ClosedForm`.

    MEMIT (https://arxiv.org/abs/2210.07229), eq. 14: dW = R K^T (lambda C + K K^T)^-1 a layer, R / n of what n layers
    still miss. Published: 5 layers (6 on GPT-J), lambda 15,000 to 20,000, 6 contexts. Here: 3 layers, lambda 0.02 of
    the mean k^T C^-1 k, 5 contexts, balanced keys, nearly the same names weighed in C, and a second pass for facts that
    the first leaves undone.
    """

    name: ClassVar[str] = "memit"
    solver: Solver = field(default_factory=LeastSquares)
    layers: int = 3
    passes: int = 2


@register
@dataclass(frozen=True, kw_only=True)
class MassSequence(Mass):
    """Batches one after the other, each with the keys of those before it; settings as in `edits.grid.ClosedForm`.

    dW = R K^T (lambda C + K_p K_p^T + K K^T)^-1 a layer (https://arxiv.org/abs/2605.26670), K_p the earlier keys; the
    rest as `Mass`, published and here. A fact a batch.
    """

    name: ClassVar[str] = "memit-sequence"
    batch: int | None = 1
    remember: bool = True


@register
@dataclass(frozen=True, kw_only=True)
class Pmet(Mass):
    """Lower layers take more of the change; settings as in `edits.grid.ClosedForm`.

    PMET's spreading (https://arxiv.org/abs/2308.08742), eq. 13: R / sqrt(n) a layer where `Mass` takes R / n. Published
    for GPT-J: 6 layers, lambda 6,000, values of attention and mlp sought together. Here: as `Mass`, the mlp's alone.
    """

    name: ClassVar[str] = "pmet"
    spread: Spread = "root"
    passes: int = 1
