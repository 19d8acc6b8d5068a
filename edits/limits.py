"""Where editing stops: before a model collapses, not after.

Edits that go well one by one add up: weights drift, values grow with every edit, and a model that looked sound after
one edit is rubble after the next (Yang et al. 2024, https://arxiv.org/abs/2402.09656; the growth of values:
https://arxiv.org/abs/2602.02543). So after every batch of facts three numbers are looked at:

1. |dW| / |W| in Frobenius norms, of everything changed so far in each weight;
2. each value's norm |v*| against the mean of the first ones', found on the model as it came or nearly so;
3. the perplexity of neutral text against that of the model as it came.

The batch that would pass a limit is not part of the edit, and the user is told so by an error that holds the edit of
all facts before it. Methods that know no values and no batches (training, neurons) are held to the first and the third
number once, at their end.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from surgery.edit import Edit, Undo, weight_of
from surgery.errors import SurgeryError
from surgery.model import Model
from surgery.shipped import neutral_texts
from surgery.verification.drift import perplexity


class NearCollapse(SurgeryError):
    """One more batch of facts would pass a limit.

    Attributes:
        edit: of the facts before it; None if it was the first batch.
        done: how many facts that are.
    """

    def __init__(self, message: str, edit: Edit | None, done: int) -> None:
        super().__init__(message)
        self.edit = edit
        self.done = done

    @classmethod
    def after(cls, done: int, count: int, passed: str, edit: Edit | None, *, names: float = 0.0) -> NearCollapse:
        """What a method raises that has done so many facts: which limit it would pass, and the remedy.

        Where nearly the same names weigh, changes are longer, most of all where a model hardly tells them apart.
        """
        less = ", weigh nearly the same names less (names=0)" if names else ""
        told = f"after {done} of {count} facts {passed}; edit fewer facts{less}, or raise the limit if you mean it"
        return cls(told, edit, done)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How far a model may be moved.

    Attributes:
        relative_change: most |dW| / |W| of any weight.
        value_norm: most |v*| of any value, in means of the first ones.
        perplexity: most perplexity of neutral text, in units of the model's as it came.
        texts: the neutral text; a few sentences the package brings along by default.
    """

    relative_change: float = 1.0
    value_norm: float = 4.0
    perplexity: float = 1.5
    texts: Sequence[str] = field(default_factory=lambda: tuple(neutral_texts()[:6]))

    def __post_init__(self) -> None:
        for name in ("relative_change", "value_norm", "perplexity"):
            if not getattr(self, name) > 0:
                raise SurgeryError(f"a limit is a number above 0, not {name}={getattr(self, name)}")
        if not self.texts:
            raise SurgeryError("the limit of perplexity needs some neutral text; give at least one sentence")

    def measure(self, model: Model) -> float:
        """Perplexity of the neutral text by the model as it is."""
        return perplexity(model, self.texts)

    def measure_once(self, model: Model, base: str) -> float:
        """The same of a model whose weights have this fingerprint, kept with it: many edits start from one model."""
        key = base, tuple(self.texts)
        if key not in model.perplexities:
            model.perplexities[key] = self.measure(model)
        return model.perplexities[key]

    def passed(self, relative_change: float, value_norm: float, perplexity: float) -> str | None:
        """Which limit these numbers pass, in words; None if none. A number that is nan passes its limit."""
        found = {
            "the weights would have changed by {:.3g} of their norm": (relative_change, self.relative_change),
            "a value would be {:.3g} times as long as the first ones": (value_norm, self.value_norm),
            "the perplexity of neutral text would be {:.3g} times what it was": (perplexity, self.perplexity),
        }
        for words, (number, limit) in found.items():
            if math.isnan(number) or number > limit:
                return f"{words.format(number)} (limit {limit})"
        return None


def within(model: Model, edit: Edit, limits: Limits) -> Edit:
    """An edit, if it passes no limit, with what it does to weights and neutral text in every entry of its log.

    Raises:
        NearCollapse: it passes one.
    """
    sizes = [float(weight_of(model, delta).detach().float().norm()) for delta in edit.deltas]
    change = max(delta.norm / size for delta, size in zip(edit.deltas, sizes, strict=True))
    before = limits.measure_once(model, edit.base)
    undo = Undo(model, edit.deltas)
    try:
        ratio = limits.measure(model) / before
    finally:
        undo()
    if (passed := limits.passed(change, 0.0, ratio)) is not None:
        raise NearCollapse.after(0, len(edit.facts), passed, None)
    numbers = {"total_change": change, "perplexity_ratio": ratio}
    return dataclasses.replace(edit, log=tuple({**one, **numbers} for one in edit.log))
