"""Closed forms: from keys K and the residuals R of their values to the least change of a weight.

All of them are one formula. With a metric M (what a change of the weight costs, by direction), a slack a and keys K:

    dW = R (K^T M^-1 K + a I)^-1 K^T M^-1

1. Constrained, a = 0: dW K = R exactly. One key: Meng et al. 2022 (ROME, https://arxiv.org/abs/2202.05262), eq. 2;
   many: Gupta et al. 2024 (EMMET, https://arxiv.org/abs/2403.14236), eq. 10, M = C.
2. Least squares, a = 1: dW = R K^T (M + K K^T)^-1 by the push-through identity; Meng et al. 2023 (MEMIT,
   https://arxiv.org/abs/2210.07229), eq. 14, M = lambda C. With M = lambda C + K_p K_p^T, the sum over earlier edits'
   keys, it is what one batch of all of them would do to the rest.
3. Null space, a = 1 with keys P K: Fang et al. 2025 (AlphaEdit, https://arxiv.org/abs/2410.02355), eq. 13; P keeps the
   directions ordinary text uses less than others, M = l I + P K_p K_p^T P.

M is a diagonal plus a low rank, so M^-1 K comes from Woodbury's identity in float64, and no d_ff x d_ff matrix is
built, save where the rank is no lower, and once a layer for the eigenvectors of the null space: 2 s at d_ff 1536,
minutes above 10,000. The change has the rank of the number of keys. Weights (lambda, l, a) are in units of the keys'
own size: the published absolute ones suit the models they were found on and do nothing, or too much, on others.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from edits.moment import SecondMoment, whitened
from surgery.errors import SurgeryError

SMALLEST_COSINE = 1e-3
LARGEST_CONDITION = 1e10


@dataclass(frozen=True, eq=False)
class Solution:
    """dW = left right^T.

    Attributes:
        left: [d_model, n], the residuals.
        right: [d_ff, n].
        denominators: k^T C^-1 k of each key.
        cosines: between each key and C^-1 k; the smaller, the more other directions a change touches.
    """

    left: Float[Tensor, "d_model n"]
    right: Float[Tensor, "d_ff n"]
    denominators: tuple[float, ...]
    cosines: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Space:
    """What a solver has to know of a layer, made once for many solves.

    Attributes:
        moment: C.
        used: orthonormal directions a null-space solver leaves alone; None for the others.
        others: keys of other subjects a null-space solver weighs besides, in columns, scaled so that their outer
            products are in units of ordinary text's mean eigenvalue.
    """

    moment: SecondMoment
    used: Float[Tensor, "d_ff used"] | None = None
    others: Float[Tensor, "d_ff m"] | None = None


@runtime_checkable
class Solver(Protocol):
    """Turns keys and residuals into the change of one weight."""

    name: ClassVar[str]

    def space(self, moment: SecondMoment) -> Space:
        """What it has to know of a layer."""
        ...

    def beside(self, space: Space, others: Float[Tensor, "m d_ff"], weight: float) -> Space:
        """The same with keys of other subjects that weigh so many times as much as ordinary text."""
        ...

    def __call__(
        self,
        keys: Float[Tensor, "d_ff n"],
        residuals: Float[Tensor, "d_model n"],
        space: Space,
        earlier: Float[Tensor, "d_ff m"] | None = None,
    ) -> Solution:
        """The change; `earlier` are keys of edits the weight already holds."""
        ...


@dataclass(frozen=True, kw_only=True)
class Constrained:
    """Every key gets its value: dW K = R (EMMET; with one key, ROME).

    Attributes:
        slack: a, in units of the mean k^T M^-1 k. 0 is exact, and refuses keys that are almost the same. (EMMET's 0.1
            is absolute, with C times 10,000 or 100,000.)
        balance: of C against the earlier keys, as in `LeastSquares`.
    """

    name: ClassVar[str] = "constrained"
    slack: float = 0.0
    balance: float = 0.02

    def __post_init__(self) -> None:
        if self.slack < 0 or self.balance <= 0:
            raise SurgeryError("the slack of a constrained solver must be 0 or more, and its balance above 0")

    def space(self, moment: SecondMoment) -> Space:
        """C."""
        return Space(moment)

    def beside(self, space: Space, others: Float[Tensor, "m d_ff"], weight: float) -> Space:
        """C + w mean(k_o k_o^T)."""
        return Space(space.moment.plus(others, weight))

    def __call__(
        self,
        keys: Float[Tensor, "d_ff n"],
        residuals: Float[Tensor, "d_model n"],
        space: Space,
        earlier: Float[Tensor, "d_ff m"] | None = None,
    ) -> Solution:
        """Raises `SurgeryError` where keys are too much alike to have values of their own."""
        white, denominators, cosines = _checked(keys, space.moment)
        white = _beside(white, keys, space.moment, self.balance * _mean(denominators), earlier)
        gram = keys.double().cpu().T @ white
        gram = gram + self.slack * float(gram.diagonal().mean()) * torch.eye(len(gram), dtype=torch.float64)
        if self.slack == 0 and float(torch.linalg.cond(gram)) > LARGEST_CONDITION:
            raise SurgeryError(
                "two of the facts have almost the same key, so they cannot have values of their own; edit them one "
                "after the other, or give the solver some slack, such as 0.1"
            )
        return _solution(residuals, white, gram, denominators, cosines)


@dataclass(frozen=True, kw_only=True)
class LeastSquares:
    """Keys get their values as far as the rest of the text allows (MEMIT).

    Attributes:
        balance: lambda in units of the mean k^T C^-1 k: whatever the model's norms, a lone key gets
            1 / (1 + balance) of its residual.
        weight: lambda itself, absolute as published, in place of the balance (15,000 or 20,000: it suits the key norms
            of GPT-J and GPT2-XL, and leaves half of the facts out on smaller models).
    """

    name: ClassVar[str] = "least-squares"
    balance: float = 0.02
    weight: float | None = None

    def __post_init__(self) -> None:
        if (self.weight is not None and self.weight <= 0) or self.balance <= 0:
            raise SurgeryError("weight and balance of a least-squares solver must be above 0")

    def space(self, moment: SecondMoment) -> Space:
        """C."""
        return Space(moment)

    def beside(self, space: Space, others: Float[Tensor, "m d_ff"], weight: float) -> Space:
        """C + w mean(k_o k_o^T)."""
        return Space(space.moment.plus(others, weight))

    def __call__(
        self,
        keys: Float[Tensor, "d_ff n"],
        residuals: Float[Tensor, "d_model n"],
        space: Space,
        earlier: Float[Tensor, "d_ff m"] | None = None,
    ) -> Solution:
        """The change."""
        white, denominators, cosines = _checked(keys, space.moment)
        scale = self.balance * _mean(denominators) if self.weight is None else self.weight
        white = _beside(white, keys, space.moment, scale, earlier)
        gram = keys.double().cpu().T @ white
        return _solution(residuals, white, gram + torch.eye(len(gram), dtype=torch.float64), denominators, cosines)


@dataclass(frozen=True, kw_only=True)
class NullSpace:
    """Only directions that ordinary text uses less than others are changed (AlphaEdit).

    Attributes:
        threshold: directions of C may be changed whose eigenvalue is below this many mean eigenvalues. The published
            0.02 is absolute, so it keeps other directions wherever keys are longer or shorter; this one does not. At 1,
            on the default model, the directions that may be changed hold 43 to 68 per cent of ordinary keys' energy:
            it is a null space in name.
        balance: l, in units of the mean |P k|^2; published: 10, absolute.
    """

    name: ClassVar[str] = "null-space"
    threshold: float = 1.0
    balance: float = 0.02

    def __post_init__(self) -> None:
        if self.threshold <= 0 or self.balance <= 0:
            raise SurgeryError("threshold and balance of a null-space solver must be above 0")

    def space(self, moment: SecondMoment) -> Space:
        """C with the eigenvectors that ordinary text uses: those not below the threshold.

        Raises:
            SurgeryError: no direction is below it.
        """
        values, vectors = torch.linalg.eigh(moment.dense())
        used = vectors[:, values >= self.threshold * values.mean()]
        if used.shape[1] == len(used):
            raise SurgeryError(
                f"no direction of the keys is below {self.threshold} mean eigenvalues; raise the threshold"
            )
        return Space(moment, used)

    def beside(self, space: Space, others: Float[Tensor, "m d_ff"], weight: float) -> Space:
        """The same directions, ordinary text's; M = l (I + w mean(P k_o k_o^T P) / c), c the mean eigenvalue of C."""
        mean = float(space.moment.diagonal.mean() + space.moment.factors.square().sum() / len(space.moment.diagonal))
        more = (weight / (len(others) * mean)) ** 0.5 * others.T
        return dataclasses.replace(space, others=more if space.others is None else torch.cat([space.others, more], 1))

    def __call__(
        self,
        keys: Float[Tensor, "d_ff n"],
        residuals: Float[Tensor, "d_model n"],
        space: Space,
        earlier: Float[Tensor, "d_ff m"] | None = None,
    ) -> Solution:
        """The change."""
        _, denominators, cosines = _checked(keys, space.moment)
        assert space.used is not None, "a space made by another solver"
        inside = _without(keys.double().cpu(), space.used)
        ridge = self.balance * float(inside.square().sum(0).mean())
        kept = [] if earlier is None else [earlier]
        if space.others is not None:
            kept.append(ridge**0.5 * space.others)
        before = [_without(one.double().cpu(), space.used) for one in kept]
        scale = torch.full((len(inside),), ridge, dtype=torch.float64)
        white = whitened(inside, scale, torch.cat([inside[:, :0], *before], 1))
        gram = inside.T @ white
        return _solution(residuals, white, gram + torch.eye(len(gram), dtype=torch.float64), denominators, cosines)


