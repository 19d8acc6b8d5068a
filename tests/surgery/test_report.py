"""Reports: their record, page, table and scores, also of facts with hostile text."""

from __future__ import annotations

import dataclasses
import html.parser
import io
import json
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from by_hand import Toy, toy_edit
from rich.console import Console

from surgery import Report, SurgeryError, verify
from surgery.predict import rate
from surgery.report_page import in_words
from surgery.verification import Rating
from surgery.verification.attack import Finding, Lift
from surgery.verification.verdicts import DEPTH, Claim, Verdict, judge

TOYS = ("llama",)
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
        self.loaded: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]
        self.loaded += [str(value) for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_escapes_what_it_shows_and_loads_nothing(hostile: Report, tmp_path: Path) -> None:
    page = (hostile.save(tmp_path) / "report.html").read_text(encoding="utf-8")
    seen = Seen()
    seen.feed(page)
    assert seen.text.count(HOSTILE) >= 3
    assert "&lt;script&gt;" in page
    assert not {"script", "link", "iframe", "bold"} & set(seen.tags)
    assert not {"href", "onload"} & set(seen.attributes)
    assert seen.loaded
    assert all(one.startswith("data:image/") for one in seen.loaded)
    assert seen.tags.count("img") == len(seen.loaded) == seen.attributes.count("alt")
    assert "http" not in page
    assert "url(" not in page
    assert "the fact is still there" in seen.text


def test_what_only_attacks_bring_up_is_called_suppressed_everywhere(toy: Toy) -> None:
    report = verify(toy[0], toy_edit(toy, size=1e-4), attacks=())
    told = Lift(0.3, 0.1, (0.05,) * 20, "reversed", 0.3, 0.0)
    rows = [(probe, was, dataclasses.replace(now, target=Rating(1e-4, 99))) for probe, was, now in report.rows]
    verdict = judge("it", rows, "removed", report.thresholds, [Finding(0, "reversed", "extraction", "p", told, told)])
    assert (verdict["removed"].outcome, verdict.overall, verdict.depth) == ("holds", "suppressed", "suppressed")
    one = dataclasses.replace(report, verdicts=(verdict,))
    assert (one.exit_code, one.meaning, in_words(one)) == (10, "suppressed, not removed", [("suppressed", 1)])
    both = dataclasses.replace(report, verdicts=(verdict, *report.verdicts))
    assert both.meaning == "the fact is still there"


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


def test_the_page_is_proof_against_characters_that_are_not_seen_and_endless_words(toy: Toy, tmp_path: Path) -> None:
    fact = toy[1][0]
    evil = fact.replace(id="a\x00b\x1b[31m\u202ec\u2066d\x85e" + "W" * 10_000)
    page = (verify(toy[0], toy_edit(toy, size=0.01, facts=(evil,))).save(tmp_path) / "report.html").read_bytes()
    text = page.decode()
    assert "a[0000]b[001B][31m[202E]c[2066]d[0085]eW" in text
    assert not set("\x00\x1b\u202e\u2066\x85") & set(text)
    assert "(10,014 characters, whole in report.json)" in text
    assert "W" * 2001 not in text
    assert "W" * 10_000 in (tmp_path / "report.json").read_text(encoding="utf-8")


def test_long_tables_are_folded_and_words_counted(toy: Toy, tmp_path: Path) -> None:
    report = verify(toy[0], toy_edit(toy, size=1e-3, facts=tuple(toy[1][:9])), texts=["The", "They"], attacks=())
    claims = 1 + sum(len(one.claims) for one in report.verdicts)
    assert claims < 40 < len(report.rows)
    page = (report.save(tmp_path) / "report.html").read_text(encoding="utf-8")
    assert page.count("<details>") == 1
    assert f"{len(report.rows) - 40} more prompts" in page
    assert "9 facts: <b>still there</b>" in page
    assert all(probe.prompt in page for probe, _, _ in report.rows)
    assert "Attacks" not in page


def test_figures_are_taken_along_and_stay_open(hostile: Report, tmp_path: Path) -> None:
    ax = plt.subplots()[1]
    figure, _ = plt.subplots()
    page = (hostile.save(tmp_path, {"where": ax, "<i>how": figure}) / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 2
    assert page.count("data:image/svg+xml;base64,") == 2  # attacks and side effects
    assert 'alt="&lt;i&gt;how"' in page
    assert plt.fignum_exists(figure.number)
    assert len(plt.get_fignums()) == 2  # its own are closed
    ax.remove()
    with pytest.raises(SurgeryError, match="'where' is no figure to put into a report"):
        hostile.save(tmp_path, {"where": ax})


def test_facts_are_counted_by_what_became_of_them(hostile: Report) -> None:
    (one,) = hostile.verdicts
    good = Claim("removed", "holds", "gone", 3)
    withstood = [Claim(name, "holds", "withstood", 1) for name in DEPTH]
    deep = Verdict("deep", (good, *withstood), "holds")
    verdicts = (Verdict("plain", (good,), "holds"), deep, one, Verdict("known", (good,), "never known"), deep)
    assert in_words(dataclasses.replace(hostile, verdicts=verdicts)) == [
        ("still there", 1),
        ("never known", 1),
        ("gone, not tested how deep", 1),
        ("removed under this battery", 2),
    ]
    gone = dataclasses.replace(hostile, exit_code=0, verdicts=(Verdict("plain", (good, *withstood[:2]), "holds"), deep))
    assert gone.meaning == "every claim holds; not tested how deep it goes: quantisation, relearning"
    assert dataclasses.replace(gone, verdicts=(deep,)).meaning == "every claim holds"
    rewritten = dataclasses.replace(gone, verdicts=(Verdict("plain", (good,), "holds"),), claim="rewritten")
    assert rewritten.meaning == "every claim holds"
    assert in_words(rewritten) == [("every claim holds", 1)]


def test_a_page_says_where_the_edit_is(toy: Toy, tmp_path: Path) -> None:
    edit = toy_edit(toy, size=0.01, settings={"objective": "neutral", "sites": ["L1.mlp", "L2.mlp"]})
    report = verify(toy[0], edit, texts=["The", "They"], attacks=())
    page = (report.save(tmp_path) / "report.html").read_text(encoding="utf-8")
    assert "random, objective neutral at L1.mlp, L2.mlp" in page
    assert "attacks: none" in page
