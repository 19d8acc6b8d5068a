"""A report: what was claimed, measured and found, as a value, a table, JSON and one page."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from surgery.files import writable_folder, written_whole
from surgery.junit import junit
from surgery.numbers import json_values
from surgery.report_page import page

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from surgery.fact import Fact
    from surgery.verification.battery import Battery
    from surgery.verification.beside import Beside
    from surgery.verification.costs import Costs
    from surgery.verification.drift import Drift
    from surgery.verification.leak import Leak
    from surgery.verification.probes import Measured, Probe, Rating
    from surgery.verification.verdicts import Claim, Row, Thresholds, Verdict

MEANINGS = {
    0: "every claim holds",
    10: "the fact is still there",
    11: "collateral damage",
    12: "the model never knew it",
    13: "inconclusive",
}
SUPPRESSED = "suppressed, not removed"
"""What 10 means where only attacks bring an answer up, or something holds it back and the weights are as they were."""
NOT_SAID = "it is not said; whether it ever was is not shown"
"""What 0 means of a claim of removal where there is no model before."""


@dataclass(frozen=True)
class Report:
    """What verification found.

    Attributes:
        claim: "removed" or "rewritten".
        facts: what was asked.
        model: name of the model.
        base: fingerprint of its weights without the edit.
        edit: summary of the edit, None for a model judged as it is.
        verdicts: one a fact.
        drift: change on neutral text, None without an edit.
        drift_claim: the verdict on it.
        rows: every probe with its measurement before (None without an edit) and after.
        neighbours_left_out: neighbours about subjects that were edited themselves.
        thresholds: where the lines were drawn.
        not_tested: what this profile did not try.
        seconds: how long it took.
        exit_code: 0, or the gravest finding.
        profile: how much was tried.
        seed: of what was drawn for it.
        battery: what attacks found.
        beside: what was measured and judges nothing.
        leak: how well the subjects can be read off the edit itself, where that was asked.
        costs: what it took, by part.
    """

    claim: str
    facts: tuple[Fact, ...]
    model: str
    base: str
    edit: dict[str, Any] | None
    verdicts: tuple[Verdict, ...]
    drift: Drift | None
    drift_claim: Claim
    rows: tuple[Row, ...]
    neighbours_left_out: int
    thresholds: Thresholds
    not_tested: tuple[str, ...]
    seconds: float
    exit_code: int
    profile: str
    seed: int
    battery: Battery
    beside: Beside
    costs: Costs
    leak: Leak | None = None

    @property
    def ok(self) -> bool:
        """Every claim holds."""
        return self.exit_code == 0

    @property
    def meaning(self) -> str:
        """The exit code in words."""
        if self.exit_code == 0 and self.edit is None and self.claim == "removed":
            return NOT_SAID
        if self.exit_code == 10 and all(one.overall != "still there" for one in self.verdicts):
            return SUPPRESSED
        if self.exit_code == 0 and self.untried:
            return f"{MEANINGS[0]}; not tested how deep it goes: {', '.join(self.untried)}"
        return MEANINGS[self.exit_code]

    @property
    def untried(self) -> tuple[str, ...]:
        """Aspects that tell how deep a removal goes, and that were not tried with power on some fact that is gone."""
        from surgery.verification.verdicts import DEPTH  # which needs reports first

        shallow = [one for one in self.verdicts if one.overall == "holds" and one.depth is None]
        holding = [{claim.name for claim in one.claims if claim.outcome == "holds"} for one in shallow]
        return tuple(name for name in DEPTH if self.claim == "removed" and any(name not in one for one in holding))

    @property
    def scores(self) -> dict[str, dict[str, float | int | None]]:
        """Mean probability of the answer by kind of prompt, before and after, and in how many cases.

        Keys end in `new` for a rewrite's new answer.
        """
        found: dict[str, dict[str, float | int | None]] = {}
        for role in ("prompt", "paraphrase", "neighbour"):
            rows = [row for row in self.rows if row[0].role == role and (row[0].held_out or role == "prompt")]
            for name, field in ((role, "target"), (f"{role} new", "new_target")):
                after = [getattr(now, field) for _, _, now in rows if getattr(now, field)]
                before = [getattr(was, field) for _, was, _ in rows if was and getattr(was, field)]
                if after:
                    found[name] = {"before": _mean(before), "after": _mean(after), "cases": len(after)}
        return found

    def as_record(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        fields = [one.name for one in dataclasses.fields(self) if one.name not in ("facts", "rows", "beside")]
        record = {name: json_values(getattr(self, name)) for name in fields}
        record["beside"] = self.beside.as_record()
        record["probes"] = [
            {**json_values(probe), "before": json_values(was), "after": json_values(now)}
            for probe, was, now in self.rows
        ]
        record["verdicts"] = [{**json_values(one), "depth": one.depth} for one in self.verdicts]
        record["battery"]["findings"] = [
            {**json_values(one), "outcome": one.outcome, "evidence": one.evidence} for one in self.battery.findings
        ]
        return {"format": "knowledge-surgery report 2", "meaning": self.meaning, "scores": self.scores, **record}

    def save(
        self,
        folder: str | Path,
        figures: Mapping[str, Figure | Axes] = MappingProxyType({}),
        *,
        where: Mapping[str, Figure | Axes] = MappingProxyType({}),
    ) -> Path:
        """Write `report.json` and `report.html` (one page, nothing loaded from elsewhere) into a folder.

        Args:
            folder: where; made if it is absent.
            figures: more figures for the page, by what stands above each; they stay open.
            where: maps of where the answer passes through, in the same way; they stand beside a removal's depth.

        Raises:
            SurgeryError: the folder cannot be written to.
        """
        folder = writable_folder(folder)
        for name, text in (
            ("report.json", json.dumps(self.as_record(), indent=1, ensure_ascii=False)),
            ("report.html", page(self, figures, where)),
        ):
            with written_whole(folder / name) as temporary:
                temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
        return folder

    def save_junit(self, path: str | Path) -> Path:
        """Write the verdicts as JUnit XML, one test case a fact and claim (`surgery.junit`).

        Raises:
            SurgeryError: the place cannot be written to.
        """
        with written_whole(path) as temporary:
            temporary.write_bytes(junit(self))
        return Path(path)

    def table(self, most: int = 40) -> Table:
        """The probes as a table for the terminal, at most that many, those of the first facts."""
        title = f"{self.meaning} ({self.seconds:.1f} s)"
        table = Table(title=title, title_justify="left", caption_justify="left", box=SIMPLE, pad_edge=False)
        table.add_column("prompt, and what the model says now", overflow="fold")
        table.add_column("answer", overflow="fold")
        for name in ("p before", "after", "rank before", "after"):
            table.add_column(name, justify="right")
        for probe, was, now in self.rows[:most]:
            for answer, field in ((probe.target, "target"), (probe.new_target, "new_target")):
                if answer is not None:
                    table.add_row(*_cells(probe, answer, was, now, field))
        rest = f"; {len(self.rows) - most} more prompts in the report" if len(self.rows) > most else ""
        table.caption = f"drift on neutral text: {self.drift_claim.evidence}{rest}"
        if self.beside.effects is not None:
            table.caption += f"\nside effects: {self.beside.effects.counted}"
        for one in self.beside.tasks.effects if self.beside.tasks else ():
            table.caption += f"\n{escape(one.told)}"
        if self.leak is not None:
            table.caption += f"\nread off the edit itself: {self.leak.told}"
        return table


def _cells(probe: Probe, answer: str, was: Measured | None, now: Measured, field: str) -> list[str]:
    old: Rating | None = getattr(was, field) if was else None
    new: Rating = getattr(now, field)
    if field == "new_target":
        text = f"  [dim]> {escape(' '.join((now.says or '').split()))}[/dim]"
    else:
        says = f"\n  [dim]> {escape(' '.join(now.says.split()))}[/dim]" if now.says and not probe.new_target else ""
        text = f"{'[dim]neighbour[/dim] ' if probe.role == 'neighbour' else ''}{escape(probe.prompt)}{says}"
    before = (f"{old.probability:.4f}", str(old.rank)) if old else ("-", "-")
    return [text, escape(answer), before[0], f"{new.probability:.4f}", before[1], str(new.rank)]


def _mean(ratings: list[Rating]) -> float | None:
    return sum(one.probability for one in ratings) / len(ratings) if ratings else None
