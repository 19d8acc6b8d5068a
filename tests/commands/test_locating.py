"""Commands that locate: figures and numbers on disk, averages that go on, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import Folder, Surgery, printed


def options(given: Folder) -> list[str]:
    return ["--model", given["model"], "--quiet"]


@pytest.mark.parametrize("view", ["lens", "layers", "heads", "knockout", "neurons", "screen"])
def test_show_draws_a_figure_and_its_numbers(view: str, given: Folder, surgery: Surgery) -> None:
    assert surgery("show", view, *options(given), "--facts", given["known.jsonl"], "--out", "out/view.png") == 0
    assert Path("out/view.png").stat().st_size > 5000
    assert json.loads(Path("out/view.json").read_text())["model"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("show", "xray", "--out", "x.png"), "'xray' to show; choose lens"),
        (("show", "lens", "--out", "x.txt"), "end it in .png, .pdf, .svg"),
        (("locate", "--out", "out", "--corruption", "fog"), "no corruption 'fog'; write gaussian"),
        (("locate", "--out", "out", "--corruption", "gaussian:x"), "no corruption 'gaussian:x'"),
        (("locate", "--out", "out", "--metric", "vibes"), "no metric 'vibes'; choose one of probability"),
        (("locate", "--out", "out", "--direction", "up"), "no direction 'up'; choose one of restore, noise"),
        (("locate", "--out", "out", "--severed", "mlp"), "kind 'state' alone"),
        (("locate", "--out", "out", "--average", "--limit", "0"), "limit of 0 facts"),
        (("locate", "--out", "out", "--metric", "logit-difference"), "needs another answer"),
    ],
    ids=lambda one: " ".join(one) if isinstance(one, tuple) else "",
)
def test_a_wrong_value_is_one_line(
    arguments: tuple[str, ...], says: str, given: Folder, surgery: Surgery, capsys: pytest.CaptureFixture[str]
) -> None:
    assert surgery(*arguments, "--model", given["model"], "--facts", given["known.jsonl"]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert not list(Path("out").glob("*.*"))


def test_locate_traces_as_asked(given: Folder, surgery: Surgery, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["locate", "--model", given["model"], "--facts", given["rewrite.jsonl"], "--samples", "2", "--json"]
    assert surgery(*common, "--kind", "state", "--direction", "noise", "--severed", "mlp", "--out", "one") == 0
    (trace,) = printed(capsys)[0]["traces"]
    assert (trace["direction"], trace["severed"], trace["kind"]) == ("noise", "mlp", "state")
    asked = ["--corruption", "uniform:2", "--metric", "logit-difference", "--window", "1"]
    assert surgery(*common, *asked, "--out", "two") == 0
    traces = printed(capsys)[0]["traces"]
    assert [one["kind"] for one in traces] == ["state", "mlp", "attention"]
    assert {one["corruption"] for one in traces} == {"uniform noise of 2 x std"}
    assert {one["metric"] for one in traces} == {"logit-difference"}


def test_plain_and_fast_traces_agree(given: Folder, surgery: Surgery, capsys: pytest.CaptureFixture[str]) -> None:
    scores = []
    for method in ([], ["--plain"]):
        arguments = ["--facts", given["known.jsonl"], "--samples", "2", "--kind", "mlp", "--json", "--out", "out"]
        assert surgery("locate", "--model", given["model"], *arguments, *method) == 0
        scores.append([value for row in printed(capsys)[0]["traces"][0]["scores"] for value in row])
    assert scores[0] == pytest.approx(scores[1], rel=1e-3, abs=1e-6)


def test_an_average_is_kept_fact_by_fact(given: Folder, surgery: Surgery, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--facts", given["known.jsonl"], "--samples", "2", "--average", "--out", "out"]
    assert surgery("locate", "--model", given["model"], *arguments) == 0
    assert "1 fact; 0 the model does not know" in capsys.readouterr().out
    assert {path.name for path in Path("out").glob("average*")} == {
        "average.json", "average-map.png", "average-lines.png"
    }  # fmt: skip
    (kept,) = Path("out/traces").glob("*.json")
    stamp = kept.stat().st_mtime_ns
    assert surgery("locate", "--model", given["model"], *arguments, "--quiet") == 0
    assert kept.stat().st_mtime_ns == stamp
    assert surgery("locate", "--model", given["model"], "--facts", given["never.jsonl"], *arguments[2:]) == 2
    assert "it knows none" in capsys.readouterr().err


def test_selftest_says_what_was_found(given: Folder, surgery: Surgery, capsys: pytest.CaptureFixture[str]) -> None:
    assert surgery("selftest", "locate", "--model", given["model"], "--share", "0.05", "--json") == 0
    record = printed(capsys)[0]
    assert record["share"] == 0.05
    assert record["planted"]
    assert surgery("selftest", "juggling", "--model", given["model"]) == 2
    assert "'juggling'; choose locate" in capsys.readouterr().err


def test_a_sweep_recommends_and_goes_on(given: Folder, surgery: Surgery, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["sweep", "--model", given["model"], "--facts", given["rewrite.jsonl"], "--corpus", given["corpus.txt"]]
    assert surgery(*common, "--layers", "0-1", "--trace", "--json", "--out", "out") == 0
    record = printed(capsys)[0]
    assert record["layers"] == [0, 1]
    assert Path("out/sweep.png").stat().st_size > 5000
    kept = {path: path.stat().st_mtime_ns for path in Path("out/edits").rglob("*.json")}
    assert kept
    assert surgery(*common, "--layers", "0-1", "--quiet", "--out", "out") == 0
    assert {path: path.stat().st_mtime_ns for path in Path("out/edits").rglob("*.json")} == kept
    assert surgery("sweep", "--model", given["model"], "--limit", "2", "--out", "out") == 2
    assert "--limit counts facts of a file" in capsys.readouterr().err
