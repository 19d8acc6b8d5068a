"""What invented subjects say of a fact: an answer no likelier than of them is a guess, before an edit and after."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import pytest
from probed import GONE, KNOWN, LINES, UNKNOWN, row

from surgery.verification import Rating
from surgery.verification.attack import Lift
from surgery.verification.verdicts import exit_code, in_doubt, judge, judge_drift


@pytest.mark.parametrize(
    ("now", "lift", "outcome", "expected"),
    [
        (Rating(0.03, 4), 0.02, "inconclusive", 13),  # a guess: so many have it of anybody
        (Rating(0.03, 4), 0.3, "fails", 10),
        (GONE, 0.02, "holds", 0),
        (GONE, 0.3, "holds", 0),
    ],
)
def test_a_checkpoint_that_only_guesses_is_not_convicted(now: Rating, lift: float, outcome: str, expected: int) -> None:
    told = Lift(lift, 0.1, (0.05,) * 20, "prompt", 0.3, 0.0)
    rows = [row("prompt", None, now), row("paraphrase", None, GONE)]
    heard: list[str] = []
    verdict = judge("it", rows, "removed", LINES, (), lambda texts, _: heard.extend(texts) or told)
    assert heard == ["prompt of it"] * (now is not GONE)
    assert verdict["removed"].outcome == outcome
    assert exit_code([verdict], judge_drift(None, LINES)) == expected
    if outcome == "inconclusive":
        assert "no likelier than of subjects nobody knows: lift +0.020, line +0.100" in verdict["removed"].evidence


def test_a_wording_that_no_control_can_have_excuses_nothing() -> None:
    rows = [row("prompt", None, GONE), row("paraphrase", None, Rating(0.03, 4))]
    assert judge("it", rows, "removed", LINES, (), lambda *_: None)["removed"].outcome == "fails"


@pytest.mark.parametrize(
    ("was", "stands_out", "outcome"),
    [
        (Rating(0.1, 1), False, "holds"),  # it does say it, whatever it says of others
        (Rating(0.099, 1), False, "fails"),
        (Rating(0.099, 1), True, "holds"),
        (Rating(0.9, 2), False, "fails"),
        (Rating(0.02, 10), False, "fails"),
        (Rating(0.02, 10), True, "holds"),
        (Rating(0.019, 2), True, "fails"),
        (Rating(0.02, 10), None, "inconclusive"),  # no invented subject can be asked
    ],
)
def test_what_is_half_known_is_told_by_invented_subjects(was: Rating, stands_out: bool | None, outcome: str) -> None:
    asked: list[object] = []

    def merely(texts: Collection[str] | None, now: Mapping[str, float] | None) -> Lift | None:
        if now is not None:
            return None
        asked.append(texts)
        lift = Lift(0.2 if stands_out else 0.0, 0.1, (0.05,) * 20, "prompt", 0.2, 0.0)
        return None if stands_out is None else lift

    rows = [row("prompt", was, GONE), row("paraphrase", UNKNOWN, KNOWN)]
    verdict = judge("it", rows, "removed", LINES, asked=merely)
    assert verdict["known"].outcome == outcome
    assert set(asked) <= {None}  # all wordings
    assert verdict["removed"].outcome == "fails"
    assert (verdict.overall == "never known") == (outcome == "fails")
    told = {True: "+0.200, line +0.100", False: "+0.000, line +0.100", None: ""}[stands_out]
    assert (told in verdict["known"].evidence) or not asked


@pytest.mark.parametrize(
    ("now", "stands_out", "outcome"),
    [
        (Rating(0.2, 2), False, "holds"),
        (Rating(0.001, 10), False, "holds"),
        (Rating(0.2, 2), True, "fails"),
        (Rating(0.2, 1), False, "inconclusive"),  # it is a guess, but it is said
        (Rating(0.2, 1), True, "fails"),
        (Rating(0.2, 2), None, "fails"),  # no invented subject can be asked
    ],
)
def test_what_is_left_is_told_from_a_guess(now: Rating, stands_out: bool | None, outcome: str) -> None:
    def merely(texts: Collection[str] | None, scores: Mapping[str, float] | None) -> Lift | None:
        assert texts == ["paraphrase of it"]
        assert scores in (None, {"paraphrase of it": now.probability})
        lift = Lift(0.2 if stands_out or scores is None else 0.0, 0.1, (0.05,) * 20, "paraphrase 1", 0.2, 0.0)
        return None if stands_out is None else lift

    rows = [row("prompt", KNOWN, GONE), row("paraphrase", KNOWN, now)]
    verdict = judge("it", rows, "removed", LINES, asked=merely)
    assert verdict["removed"].outcome == outcome
    assert ("no likelier than of subjects nobody knows" in verdict["removed"].evidence) == (stands_out is False)
    alone = judge("it", [row("paraphrase", KNOWN, now)], "removed", LINES, asked=merely)["removed"]
    assert alone.outcome == ("inconclusive" if outcome == "holds" else outcome)


@pytest.mark.parametrize("now", [Rating(0.2, 2), Rating(0.2, 1)])
def test_who_could_not_tell_it_from_a_guess_before_excuses_nothing(now: Rating) -> None:
    """Of an answer that everybody is given, controls tell neither that it was known nor that it is gone."""
    rows = [row("prompt", KNOWN, GONE), row("paraphrase", KNOWN, now)]
    nothing = Lift(0.0, 0.1, (0.05,) * 20, "paraphrase 1", 0.2, 0.0)
    verdict = judge("it", rows, "removed", LINES, asked=lambda *_: nothing)
    assert (verdict["known"].outcome, verdict["removed"].outcome, verdict.overall) == ("holds", "fails", "still there")


@pytest.mark.parametrize(
    ("was", "now", "doubtful"),
    [
        (KNOWN, GONE, False),
        (KNOWN, Rating(0.001, 10), True),
        (UNKNOWN, GONE, False),
        (Rating(0.05, 3), GONE, True),
        (None, GONE, False),
        (None, KNOWN, True),
    ],
)
def test_others_are_asked_only_where_that_decides(was: Rating | None, now: Rating, doubtful: bool) -> None:
    rows = [row("prompt", was, GONE), row("paraphrase", was, now), row("neighbour", KNOWN, KNOWN)]
    assert in_doubt(rows, LINES) == ({0} if doubtful else set())
    heard: list[object] = []
    judge("it", rows, "removed", LINES, asked=lambda *given: heard.append(given))
    assert bool(heard) == doubtful
