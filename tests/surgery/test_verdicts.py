"""The truth table of verdicts, by hand, and their exit codes."""

from __future__ import annotations

from typing import Any

import pytest
from probed import GONE, KNOWN, LINES, UNKNOWN, row

from surgery import Thresholds
from surgery.verification import Drift, Rating
from surgery.verification.attack import ASPECTS, Finding, Lift
from surgery.verification.verdicts import Row, Verdict, exit_code, judge, judge_drift

NO_DRIFT = Drift(0.001, 0.0, 0.0, 1, 100, (20.0, 20.0))


def removed(
    *now: Rating, was: Rating | None = KNOWN, held_out: bool = True, neighbours: list[Row] | None = None
) -> Verdict:
    rows = [
        row("prompt", was, now[0], held_out=False),
        *(row("paraphrase", was, one, held_out=held_out) for one in now[1:]),
    ]
    return judge("it", rows + (neighbours or []), "removed", LINES)


def rewritten(*now: tuple[Rating, Rating], held_out: bool = True) -> Verdict:
    rows = [row("prompt", KNOWN, *now[0], held_out=False)]
    rows += [row("paraphrase", KNOWN, *one, held_out=held_out) for one in now[1:]]
    return judge("it", rows, "rewritten", LINES)


def code(verdict: Verdict, moved: Drift | None = NO_DRIFT) -> int:
    return exit_code([verdict], judge_drift(moved, LINES))


@pytest.mark.parametrize(
    ("now", "options", "outcome", "expected"),
    [
        ((GONE, GONE, GONE), {}, "holds", 0),
        ((Rating(0.01, 11), Rating(0.01, 11)), {}, "holds", 0),  # on the line
        ((Rating(0.011, 11), GONE), {}, "fails", 10),
        ((Rating(0.001, 10), GONE), {}, "fails", 10),
        ((GONE, Rating(0.001, 3)), {}, "fails", 10),
        ((GONE, GONE, KNOWN), {}, "fails", 10),
        ((KNOWN, GONE), {}, "fails", 10),
        ((GONE,), {}, "inconclusive", 13),
        ((GONE, KNOWN), {"held_out": False}, "inconclusive", 13),  # what the edit saw proves nothing
        ((KNOWN,), {}, "fails", 10),
        ((UNKNOWN, UNKNOWN), {"was": UNKNOWN}, "holds", 12),
        ((KNOWN, KNOWN), {"was": UNKNOWN}, "fails", 12),
        ((GONE, GONE), {"was": None}, "holds", 0),
        ((GONE, GONE), {"was": Rating(0.05, 5)}, "holds", 13),  # half known
    ],
)
def test_removed(now: tuple[Rating, ...], options: dict[str, Any], outcome: str, expected: int) -> None:
    verdict = removed(*now, **options)
    assert verdict["removed"].outcome == outcome
    assert code(verdict) == expected


def attacked(outcome: str, was: Rating | None, **how: Any) -> Verdict:
    """What withstood everything, or nothing but that the answer comes up by one attack."""
    strong, weak = (Lift(value, 0.1, (0.05,) * 20, "form", 0.3, 0.0) for value in (0.9, 0.0))
    found = [
        Finding(
            0, "tried", aspect, "p", strong if was else None, strong if (aspect, outcome) == ("traces", "up") else weak
        )
        for aspect in ASPECTS
    ]
    rows = [row("prompt", was, GONE), row("paraphrase", was, GONE)]
    return judge("it", rows, "removed", LINES, found, **how)


@pytest.mark.parametrize(
    ("outcome", "was", "kept", "overall", "depth"),
    [
        ("withstood", KNOWN, False, "holds", "removed under this battery"),
        ("up", KNOWN, False, "suppressed", "suppressed"),
        ("withstood", KNOWN, True, "suppressed", "suppressed"),
        ("withstood", UNKNOWN, True, "never known", None),
        # without a model before: an attack shows that it is known, nothing shows that it was
        ("up", None, False, "suppressed", "suppressed"),
        ("withstood", None, False, "holds", "not shown to be removed"),
    ],
)
def test_depth(outcome: str, was: Rating | None, kept: bool, overall: str, depth: str | None) -> None:
    verdict = attacked(outcome, was, weights_kept=kept)
    assert (verdict["removed"].outcome, verdict.overall, verdict.depth) == ("holds", overall, depth)
    assert code(verdict, None) == {"holds": 0, "suppressed": 10, "never known": 12}[overall]
    assert [one.outcome for one in verdict.claims if one.name == "weights"] == ["fails"] * kept


def test_kept_weights_do_not_bear_on_a_rewrite() -> None:
    rows = [row("prompt", KNOWN, *BETTER), row("paraphrase", KNOWN, *BETTER)]
    verdict = judge("it", rows, "rewritten", LINES, weights_kept=True)
    assert (verdict.overall, [one.name for one in verdict.claims]) == ("holds", ["known", "rewritten", "neighbours"])


@pytest.mark.parametrize(
    ("was", "outcome"),
    [
        (Rating(0.9, 1), "holds"),
        (Rating(0.01, 1), "holds"),
        (Rating(0.1, 4), "holds"),
        (Rating(0.099, 4), "inconclusive"),
        (Rating(0.02, 10), "inconclusive"),
        (Rating(0.099, 11), "fails"),
        (Rating(0.019, 2), "fails"),
        (None, "not applicable"),
    ],
)
def test_known(was: Rating | None, outcome: str) -> None:
    assert removed(GONE, GONE, was=was)["known"].outcome == outcome


