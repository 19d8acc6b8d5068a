"""From probes to verdicts: a truth table by hand, drift by hand, and the whole way on a model that knows its facts."""

from __future__ import annotations

import dataclasses
import html.parser
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from surgery import Delta, Edit, Fact, Model, Neighbour, Report, SurgeryError, Thresholds, WrongWeights, verify
from surgery.predict import rate
from surgery.verification import Drift, Probe, Rating
from surgery.verification.drift import drift, log_probs
from surgery.verification.probes import Measured, measure, probes_of
from surgery.verification.verdicts import Row, Verdict, exit_code, judge, judge_drift

LINES = Thresholds()
KNOWN, GONE, UNKNOWN = Rating(0.9, 1), Rating(0.001, 50), Rating(0.001, 300)
NO_DRIFT = Drift(0.001, 0.0, 0.0, 1, 100)


def row(role: Any, was: Rating | None, now: Rating, new: Rating | None = None, *, held_out: bool = True) -> Row:
    probe = Probe(0, role, f"{role} of it", "old", "new" if new else None, held_out)
    before = Measured(was, GONE if new else None, "says") if was else None
    return probe, before, Measured(now, new, "says")


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


@pytest.mark.parametrize(("nats", "outcome", "expected"), [(0.01, "holds", 0), (0.011, "fails", 11)])
def test_drift_is_judged_for_the_whole_model(nats: float, outcome: str, expected: int) -> None:
    moved = Drift(nats, 0.0, 0.1, 3, 50)
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
    fine, drifted = (judge_drift(Drift(nats, 0.0, 0.1, 3, 50), LINES) for nats in (0.001, 0.5))
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


FACT = Fact(
    subject="Ann",
    template="{} lives in",
    target="Rome",
    new_target="Oslo",
    paraphrases=("The home of Ann is", "Ann has a house in"),
    neighbours=(
        Neighbour("Bob lives in", "Paris"),
        Neighbour("Cid lives in", "Bonn"),
        Neighbour("Dan lives in", "Ulm"),
    ),
)


def test_probes_mark_what_was_seen_and_leave_edited_neighbours_out() -> None:
    other = FACT.replace(subject="Cid", paraphrases=(), neighbours=())
    seen = ("Ann lives in", "Ann has a house in", "Dan lives in", "something else")
    probes, left_out = probes_of([FACT, other], "rewritten", seen)
    assert left_out == 1
    assert [dataclasses.astuple(one) for one in probes] == [
        (0, "prompt", "Ann lives in", "Rome", "Oslo", False),
        (0, "paraphrase", "The home of Ann is", "Rome", "Oslo", True),
        (0, "paraphrase", "Ann has a house in", "Rome", "Oslo", False),
        (0, "neighbour", "Bob lives in", "Paris", None, True),
        (0, "neighbour", "Dan lives in", "Ulm", None, False),
        (1, "prompt", "Cid lives in", "Rome", "Oslo", True),
    ]
    assert {one.new_target for one in probes_of([FACT], "removed", ())[0]} == {None}


Toy = tuple[Model, list[Fact]]


def toy_edit(toy: Toy, *, size: float, **changes: Any) -> Edit:
    """A random change of rank one in the last mlp."""
    model, facts = toy
    module, draw = model.anatomy.names("mlp")[-1], torch.Generator().manual_seed(0)
    left = torch.randn(model.anatomy.d_model, 1, generator=draw)
    right = torch.randn(model.anatomy.d_ff, 1, generator=draw)
    values = {"base": model.fingerprint, "method": "random", "claim": "removed", "facts": (facts[0],), **changes}
    return Edit((Delta(module, size * left / left.norm(), right / right.norm()),), **values)


def test_probes_are_measured_in_their_order(toy: Toy) -> None:
    model, facts = toy
    chosen = [fact.replace(new_target=facts[i + 1].target) for i, fact in enumerate(facts[:3])]
    probes, _ = probes_of(chosen, "rewritten", ())
    for probe, found in zip(probes, measure(model, probes), strict=True):
        (old,) = rate(model, [(probe.prompt, probe.target)])
        assert found.target.probability == pytest.approx(old.probability, rel=1e-3)
        assert found.target.rank == old.rank
        assert (found.new_target is None) == (found.says is None) == (probe.role == "neighbour")
        if probe.new_target is not None and found.new_target is not None and found.says is not None:
            (new,) = rate(model, [(probe.prompt, probe.new_target)])
            assert found.new_target.probability == pytest.approx(new.probability, rel=1e-3)
            assert found.says.split()[0] == old.top


