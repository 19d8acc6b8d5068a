"""Corpus-level measures as values: one row a state of the model or way of removing, and all rows as a table."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from surgery.corpus.muse import AfterRemoval
from surgery.errors import SurgeryError

COLUMNS = (
    "",
    "C1 VerbMem",
    "C2 KnowMem",
    "C3 PrivLeak",
    "C4 utility",
    "C5 scalability",
    "C6 sustainability",
    "TOFU quality",
    "log R",
    "s",
)
NOTE = (
    "C1, C2, C4: mean ROUGE-L F1. C3: about -100 still leaks, 0 as if never trained, far above 0 removed too hard. "
    "C5: facts at once, utility (left of them). C6: after each removal, utility (left of the earlier ones). "
    "Quality: p value against the model that was never trained on them."
)


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One state of a model, by all measures.

    Attributes:
        name: of the state, or of the way of removing.
        verbatim: C1, mean ROUGE-L F1 of continuations of forgotten texts, 0 to 1.
        knowledge: C2, mean ROUGE-L F1 of answers about the forget set, 0 to 1.
        leak: C3, PrivLeak in per cent.
        utility: C4, mean ROUGE-L F1 of answers about the retain set, 0 to 1.
        scalability: C5, an entry a number of facts removed at once.
        sustainability: C6, an entry a removal of a sequence.
        truth_ratio: mean log truth ratio on the forget set.
        distance: the Kolmogorov-Smirnov statistic behind the quality, 0 to 1.
        quality: TOFU's forget quality, a p value.
        auc: behind the leak, 0 to 1.
        seconds: what the removal of the whole forget set took.
    """

    name: str
    verbatim: float
    knowledge: float
    leak: float
    utility: float
    scalability: tuple[AfterRemoval, ...] = ()
    sustainability: tuple[AfterRemoval, ...] = ()
    truth_ratio: float
    distance: float
    quality: float
    auc: float
    seconds: float = 0.0

    def __post_init__(self) -> None:
        for field in ("verbatim", "knowledge", "utility", "distance", "quality", "auc"):
            if not 0 <= getattr(self, field) <= 1 + 1e-9:
                raise SurgeryError(f"the {field} of {self.name!r} is {getattr(self, field)}, which is not from 0 to 1")

    def as_record(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        record = dataclasses.asdict(self)
        for field in ("scalability", "sustainability"):
            record[field] = [{**one, "left": None if math.isnan(one["left"]) else one["left"]} for one in record[field]]
        return record

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Judged:
        """The row that `as_record` gave."""
        several = {
            field: tuple(
                AfterRemoval(one["facts"], math.nan if one["left"] is None else one["left"], one["utility"])
                for one in record[field]
            )
            for field in ("scalability", "sustainability")
        }
        return cls(**{**record, **several})

    def cells(self) -> list[str]:
        """The row in words."""
        return [
            self.name,
            f"{self.verbatim:.3f}",
            f"{self.knowledge:.3f}",
            f"{self.leak:+.1f}",
            f"{self.utility:.3f}",
            ", ".join(f"{one.facts}: {_told(one)}" for one in self.scalability) or "-",
            ", ".join(_told(one) for one in self.sustainability) or "-",
            f"{self.quality:.2g}",
            f"{self.truth_ratio:+.2f}",
            f"{self.seconds:.1f}",
        ]


@dataclass(frozen=True, kw_only=True)
class CorpusReport:
    """Ways of removing side by side.

    Attributes:
        model: what the model was loaded from.
        people: how many are in the forget, retain and holdout sets.
        facts: how many the forget set has.
        losses: mean loss of each round in which the forget set was taught, in nats a token.
        rows: the model that was never trained on the forget set first, then each way of removing it.
        seconds: what all of it took.
    """

    model: str
    people: tuple[int, int, int]
    facts: int
    losses: tuple[float, ...]
    rows: tuple[Judged, ...]
    seconds: float

    def __getitem__(self, name: str) -> Judged:
        """The row of that name.

        Raises:
            SurgeryError: there is none.
        """
        for row in self.rows:
            if row.name == name:
                return row
        raise SurgeryError(f"there is no row {name!r}; there are {', '.join(row.name for row in self.rows)}")

    def as_record(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        rows = [row.as_record() for row in self.rows]
        return {"format": "knowledge-surgery corpus 1", **dataclasses.asdict(self), "rows": rows}

    def table(self) -> Table:
        """The rows as a table for the terminal."""
        forget, retain, holdout = self.people
        title = f"{self.facts} facts about {forget} invented people removed; {retain} retained, {holdout} held out"
        caption = f"Taught to {self.losses[-1]:.2f} nats a token. {NOTE}"
        table = Table(title=title, title_justify="left", caption=caption, caption_justify="left", box=SIMPLE)
        for i, name in enumerate(COLUMNS):
            table.add_column(name, justify="left" if i in (0, 5, 6) else "right", overflow="fold")
        for row in self.rows:
            table.add_row(*row.cells())
        return table


def _told(one: AfterRemoval) -> str:
    return f"{one.utility:.2f}" + ("" if math.isnan(one.left) else f" ({one.left:.2f})")
