"""Locate, edit and verify in one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt

from edits.mass import Mass
from edits.method import Method
from edits.rank_one import RankOne
from locate.causal import causal_trace
from locate.trace import Trace
from surgery.edit import Edit
from surgery.fact import Fact
from surgery.model import Model
from surgery.report import Report
from surgery.site import Kind, Site
from surgery.verification import verify
from surgery.verification.attack import Profile
from surgery.verification.verify import check_profile, check_seed


@dataclass(frozen=True)
class Operation:
    """What one operation gave.

    Attributes:
        trace: where the first fact's answer passes through, None if not asked for.
        edit: the change.
        report: what it does. The model is as it was; `edit.apply(model)` changes it.
    """

    trace: Trace | None
    edit: Edit
    report: Report

    def save_report(self, folder: str | Path) -> Path:
        """Write the report into a folder, its page with the trace's map where there is one.

        Raises:
            SurgeryError: the folder cannot be written to.
        """
        if self.trace is None:
            return self.report.save(folder)
        ax = self.trace.plot()
        try:
            return self.report.save(folder, where={self.trace.heading: ax})
        finally:
            plt.close(ax.get_figure(root=True))


def operate(
    model: Model,
    facts: Sequence[Fact] | Fact,
    *,
    method: Method | None = None,
    sites: Sequence[Site] | None = None,
    profile: Profile = "quick",
    trace: Kind | None = "mlp",
    seed: int = 0,
) -> Operation:
    """Trace the first fact, compute the edit of all, verify it. The model's weights are the same afterwards.

    The trace explains; it does not choose the layer, which it is known to predict badly (Hase et al. 2023,
    https://arxiv.org/abs/2301.04213). Pass `sites` to choose it yourself.

    Args:
        model: the model.
        facts: what to change; facts with a `new_target` are rewritten, the others removed.
        method: how; rank-one by default for a rewrite, and memit for a removal.
        sites: where; what the method recommends for the model by default.
        profile: how much verification tries: "quick", "standard" or "full".
        trace: what to restore in the trace, None to skip it.
        seed: of what verification draws; a trace and a method have their own.

    Raises:
        SurgeryError: there is no such profile or seed, or a fact that cannot be traced, edited or verified.
    """
    check_profile(profile)
    check_seed(seed)
    chosen = (facts,) if isinstance(facts, Fact) else tuple(facts)
    edit = (method or _default(chosen))(model, chosen, sites)
    traced = causal_trace(model, chosen[0], kind=trace) if trace is not None else None
    return Operation(traced, edit, verify(model, edit, chosen, profile=profile, seed=seed))


def _default(facts: Sequence[Fact]) -> Method:
    """What `surgery edit` and `remove` take."""
    return Mass() if all(fact.new_target is None for fact in facts) else RankOne()
