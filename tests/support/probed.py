"""Rows of a report by hand: a probe with what was measured before and after."""

from __future__ import annotations

from typing import Any

from surgery import Thresholds
from surgery.verification import Probe, Rating
from surgery.verification.probes import Measured
from surgery.verification.verdicts import Row

LINES = Thresholds()
KNOWN, GONE, UNKNOWN = Rating(0.9, 1), Rating(0.001, 50), Rating(0.001, 300)


def row(role: Any, was: Rating | None, now: Rating, new: Rating | None = None, *, held_out: bool = True) -> Row:
    probe = Probe(0, role, f"{role} of it", "old", "new" if new else None, held_out)
    before = Measured(was, GONE if new else None, "says") if was else None
    return probe, before, Measured(now, new, "says")
