"""What is measured beside the verdicts: which parts a profile has, that their numbers are right, and what is left."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from by_hand import Toy, toy_edit

from surgery import Certificate, Fact, Model, Report, SurgeryError, verify
from surgery.certificate_format import canonical
from surgery.numbers import Interval
from surgery.report_beside import classic, spoken, spread
from surgery.verification.beside import ABOUT
from surgery.verification.classic import consistency, fluency, score, told_on
from surgery.verification.comparison import compared
from surgery.verification.depth import removal_depth
from surgery.verification.effects import effects
from surgery.verification.generation import generation
from surgery.verification.leak import UNREAD
from surgery.verification.quantisation import QUANT_KINDS, changed_bins

TOYS = ("llama",)
REWRITES = ("classic", "consistency")
TEXTS = ["They went home in summer", "It was a long day"]


def judged(toy: Toy, facts: list[Fact], claim: str = "removed", size: float = 20.0, **how: object) -> Report:
    edit = toy_edit(toy, size=size, facts=tuple(facts), claim=claim)
    return verify(toy[0], edit, **{"texts": TEXTS, "attacks": (), "beside": True, **how})  # type: ignore[arg-type]


def rewritten(facts: list[Fact]) -> list[Fact]:
    return [
        one.replace(new_target=next(near.target for near in one.neighbours if near.target != one.target))
        for one in facts
    ]


def test_a_removal_has_the_parts_own_numbers(toy: Toy, unchanged: Callable[[Model], None]) -> None:
    model, facts = toy[0], toy[1][:1]
    unchanged(model)
    edit = toy_edit(toy, size=20.0, facts=tuple(facts))
    report = verify(model, edit, texts=TEXTS, attacks=(), profile="standard", beside=True)
    found = report.beside
    alone = effects(model, edit, facts, drift=report.drift)
    assert found.effects is not None
    assert [(one.axis, one.outcome) for one in found.effects.effects] == [(o.axis, o.outcome) for o in alone.effects]
    for one, other in zip(found.effects.effects, alone.effects, strict=True):
        assert one.change.mean == pytest.approx(other.change.mean, rel=1e-3, abs=1e-6)
    assert found.generation == generation(model, edit, facts)
    assert found.depth[0].score == pytest.approx(removal_depth(model, edit, facts[0]).score, rel=1e-4)
    assert [(one.kind, one.changed, one.kept) for one in found.bins] == [
        (kind, one.changed, one.kept) for kind in QUANT_KINDS for one in [changed_bins(model, edit, kind)]
    ]
    assert found.comparison is not None
    assert [one.name for one in found.comparison.rows] == ["no edit", "in the context", "edit"]
    assert (found.classic, found.fluency) == ({}, {})
    assert {"side effects", "free answers", "depth", "what quantising leaves"} <= set(report.costs.seconds)


def test_a_rewrite_has_scores_before_and_after_and_no_depth(toy: Toy, unchanged: Callable[[Model], None]) -> None:
    model, facts = toy[0], rewritten(toy[1][:2])
    unchanged(model)
    edit = toy_edit(toy, size=20.0, facts=tuple(facts), claim="rewritten")
    found = verify(model, edit, texts=TEXTS, attacks=(), profile="full", beside=True).beside
    prompts = [text for fact in facts for text in (fact.prompt, *fact.paraphrases)]
    before, texts = score(model, facts), told_on(model, prompts)
    with edit.applied(model):
        after, texts_after = score(model, facts), told_on(model, prompts)
    assert (before.magnitudes != after.magnitudes).any()
    assert found.classic["before"].successes.tolist() == before.successes.tolist()
    assert found.classic["after"].magnitudes == pytest.approx(after.magnitudes, rel=1e-3, abs=1e-6, nan_ok=True)
    assert found.fluency == {"before": fluency(texts), "after": fluency(texts_after)}
    assert found.depth == {}

    def by_hand(told: list[str]) -> list[float]:
        """Of facts with some, by what the base model says of neighbours with the new answer."""
        each = len(prompts) // 2
        near = [[one.prompt for one in fact.neighbours if one.target == fact.new_target] for fact in facts]
        near = [[text for text in own if not any(one.subject in text for one in facts)] for own in near]
        return [consistency(told[i * each : (i + 1) * each], told_on(model, own)) for i, own in enumerate(near) if own]

    for when, told in (("before", texts), ("after", texts_after)):
        known = by_hand(told)
        assert found.consistency[when].mean == pytest.approx(np.mean(known), abs=1e-6)
        assert (found.consistency[when].cases, len(known) > 0, min(known) > 0) == (len(known), True, True)
    assert {one.name for one in classic(found)} >= {"fluency", "consistency"}
    assert set(ABOUT.values()) & set(found.left_out) == {ABOUT["tasks"]}


def test_facts_without_a_neighbour_that_has_the_new_answer_have_no_consistency(toy: Toy) -> None:
    first, second = rewritten(toy[1][:2])
    alone = second.replace(neighbours=())
    made = judged(toy, [first, alone], "rewritten", profile="full")
    assert made.beside.consistency["after"].cases == 1
    assert f"{ABOUT['consistency']}, of 1 of 2 facts" in made.not_tested
    none = judged(toy, [alone], "rewritten", profile="full")
    assert (none.beside.consistency, ABOUT["consistency"] in none.not_tested) == ({}, True)


@pytest.mark.parametrize(
    ("profile", "left"),
    [("quick", set(ABOUT) - {"effects", *REWRITES}), ("standard", {"fluency", "tasks"}), ("full", {"tasks"})],
)
def test_what_a_profile_leaves_out_is_said_to_be_untested(toy: Toy, profile: str, left: set[str]) -> None:
    report = judged(toy, toy[1][:1], profile=profile)
    assert set(ABOUT.values()) & set(report.not_tested) == {ABOUT[name] for name in left}
    measured = {name for name in ABOUT if getattr(report.beside, name)}
    assert measured == set(ABOUT) - left - {*REWRITES}
    assert all(one in report.not_tested for one in report.beside.left_out)
    quick = [one for one in report.not_tested if one.endswith(": not in the quick profile")]
    assert len(quick) == (profile == "quick")
    # the toy's tokenizer has no chat
    chat = "free answers in the form chat: the tokenizer has no chat template"
    assert (chat in report.not_tested) == (profile != "quick")


def test_what_cannot_be_measured_is_left_out_with_its_reason(toy: Toy) -> None:
    report = judged(toy, toy[1][:1], size=0.0, profile="full")
    assert (report.beside.bins, report.leak) == ((), None)
    reasons = {f"{ABOUT['bins']}: the edit changes no weight", f"{UNREAD}: every change of it is zero"}
    assert reasons <= set(report.not_tested)


@pytest.mark.parametrize("part", ["depth.removal_depth", "beside.changed_bins"])
def test_any_other_error_is_not_taken_for_a_reason(toy: Toy, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise SurgeryError("something else")

    monkeypatch.setattr(f"surgery.verification.{part}", fails)
    with pytest.raises(SurgeryError, match="something else"):
        judged(toy, toy[1][:1], profile="standard")


def test_it_can_be_left_off_and_is_without_attacks(toy: Toy) -> None:
    edit = toy_edit(toy, size=1.0)
    bare = verify(toy[0], edit, texts=TEXTS, attacks=(), profile="full")
    off = verify(toy[0], edit, texts=TEXTS, beside=False)
    for one in (bare, off):
        assert one.beside.left_out == tuple(ABOUT[name] for name in ABOUT if name not in REWRITES)
        assert one.beside == dataclasses.replace(off.beside)
        assert "side effects" not in one.costs.seconds
    assert verify(toy[0], edit, texts=TEXTS).beside.effects is not None


def test_without_an_edit_there_is_no_change_to_look_at(toy: Toy, unchanged: Callable[[Model], None]) -> None:
    model, facts = toy[0], rewritten(toy[1][:1])
    unchanged(model)
    report = verify(model, None, facts, attacks=(), profile="full", beside=True)
    found = report.beside
    assert (found.effects, found.depth, found.bins) == (None, {}, ())
    assert set(found.classic) == set(found.fluency) == set(found.consistency) == {"after"}
    assert found.generation is not None
    assert {one.before for one in found.generation.spoken} == {None}
    assert found.comparison is not None
    assert found.comparison.as_record() == compared(facts, report.rows, "rewritten", _base(model)).as_record()
    assert not set(ABOUT.values()) & set(report.not_tested)


def _base(model: Model):  # type: ignore[no-untyped-def]
    from surgery.verification import Baseline

    return Baseline(model)


def test_only_the_first_facts_are_gone_into_deeply(toy: Toy) -> None:
    facts = [toy[1][0].replace(subject="", template=toy[1][0].prompt), *toy[1][1:5]]
    report = judged(toy, facts, profile="standard")
    assert sorted(report.beside.depth) == [1, 2]
    assert [one.fact for one in report.beside.depth.values()] == [facts[1].label, facts[2].label]
    assert any(one.startswith("how deep the removal of 3 of 5 facts goes: only") for one in report.not_tested)
    none = judged(toy, facts[:1], profile="standard")
    assert none.beside.depth == {}
    assert f"{ABOUT['depth']}: there is no subject that an invented one could replace" in none.not_tested


def test_the_record_holds_all_of_it(toy: Toy) -> None:
    report = judged(toy, toy[1][:1], profile="full")
    record = json.loads(json.dumps(report.as_record(), allow_nan=False))["beside"]
    found = report.beside
    assert found.effects is not None
    assert record["effects"]["counted"] == found.effects.counted
    assert len(record["effects"]["effects"]) == len(found.effects.effects)
    assert record["generation"]["told"] == found.generation.told  # type: ignore[union-attr]
    assert record["comparison"]["rows"][2]["name"] == "edit"
    assert record["depth"][0]["score"] == pytest.approx(found.depth[0].score)
    assert [one["share"] for one in record["bins"]] == [one.share for one in found.bins]
    assert record["fluency"]["after"]["mean"] == found.fluency["after"].mean
    assert record["left_out"] == list(found.left_out)


def test_a_certificate_has_its_numbers_and_no_words(toy: Toy) -> None:
    facts = toy[1][:2]
    report = judged(toy, facts, profile="standard")
    edit = toy_edit(toy, size=20.0, facts=tuple(facts))
    content = Certificate.of(report, toy[0], edit).content
    assert report.beside.effects is not None
    assert {one["axis"]: (one["outcome"], one["mean"]) for one in content["beside"]["effects"]} == {
        one.axis: (one.outcome, float(f"{one.change.mean:.6g}")) for one in report.beside.effects.effects
    }
    assert [one["kept"] for one in content["beside"]["bins"]] == [
        float(f"{one.kept:.6g}") for one in report.beside.bins
    ]
    assert sorted(one["erased"] for one in content["facts"]) == sorted(
        float(f"{one.score:.6g}") for one in report.beside.depth.values()
    )
    text = canonical(content).decode()
    for fact in facts:
        for words in (fact.subject, fact.target, fact.prompt, *fact.paraphrases):
            assert words not in text


def test_maps_of_where_stand_beside_the_depth(toy: Toy, tmp_path: Path) -> None:
    figure, _ = plt.subplots()
    for profile, place in (("standard", "How deep"), ("quick", "Figures")):
        folder = judged(toy, toy[1][:1], profile=profile).save(tmp_path / profile, where={"the trace": figure})
        page = (folder / "report.html").read_text(encoding="utf-8")
        assert page.count("the trace") == 2  # above it, and in words
        headings = page[: page.index("the trace")].split("<h2>")
        assert headings[-1].startswith(place)


def test_free_answers_are_counted_by_form(toy: Toy) -> None:
    made = judged(toy, toy[1][:2], profile="standard").beside.generation
    assert made is not None
    rows = spoken(made)
    assert [(one["form"], one["of"].split()[1]) for one in rows] == [
        ("plain", "facts"), ("plain", "neighbours"), ("question", "facts"), ("question", "neighbours"),
    ]  # fmt: skip
    own = [one for one in made.spoken if (one.form, one.role) == ("plain", "prompt")]
    was, now = (sum(getattr(one, f"said_{when}") == "old" for one in own) for when in ("before", "after"))
    assert rows[0]["old"] == f"{was} → {now}"
    assert {one["new"] for one in rows} == {"–"}


def test_intervals_in_words() -> None:
    nan = float("nan")
    assert spread(Interval(0.5, 0.25, 0.75, 4), "%.2f") == "0.50 (0.25 to 0.75)"
    assert spread(Interval(0.5, nan, nan, 1), "%.2f") == "0.50"
    assert spread(Interval(nan, nan, nan, 0), "%.2f") == "–"
