"""The model quantised: int8, int4, NF4 (`surgery.verification.quantisation` says how), and asked again.

Published: after 4-bit quantisation, unlearned models kept 83 % of what they should have forgotten, against 21 % in full
precision (https://arxiv.org/abs/2410.16454). A removal has to withstand it, for models are handed on quantised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from surgery.fact import Fact
from surgery.model import Model
from surgery.verification.attack import Aspect, Attempt, Profile
from surgery.verification.attacks.wordings import WORDINGS, rated
from surgery.verification.quantisation import quantised


@dataclass(frozen=True, kw_only=True)
class _Quantised:
    """Quantise every linear map of the blocks and ask; a subclass has the name of its kind of quantisation."""

    name: ClassVar[str]
    aspect: ClassVar[Aspect] = "quantisation"
    own_words: ClassVar[bool] = True
    unit: ClassVar[str] = "probability"
    floor: ClassVar[float] = 0.06

    def __call__(self, model: Model, facts: Sequence[Fact]) -> Attempt:
        """The answer's probability after each wording, by the quantised model."""
        with quantised(model, self.name):
            return Attempt(WORDINGS, rated(model, facts))


@dataclass(frozen=True, kw_only=True)
class Int8(_Quantised):
    """Eight bits, a scale for each output."""

    name: ClassVar[str] = "int8"
    about: ClassVar[str] = "linear maps rounded to 8 bits, one scale for each output"
    profile: ClassVar[Profile] = "full"


@dataclass(frozen=True, kw_only=True)
class Int4(_Quantised):
    """Four bits, groups of 64."""

    name: ClassVar[str] = "int4"
    about: ClassVar[str] = "linear maps rounded to 4 bits, asymmetric, groups of 64 inputs"
    profile: ClassVar[Profile] = "standard"


@dataclass(frozen=True, kw_only=True)
class NF4(_Quantised):
    """Sixteen normal quantiles, blocks of 64."""

    name: ClassVar[str] = "nf4"
    about: ClassVar[str] = "linear maps rounded to the 16 levels of NF4, blocks of 64 inputs"
    floor: ClassVar[float] = 0.12
    profile: ClassVar[Profile] = "standard"
