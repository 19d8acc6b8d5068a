"""The figure of attacks, told by what it draws."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from surgery import SurgeryError
from surgery.report_figures import findings_in_words, plot_findings
from surgery.verification.attack import Finding, Lift
from surgery.verification.battery import Battery


def lift(value: float, line: float = 0.1) -> Lift:
    return Lift(value, line, tuple(np.linspace(0.08, -0.02, 20)), "form", 0.5, 0.1)


FINDINGS = (
    Finding(0, "of another fact", "extraction", "p", None, lift(0.3)),
    Finding(1, "asking", "extraction", "p", lift(0.9), lift(0.7)),
    Finding(1, "reading $x$", "traces", "p", lift(0.9), lift(0.02)),
    Finding(1, "a name that is much too long to stand beside a row", "traces", "p", lift(0.05), lift(0.03)),
    Finding(1, "not for this", "relearning", "p", lift(float("nan")), lift(float("nan"))),
)
BATTERY = Battery(FINDINGS, {}, (20, 20))


def test_a_row_is_an_attack_with_dots_ticks_and_its_line() -> None:
    ax = plot_findings(BATTERY, 1)
    labels = [one.get_text() for one in ax.get_yticklabels()]
    assert labels == ["asking", r"reading \$x\$", "a name that is much too long to…", "not for this"]
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    drawn = [(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in dots]  # type: ignore[index, arg-type]
    assert drawn == [(0.9, 0), (0.7, 0), (0.9, 1), (0.02, 1), (0.05, 2), (0.03, 2)]
    assert [line.get_markerfacecolor() for line in dots] == [
        "white", "#a33333", "white", "#2c7a4b", "white", "#8a8a94",
    ]  # fmt: skip
    ticks = [line for line in ax.lines if line.get_marker() == "|"]
    assert [len(line.get_xdata()) for line in ticks] == [20, 20, 20]  # type: ignore[arg-type]
    assert [one.get_text() for one in ax.texts] == ["cannot be tried"]
    assert ax.get_legend().get_texts()[-1].get_text() == "before"


def test_without_an_edit_there_is_no_dot_before() -> None:
    ax = plot_findings(BATTERY, 0)
    assert len([line for line in ax.lines if line.get_marker() == "o"]) == 1
    assert [one.get_text() for one in ax.get_legend().get_texts()] == ["controls", "line to be beyond", "judged"]
    assert plot_findings(BATTERY, 0, ax) is ax


def test_the_same_in_words() -> None:
    told = findings_in_words(BATTERY, 1)
    assert "asking succeeds, lift +0.70, line +0.10, before +0.90; reading $x$ resisted, lift +0.02" in told
    assert told.endswith("not for this not applicable.")
    assert "before" not in findings_in_words(BATTERY, 0)


def test_a_fact_that_was_not_attacked_has_no_figure() -> None:
    with pytest.raises(SurgeryError, match="fact 2 was not attacked"):
        plot_findings(dataclasses.replace(BATTERY, controls=(20, 20, 0)), 2)