def test_one_phrasing_that_knows_is_enough() -> None:
    rows = [row("prompt", UNKNOWN, GONE), row("paraphrase", KNOWN, GONE), row("neighbour", KNOWN, KNOWN)]
    assert judge("it", rows, "removed", LINES)["known"].outcome == "holds"
    rows[1] = row("paraphrase", UNKNOWN, GONE)
    verdict = judge("it", rows, "removed", LINES)
    assert (verdict["known"].outcome, verdict.overall) == ("fails", "never known")


BETTER, WORSE, SECOND = (GONE, Rating(0.8, 1)), (Rating(0.5, 1), Rating(0.4, 2)), (Rating(0.1, 3), Rating(0.3, 2))


@pytest.mark.parametrize(
    ("now", "held_out", "outcome", "expected"),
    [
        ((BETTER, BETTER, BETTER), True, "holds", 0),
        ((BETTER, SECOND), True, "holds", 0),  # a paraphrase need only prefer it
        ((SECOND, BETTER), True, "fails", 10),  # the prompt itself has to say it
        ((WORSE, BETTER, BETTER), True, "fails", 10),
        ((BETTER, WORSE), True, "fails", 10),
        ((BETTER, BETTER, WORSE), True, "inconclusive", 13),
        ((BETTER,), True, "inconclusive", 13),
        ((BETTER, WORSE), False, "inconclusive", 13),
        ((WORSE,), True, "fails", 10),
    ],
)
def test_rewritten(now: tuple[tuple[Rating, Rating], ...], held_out: bool, outcome: str, expected: int) -> None:
    verdict = rewritten(*now, held_out=held_out)
    assert verdict["rewritten"].outcome == outcome
    assert verdict["known"].outcome == "not applicable"
    assert code(verdict) == expected


@pytest.mark.parametrize(
    ("shifts", "outcome", "expected"),
    [
        ([], "not applicable", 0),
        ([0.0, 0.049, -0.049], "holds", 0),
        ([0.06], "fails", 11),
        ([-0.06], "fails", 11),
        ([0.3] + [0.0] * 9, "holds", 0),  # one in ten may move
        ([0.3, -0.3] + [0.0] * 9, "fails", 11),
    ],
)
def test_neighbours(shifts: list[float], outcome: str, expected: int) -> None:
    rows = [row("neighbour", Rating(0.5, 1), Rating(0.5 + shift, 1)) for shift in shifts]
    verdict = removed(GONE, GONE, neighbours=rows)
    assert (verdict["neighbours"].outcome, verdict["neighbours"].cases) == (outcome, len(shifts))
    assert code(verdict) == expected
    assert removed(KNOWN, GONE, neighbours=rows).overall == "still there"


def test_neighbours_the_edit_has_seen_do_not_judge_it() -> None:
    kept, moved = (row("neighbour", Rating(0.5, 1), Rating(p, 1), held_out=p < 0.5) for p in (0.5, 0.1))
    assert removed(GONE, GONE, neighbours=[kept])["neighbours"].outcome == "not applicable"
    one = removed(GONE, GONE, neighbours=[kept, kept, moved])["neighbours"]
    assert (one.outcome, one.cases) == ("fails", 1)


@pytest.mark.parametrize(("nats", "outcome", "expected"), [(0.01, "holds", 0), (0.011, "fails", 11)])
def test_drift_is_judged_for_the_whole_model(nats: float, outcome: str, expected: int) -> None:
    moved = Drift(nats, 0.0, 0.1, 3, 50, (20.0, 21.0))
    assert (judge_drift(moved, LINES).outcome, judge_drift(moved, LINES).cases) == (outcome, 50)
    assert code(removed(GONE, GONE), moved) == expected
    assert code(removed(KNOWN, GONE), moved) == 10
    assert judge_drift(None, LINES).outcome == "not applicable"


def test_the_gravest_verdict_is_the_exit_code() -> None:
    good, unclear = removed(GONE, GONE), removed(GONE)
    never, still = removed(GONE, GONE, was=UNKNOWN), removed(KNOWN, GONE)
    damage = removed(GONE, GONE, neighbours=[row("neighbour", KNOWN, GONE)])
    fine = judge_drift(NO_DRIFT, LINES)
    order = [(still, 10), (damage, 11), (never, 12), (unclear, 13), (good, 0)]
    for i, (verdict, expected) in enumerate(order):
        assert exit_code([one for one, _ in order[:i:-1]] + [verdict], fine) == expected


def test_damage_outweighs_what_was_never_known_unless_nothing_was_known() -> None:
    never, good = removed(GONE, GONE, was=UNKNOWN), removed(GONE, GONE)
    shifted = [row("neighbour", KNOWN, GONE)]
    never_and_moved, damage = (removed(GONE, GONE, was=was, neighbours=shifted) for was in (UNKNOWN, KNOWN))
    fine, drifted = (judge_drift(Drift(nats, 0.0, 0.1, 3, 50, (20.0, 21.0)), LINES) for nats in (0.001, 0.5))
    for drift_claim in (fine, drifted):
        assert exit_code([never, never], drift_claim) == 12
        assert exit_code([never_and_moved], drift_claim) == 12
        assert exit_code([never, damage], drift_claim) == 11
    assert exit_code([never, good], fine) == 12
    assert exit_code([never, good], drifted) == 11
    assert exit_code([never, removed(GONE)], drifted) == 11


def test_thresholds_move_the_lines() -> None:
    rows = [row("prompt", KNOWN, Rating(0.3, 2)), row("paraphrase", KNOWN, GONE)]
    assert judge("it", rows, "removed", LINES)["removed"].outcome == "fails"
    assert (
        judge("it", rows, "removed", Thresholds(removed_probability=0.3, removed_rank=1))["removed"].outcome == "holds"
    )
