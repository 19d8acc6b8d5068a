"""A side effect as a value: an axis, the change on it with its 95 % interval, and whether that is harm.

An axis has moved where the interval lies beyond its floor in the direction of harm, is kept where it lies within, and
is unclear else: too few cases to tell. Floors are a matter of judgement; they stand in the record.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from surgery.errors import SurgeryError
from surgery.numbers import Interval, counted, json_values

Harm = Literal["lower", "higher", "either"]


@dataclass(frozen=True)
class Axis:
    """A kind of side effect.

    Attributes:
        about: what is compared.
        unit: of the change.
        harm: the direction that would be harm.
        floor: the smallest change that counts.
    """

    about: str
    unit: str
    harm: Harm
    floor: float


AXES: Mapping[str, Axis] = {
    "same subject": Axis("next token after openings about the subject", "nats", "higher", 0.1),
    "same subject, other facts": Axis("what else the model knows of the subject", "probability", "lower", 0.05),
    "same relation, same answer": Axis("other subjects with the fact's answer", "probability", "lower", 0.05),
    "same relation, other answer": Axis("other subjects with other answers", "probability", "lower", 0.05),
    "reversed": Axis("the subject, asked for by the old answer", "nats a token", "either", 0.1),
    "reversed, new answer": Axis("the subject, asked for by the new answer", "nats a token", "either", 0.1),
    "two hops": Axis("what is known of the old answer, asked by naming the subject", "probability", "either", 0.05),
    "two hops, new answer": Axis("what is known of the new answer, asked so", "probability", "lower", 0.05),
    "statement in front": Axis("other subjects, behind the edited statement", "probability", "lower", 0.05),
    "unrelated facts": Axis("known facts that share nothing with it", "probability", "lower", 0.05),
    "neutral text": Axis("next tokens of neutral text", "nats a token", "higher", 0.01),
    "perplexity": Axis("logarithm of the perplexity of neutral text", "nats a token", "higher", 0.01),
    "repeated bigrams": Axis("share of bigrams said before, in long continuations", "share", "higher", 0.05),
    "repeated 4-grams": Axis("share of 4-grams said before, in long continuations", "share", "higher", 0.05),
}
QUICK = ("same relation, same answer", "same relation, other answer", "unrelated facts", "neutral text", "perplexity")


@dataclass(frozen=True)
class Effect:
    """What an edit did on one axis.

    Attributes:
        axis: a key of `AXES`.
        change: after minus before, or a divergence between the two.
        before: mean before; nan for a divergence.
        after: mean after; nan for a divergence.
        over: what the interval is over.
        worst: the case with the most harm, in words; "" where there is none to name.
    """

    axis: str
    change: Interval
    before: float
    after: float
    over: Literal["cases", "facts", "texts"]
    worst: str = ""

    def __post_init__(self) -> None:
        if self.axis not in AXES:
            raise SurgeryError(f"there is no axis {self.axis!r}; there are {', '.join(AXES)}")

    @property
    def kind(self) -> Axis:
        """What the axis is."""
        return AXES[self.axis]

    @property
    def outcome(self) -> Literal["moved", "kept", "unclear"]:
        """Whether the interval lies beyond the axis' floor in the direction of harm, within it, or neither."""
        low, high = self.change.low, self.change.high
        if self.kind.harm == "lower" or (self.kind.harm == "either" and high < -low):
            low, high = -high, -low
        if low > self.kind.floor:
            return "moved"
        return "kept" if high <= self.kind.floor else "unclear"

    @property
    def counted(self) -> str:
        """What the interval is over, such as "3 facts"."""
        return counted(self.change.cases, self.over.removesuffix("s"))

    @property
    def told(self) -> str:
        """In words."""
        one = self.change
        ends = f" ({one.low:+.3g} to {one.high:+.3g})" if not math.isnan(one.low) else ""
        return f"{self.axis}: {one.mean:+.3g}{ends} {self.kind.unit}, {self.counted}, {self.outcome}"


@dataclass(frozen=True)
class Effects:
    """What else an edit changed.

    Attributes:
        effects: one an axis that had cases.
        left_out: axes without, and why.
        facts: how many facts were looked at, of how many.
        seed: of everything drawn.
        seconds: how long it took.
        too_long: on each axis, how many questions were not asked, as the model cannot read them.
    """

    effects: tuple[Effect, ...]
    left_out: Mapping[str, str]
    facts: tuple[int, int]
    seed: int
    seconds: float
    too_long: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [one.axis for one in self.effects]
        if len(set(names)) != len(names) or set(names) & set(self.left_out):
            raise SurgeryError("each axis has one effect, or is left out")

    def __getitem__(self, axis: str) -> Effect:
        return next(one for one in self.effects if one.axis == axis)

    @property
    def counted(self) -> str:
        """On how many axes there was harm, in words."""
        moved, unclear = ([one.outcome for one in self.effects].count(kind) for kind in ("moved", "unclear"))
        rest = f", {unclear} unclear" if unclear else ""
        return f"{moved} of {len(self.effects)} axes moved beyond their floor{rest}"

    @property
    def told(self) -> str:
        """In words."""
        by = {kind: [one.axis for one in self.effects if one.outcome == kind] for kind in ("moved", "unclear")}
        if not by["moved"] and not by["unclear"]:
            return f"nothing else moved on {len(self.effects)} axes"
        return "; ".join(f"{kind}: {', '.join(axes)}" for kind, axes in by.items() if axes)

    def as_record(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        each = [{**json_values(one), **json_values(one.kind), "outcome": one.outcome} for one in self.effects]
        return {**json_values(self), "effects": each, "told": self.told, "counted": self.counted}