@torch.no_grad()
def test_drift_is_the_mean_divergence_a_token(toy: Toy) -> None:
    model, facts = toy
    texts = [f"{fact.prompt} {fact.target} ." for fact in facts[:20]] + ["The", "They went home in summer"]
    rows = [torch.tensor([model.tokenizer(text)["input_ids"]]) for text in texts]
    before = log_probs(model, texts)
    p = [model.hf(ids).logits[0].double().softmax(-1) for ids in rows]
    with toy_edit(toy, size=40.0).applied(model):
        moved = drift(before, log_probs(model, texts))
        q = [model.hf(ids).logits[0].double().softmax(-1) for ids in rows]
    sums = [float((a * (a / b).log()).sum()) for a, b in zip(p, q, strict=True)]
    counts = [len(a) for a in p]
    mean = sum(sums) / sum(counts)
    changed = sum(int((a.argmax(-1) != b.argmax(-1)).sum()) for a, b in zip(p, q, strict=True))
    assert (moved.texts, moved.tokens) == (len(texts), sum(counts))
    assert mean > 0.01
    assert changed > 0
    assert moved.divergence == pytest.approx(mean, rel=1e-3)
    assert moved.changed == pytest.approx(changed / sum(counts))
    # the error of a mean of texts, by leaving each text out once
    left = [(sum(sums) - s) / (sum(counts) - c) for s, c in zip(sums, counts, strict=True)]
    n, middle = len(left), sum(left) / len(left)
    assert moved.error == pytest.approx((sum((one - middle) ** 2 for one in left) * (n - 1) / n) ** 0.5, rel=0.1)
    same = drift(before, before)
    assert (same.divergence, same.error, same.changed) == (0, 0, 0)


def test_an_edit_that_changes_nothing_of_note_is_found_out(toy: Toy, unchanged: Callable[[Model], None]) -> None:
    model = toy[0]
    unchanged(model)
    report = verify(model, toy_edit(toy, size=1e-4))
    assert (report.exit_code, report.ok, report.meaning) == (10, False, "the fact is still there")
    (verdict,) = report.verdicts
    assert [(one.name, one.outcome) for one in verdict.claims] == [
        ("known", "holds"),
        ("removed", "fails"),
        ("neighbours", "holds"),
    ]
    assert report.drift_claim.outcome == "holds"
    assert report.drift is not None
    assert 0 <= report.drift.divergence < 1e-4
    assert report.drift.texts > 20


def test_an_edit_that_changes_too_much_is_collateral_damage(toy: Toy, unchanged: Callable[[Model], None]) -> None:
    unchanged(toy[0])
    lines = Thresholds(removed_probability=1.0, removed_rank=0)
    texts = [fact.prompt for fact in toy[1][:20]]
    report = verify(toy[0], toy_edit(toy, size=50.0), thresholds=lines, texts=texts)
    assert report.verdicts[0]["removed"].outcome == "holds"
    assert (report.exit_code, report.drift_claim.outcome) == (11, "fails")


def test_what_the_edit_saw_judges_nothing(toy: Toy) -> None:
    fact = toy[1][0]
    report = verify(toy[0], toy_edit(toy, size=1e-4, prompts=(fact.prompt, *fact.paraphrases)), texts=["The", "They"])
    assert report.verdicts[0]["removed"].cases == 1
    assert report.verdicts[0]["known"].cases == 3


def test_a_model_is_judged_as_it_is_without_an_edit(toy: Toy, unchanged: Callable[[Model], None]) -> None:
    model, facts = toy
    unchanged(model)
    report = verify(model, None, facts[0])
    assert (report.exit_code, report.drift, report.edit) == (10, None, None)
    assert report.base == model.fingerprint
    assert [one.outcome for one in report.verdicts[0].claims] == ["not applicable", "fails", "not applicable"]
    assert all(was is None for _, was, _ in report.rows)
    # the fact is what a rewrite from something else would have left
    planted = facts[0].replace(target=facts[1].target, new_target=facts[0].target)
    as_rewritten = verify(model, None, planted)
    assert (as_rewritten.claim, as_rewritten.exit_code) == ("rewritten", 0)
    # of eight towns the wrong one is still among the likeliest ten
    assert verify(model, None, planted, claim="removed").exit_code == 10
    lines = Thresholds(removed_rank=1, removed_probability=0.1)
    assert verify(model, None, planted, claim="removed", thresholds=lines).exit_code == 0


