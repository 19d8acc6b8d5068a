"""The command line: what it writes and prints, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command_line import Folder, Surgery, printed

from edits import Statistics
from surgery import Edit, Fact, Model, write_facts
from surgery.verification.attack import ASPECTS
from surgery.verification.attacks import ATTACKS


def test_locate_writes_figures_and_numbers(
    surgery: Surgery, given: Folder, facts: list[Fact], capsys: pytest.CaptureFixture[str]
) -> None:
    code = surgery(
        "locate", "--model", given["model"], "--facts", given["known.jsonl"], "--samples", "2", "--window", "1",
        "--out", "traces", "--json",
    )  # fmt: skip
    assert code == 0
    record, err = printed(capsys)
    assert not err
    assert sorted(path.name for path in Path("traces").iterdir()) == [
        "attention.png", "mlp.png", "state.png", "traces.json",
    ]  # fmt: skip
    written = json.loads(Path("traces/traces.json").read_text())
    assert written == record["traces"]
    assert [one["kind"] for one in written] == ["state", "mlp", "attention"]
    for one in written:
        assert Fact.from_record(one["fact"]) == facts[27]
        assert one["samples"] == 2
        assert Path(one["figure"]).stat().st_size > 1000


def test_locate_takes_a_fact_inline_and_numbers_several(
    surgery: Surgery, given: Folder, facts: list[Fact], capsys: pytest.CaptureFixture[str]
) -> None:
    fact = facts[0]
    inline = ("--subject", fact.subject, "--template", fact.template, "--target", fact.target)
    common = ("--model", given["model"], "--kind", "mlp", "--samples", "1", "--format", "svg")
    assert surgery("locate", *common, *inline, "--out", "one") == 0
    assert sorted(path.name for path in Path("one").iterdir()) == ["mlp.svg", "traces.json"]
    assert "clean" in capsys.readouterr().out
    write_facts("three.jsonl", facts[:3])
    assert surgery("locate", *common, "--facts", "three.jsonl", "--limit", "2", "--out", "two", "--quiet") == 0
    assert sorted(path.name for path in Path("two").iterdir()) == ["001-mlp.svg", "002-mlp.svg", "traces.json"]
    assert capsys.readouterr() == ("", "")


def test_edit_writes_an_edit_that_fits_the_model(
    surgery: Surgery, given: Folder, model: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Path(given["model"], "model.safetensors").read_bytes()
    arguments = ("edit", "--model", given["model"], "--facts", given["rewrite.jsonl"])
    assert surgery(*arguments, "--corpus", given["corpus.txt"], "--out", "new/edit", "--json") == 0
    record, err = printed(capsys)
    assert not err
    edit = Edit.load("new/edit")
    assert (edit.claim, edit.method, edit.base) == ("rewritten", "rank-one", model.fingerprint)
    # a norm's last digit depends on where its factors lie in memory
    weights = record["weights"][edit.deltas[0].module]
    weights["norm"] = pytest.approx(weights["norm"], rel=1e-12)
    assert record == {"edit": "new/edit", **edit.summary()}
    assert Path(given["model"], "model.safetensors").read_bytes() == before
    # the statistics are kept, so that no text is needed the second time, and the same seed gives the same edit
    assert surgery(*arguments, "--out", "again", "--quiet") == 0
    assert capsys.readouterr() == ("", "")
    cosine = torch.cosine_similarity(
        edit.deltas[0].dense().flatten(), Edit.load("again").deltas[0].dense().flatten(), 0
    )
    assert cosine > 0.999
    assert surgery(*arguments, "--seed", "2", "--layer", "0", "--out", "third") == 0
    out = capsys.readouterr().out
    assert "rank" in out
    assert "third" in out


def test_remove_writes_edit_and_report_and_exits_as_it_says(
    surgery: Surgery, given: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    code = surgery(
        "remove", "--model", given["model"], "--facts", given["rewrite.jsonl"], "--corpus", given["corpus.txt"],
        "--out", "edit", "--report", "report", "--json",
    )  # fmt: skip
    record, err = printed(capsys)
    assert not err
    assert Edit.load("edit").claim == record["claim"] == "removed"
    written = json.loads(Path("report/report.json").read_text())
    assert code == written["exit_code"] == record["exit_code"]
    assert code in (0, 10, 11)
    assert "<html" in Path("report/report.html").read_text()


def test_removing_what_was_never_known_exits_with_12_and_says_so(
    surgery: Surgery, given: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ("--model", given["model"], "--facts", given["never.jsonl"], "--corpus", given["corpus.txt"])
    assert surgery("remove", *common, "--out", "edit", "--report", "report", "--objective", "suppress") == 12
    out = capsys.readouterr().out
    assert "the model never knew it" in out
    assert "neighbour" in out
    assert "[dim]" not in out  # styles are shown, not spelt out


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--facts", "known.jsonl"), 10),
        (("--facts", "known.jsonl", "--claim", "removed"), 10),
        (("--facts", "already.jsonl"), 0),
        (("--facts", "too long.jsonl", "--claim", "removed"), 13),
        (("--facts", "rewrite.jsonl"), 10),
        (("--edit", "crude.edit"), 10),  # its layers still tell
        (("--edit", "crude.edit", "--attacks", "paraphrases"), 11),
        (("--edit", "crude and never known.edit"), 12),
    ],
    ids=str,
)
def test_verify_exits_with_its_finding(
    surgery: Surgery, given: Folder, arguments: tuple[str, ...], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    named = [given[one] if (given.path / one).exists() else one for one in arguments]
    assert surgery("verify", "--model", given["model"], *named, "--report", "report", "--json") == code
    record, err = printed(capsys)
    assert not err
    assert record["exit_code"] == code
    assert json.loads(Path("report/report.json").read_text()) == record


def test_a_map_stands_beside_a_removal_s_depth(
    surgery: Surgery, given: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ("verify", "--model", given["model"], "--report", "report", "--trace", "--quiet")
    assert surgery(*common, "--edit", given["crude.edit"], "--profile", "standard", "--attacks", "paraphrases") == 11
    page = Path("report/report.html").read_text()
    deep, where = page.index("How deep"), page.index("Where the answer of")
    assert "<h2" not in page[deep + 10 : where]
    assert surgery(*common, "--facts", given["too long.jsonl"], "--claim", "removed") == 13
    assert "surgery: --trace: " in capsys.readouterr().err
    assert "Where the answer of" not in Path("report/report.html").read_text()


def test_verify_draws_by_the_seed(surgery: Surgery, given: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    common = ("verify", "--model", given["model"], "--edit", given["crude.edit"], "--report", "report", "--json")
    found = []
    for seed in ((), ("--seed", "0"), ("--seed", "7")):
        assert surgery(*common, "--attacks", "stray spaces", *seed) in (10, 11)
        record = printed(capsys)[0]
        found.append((record["seed"], record["battery"]["findings"]))
    assert [seed for seed, _ in found] == [0, 0, 7]
    assert found[0] == found[1]
    assert found[0][1] != found[2][1]
    assert "seed 7" in Path("report/report.html").read_text()
    assert surgery(*common, "--seed", "-1") == 2
    assert "Invalid value for '--seed'" in capsys.readouterr().err


def test_the_full_profile_tries_everything_on_a_fact_with_controls(
    surgery: Surgery, given: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ("verify", "--model", given["model"], "--edit", given["crude.edit"], "--report", "report", "--json")
    assert surgery(*common, "--profile", "full", "--junit", "report/junit.xml") == 10
    record, err = printed(capsys)
    assert not err
    assert (record["profile"], record["battery"]["controls"]) == ("full", [20])
    assert [one["attack"] for one in record["battery"]["findings"]] == list(ATTACKS)
    tried = [one for one in record["battery"]["findings"] if one["outcome"] != "not applicable"]
    assert all(len(one["before"]["controls"]) == len(one["after"]["controls"]) == 20 for one in tried)
    (verdict,) = record["verdicts"]
    assert {claim["name"] for claim in verdict["claims"]} == {"known", "removed", "neighbours", *ASPECTS}
    assert {"succeeds", "resisted"} <= {one["outcome"] for one in tried}
    assert all(record["beside"][part] for part in ("effects", "generation", "comparison", "depth", "bins", "fluency"))
    assert len(record["leak"]["readings"]) == 1
    page = Path("report/report.html").read_text(encoding="utf-8")
    assert all(name in page for name in ATTACKS)


def test_stats_writes_statistics_that_later_edits_find(
    surgery: Surgery, given: Folder, model: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ("--model", given["model"])
    arguments = ("stats", *common, "--corpus", given["corpus.txt"], "--rank", "8", "--out", "statistics")
    assert surgery(*arguments, "--layers", "0-1,3", "--json") == 0
    record, err = printed(capsys)
    assert not err
    assert record["layers"] == [0, 1, 3]
    found = Statistics.load("statistics")
    assert list(found.layers) == [0, 1, 3]
    assert found.fingerprints == (model.fingerprint,)
    assert found.tokens == record["tokens"] > 1000
    edited = surgery("edit", *common, "--facts", given["rewrite.jsonl"], "--layer", "0", "--out", "edit", "--quiet")
    assert edited == 0


def test_help_is_given_without_a_command(surgery: Surgery, capsys: pytest.CaptureFixture[str]) -> None:
    assert surgery("--help") == 0
    out = capsys.readouterr().out
    for command in ("demo", "locate", "edit", "remove", "verify", "stats"):
        assert command in out