def _beside(
    white: Float[Tensor, "d_ff n"],
    keys: Float[Tensor, "d_ff n"],
    moment: SecondMoment,
    scale: float,
    earlier: Float[Tensor, "d_ff m"] | None,
) -> Float[Tensor, "d_ff n"]:
    """(scale C + K_p K_p^T)^-1 K from C^-1 K, which it is a multiple of where there is nothing earlier."""
    if earlier is None or not earlier.shape[1]:
        return white / scale
    factors = torch.cat([scale**0.5 * moment.factors.double().cpu(), earlier.double().cpu()], 1)
    return whitened(keys, scale * moment.diagonal.double(), factors)


def _checked(
    keys: Float[Tensor, "d_ff n"], moment: SecondMoment
) -> tuple[Float[Tensor, "d_ff n"], tuple[float, ...], tuple[float, ...]]:
    """C^-1 K with the denominators and cosines of the keys."""
    k = keys.double().cpu()
    white = whitened(k, moment.diagonal, moment.factors)
    denominators = (k * white).sum(0)
    cosines = denominators / (k.norm(dim=0) * white.norm(dim=0)).clamp_min(1e-300)
    if not bool((cosines > SMALLEST_COSINE).all()):
        raise SurgeryError(
            f"a key and its whitened direction are almost orthogonal (cosine {float(cosines.min()):.1e}); an edit "
            "there would break the model: choose another layer, or fit the key statistics on more text"
        )
    return white, tuple(denominators.tolist()), tuple(cosines.tolist())


def _without(keys: Float[Tensor, "d_ff n"], used: Float[Tensor, "d_ff used"]) -> Float[Tensor, "d_ff n"]:
    return keys - used @ (used.T @ keys)


def _mean(numbers: tuple[float, ...]) -> float:
    return sum(numbers) / len(numbers)


def _solution(
    residuals: Float[Tensor, "d_model n"],
    white: Float[Tensor, "d_ff n"],
    gram: Float[Tensor, "n n"],
    denominators: tuple[float, ...],
    cosines: tuple[float, ...],
) -> Solution:
    right = torch.linalg.solve(gram, white.T).T
    return Solution(residuals.float().cpu(), right.float(), denominators, cosines)