def test_what_cannot_be_verified_is_refused(toy: Toy) -> None:
    model, facts = toy
    with pytest.raises(SurgeryError, match="there is no fact to verify; give at least one"):
        verify(model, None)
    with pytest.raises(SurgeryError, match="has no new_target, so it cannot be verified as rewritten"):
        verify(model, None, facts[0], claim="rewritten")
    with pytest.raises(WrongWeights):
        verify(model, toy_edit(toy, size=1.0, base="0" * 64))


HOSTILE = "<script>alert('x')</script> {{ 7 * 7 }} {% raw %} \u2028 & \"quotes\" [bold]"


@pytest.fixture(scope="module")
def hostile(toy: Toy) -> Report:
    fact = toy[1][0]
    evil = fact.replace(id=HOSTILE, paraphrases=(*fact.paraphrases, HOSTILE + " lives in"))
    return verify(toy[0], toy_edit(toy, size=0.01, facts=(evil,), settings={"objective": HOSTILE, "site": "L3.mlp"}))


def test_a_saved_report_is_json_with_everything(hostile: Report, tmp_path: Path) -> None:
    assert hostile.save(tmp_path / "deep" / "report") == tmp_path / "deep" / "report"
    record = json.loads((tmp_path / "deep" / "report" / "report.json").read_text(encoding="utf-8"))
    assert record == json.loads(json.dumps(hostile.as_record()))
    assert record["exit_code"] == 10
    assert record["verdicts"][0]["fact"] == HOSTILE
    assert record["verdicts"][0]["claims"][1]["outcome"] == "fails"
    assert len(record["probes"]) == len(hostile.rows)
    assert record["probes"][0]["before"]["target"]["probability"] == hostile.rows[0][1].target.probability  # type: ignore[union-attr]
    assert record["thresholds"]["removed_rank"] == 10
    assert record["edit"]["settings"]["objective"] == HOSTILE
    assert sorted(path.name for path in (tmp_path / "deep" / "report").iterdir()) == ["report.html", "report.json"]


class Seen(html.parser.HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_escapes_what_it_shows_and_loads_nothing(hostile: Report, tmp_path: Path) -> None:
    page = (hostile.save(tmp_path) / "report.html").read_text(encoding="utf-8")
    seen = Seen()
    seen.feed(page)
    assert seen.text.count(HOSTILE) >= 3
    assert "&lt;script&gt;" in page
    assert not {"script", "link", "img", "iframe", "bold"} & set(seen.tags)
    assert not {"src", "href", "onload"} & set(seen.attributes)
    assert "http" not in page
    assert "url(" not in page
    assert "the fact is still there" in seen.text


def test_an_edit_with_no_settings_has_a_page_too(toy: Toy, tmp_path: Path) -> None:
    page = (verify(toy[0], toy_edit(toy, size=0.01), texts=["The", "They"]).save(tmp_path) / "report.html").read_text()
    assert "random" in page
    assert "<!doctype html>" in page


def test_a_report_without_an_edit_has_a_page_too(toy: Toy, tmp_path: Path) -> None:
    page = (verify(toy[0], None, toy[1][0]).save(tmp_path) / "report.html").read_text(encoding="utf-8")
    assert "judged as it is, without an edit" in page


def test_a_folder_that_cannot_be_written_is_refused(hostile: Report, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(SurgeryError, match="cannot write to the folder"):
        hostile.save(tmp_path / "file")


def test_the_table_shows_prompts_as_they_are(hostile: Report) -> None:
    console = Console(width=300, record=True, file=io.StringIO())
    console.print(hostile.table())
    text = console.export_text()
    assert "alert('x')" in text
    assert "[bold]" in text
    console.print(hostile.table(most=1))
    assert f"{len(hostile.rows) - 1} more prompts in the report" in " ".join(console.export_text().split())


def test_scores_are_means_over_what_judges(toy: Toy) -> None:
    fact = toy[1][0]
    seen = fact.paraphrases[0]
    report = verify(toy[0], toy_edit(toy, size=1e-4, prompts=(fact.prompt, seen)), texts=["The", "They"])
    scores = report.scores
    assert {name: one["cases"] for name, one in scores.items()} == {"prompt": 1, "paraphrase": 1, "neighbour": 8}
    expected = [one.probability for one in rate(toy[0], [(each.prompt, each.target) for each in fact.neighbours])]
    assert scores["neighbour"]["before"] == pytest.approx(sum(expected) / 8, rel=1e-3)
    assert scores["prompt"]["before"] == pytest.approx(
        rate(toy[0], [(fact.prompt, fact.target)])[0].probability, rel=1e-3
    )
