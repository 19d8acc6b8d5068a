"""Changes only in directions of keys that ordinary text uses less than others, one batch after the other.

1. AlphaEdit: Fang et al. 2025 (https://arxiv.org/abs/2410.02355), eq. 13: P projects on the eigenvectors of C with
   small eigenvalues, dW = R K^T P (K_p K_p^T P + K K^T P + l I)^-1 over several layers as in MEMIT, K_p the keys
   of earlier batches. Published defaults: eigenvalues below 0.02, l = 10, both absolute. Published pitfalls: the
   absolute threshold keeps whatever it happens to on a model with other norms (here it is relative to the mean
   eigenvalue); P is kept in a file of the working folder and taken for any model; sums of keys go on growing between
   unrelated edits (here they end with the call).
2. NormAnchored: "NAS" (https://arxiv.org/abs/2602.02543): the same with every v* brought to the mean
   length of the first facts' values on the model as it came, so that they do not grow from edit to edit. The paper
   takes 1,000 of them and leaves out facts whose value is more than twice as long; here it is the first 8, and none is
   left out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from edits.grid import ClosedForm
from edits.method import register
from edits.solve import NullSpace, Solver


@register
@dataclass(frozen=True, kw_only=True)
class AlphaEdit(ClosedForm):
    """Null-space changes of several layers, all facts in one batch; settings as in `edits.grid.ClosedForm`.

    AlphaEdit (https://arxiv.org/abs/2410.02355), eq. 13: dW = R K^T P (K_p K_p^T P + K K^T P + l I)^-1 a layer.
    Published: P of eigenvalues below 0.02, l = 10. Here: below the mean eigenvalue, l = 0.02 of the mean |P k|^2, 5
    layers, balanced keys, nearly the same names weighed beside.
    """

    name: ClassVar[str] = "alphaedit"
    solver: Solver = field(default_factory=NullSpace)
    layers: int = 5
    remember: bool = True


@register
@dataclass(frozen=True, kw_only=True)
class NormAnchored(AlphaEdit):
    """One fact after the other with values of one length; settings as in `edits.grid.ClosedForm`.

    NAS (https://arxiv.org/abs/2602.02543): `AlphaEdit` with every v* scaled to the mean |v*| of the first facts on the
    model as it came. Published: 1,000 of them. Here: 8; of one fact alone it is `AlphaEdit`.
    """

    name: ClassVar[str] = "nas"
    batch: int | None = 1
    anchor: int = 8
