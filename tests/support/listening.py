"""An attack that finds nothing and remembers what it was asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from surgery import Fact, Model
from surgery.verification.attack import Aspect, Attempt, Profile


@dataclass(frozen=True, kw_only=True)
class Listening:
    """Records the facts it is shown, and finds nothing."""

    name: ClassVar[str] = "listening"
    about: ClassVar[str] = "nothing"
    aspect: ClassVar[Aspect] = "extraction"
    own_words: ClassVar[bool] = False
    profile: ClassVar[Profile] = "full"
    unit: ClassVar[str] = "p"
    floor: ClassVar[float] = 0.05
    heard: ClassVar[list[Fact]] = []

    def __call__(self, model: Model, facts: Sequence[Fact]) -> Attempt:
        self.heard.extend(facts)
        return Attempt(("once",), np.zeros((len(facts), 1)))


class Keen(Listening):
    """The same with the fact's own words."""

    own_words: ClassVar[bool] = True
    heard: ClassVar[list[Fact]] = []
