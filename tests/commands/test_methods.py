"""Methods on the command line: each with its own layers, statistics only where they are used, and what it can serve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from command_line import Folder, Surgery, printed

from edits import METHODS
from surgery import Edit

ALONE = [name for name, made in METHODS.items() if not made.uses_statistics]  # type: ignore[attr-defined]


def test_a_method_of_several_layers_has_statistics_fitted_for_all_of_them(
    surgery: Surgery, given: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ("edit", "--model", given["model"], "--facts", given["rewrite.jsonl"], "--method", "memit", "--json")
    assert surgery(*common, "--corpus", given["corpus.txt"], "--out", "whole") == 0
    record, err = printed(capsys)
    assert not err
    assert record["settings"]["sites"] == [f"L{layer}.mlp" for layer in range(3)]
    assert len(Edit.load("whole").deltas) == 3
    # they are kept, so layers can be chosen without text afterwards
    assert surgery(*common, "--layer", "1-2", "--out", "two") == 0
    assert printed(capsys)[0]["settings"]["sites"] == ["L1.mlp", "L2.mlp"]


@pytest.mark.parametrize("method", [name for name in ALONE if name != "zero-neurons"])
def test_methods_without_statistics_need_no_text(
    surgery: Surgery, given: Folder, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ("edit", "--model", given["model"], "--facts", given["rewrite.jsonl"], "--method", method)
    assert surgery(*common, "--layer", "0-1", "--out", "edit", "--json") == 0
    record, err = printed(capsys)
    assert not err
    assert (record["method"], record["settings"]["sites"]) == (method, ["L0.mlp", "L1.mlp"])
    assert record["settings"].get("seed", 1) == 1
    assert surgery(*common, "--corpus", given["corpus.txt"], "--out", "other") == 2
    assert f"{method} uses no key statistics; leave --corpus away" in capsys.readouterr().err
    assert not Path("other").exists()


@pytest.mark.parametrize(("method", "objective"), [("zero-neurons", "suppress"), ("ft-m", "neutral")])
def test_a_removal_is_by_default_what_the_method_can_do(
    surgery: Surgery, given: Folder, method: str, objective: str, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ("remove", "--model", given["model"], "--facts", given["known.jsonl"], "--method", method)
    assert surgery(*common, "--out", "edit", "--report", "report", "--json") in (0, 10, 11)
    assert printed(capsys)[0]["claim"] == "removed"
    edit = Edit.load("edit")
    assert (edit.method, edit.settings["objective"]) == (method, objective)


@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        (("--objective", "refusal", "--refusal", "away"), {"text": "away"}),
        (("--objective", "maximum-entropy", "--objective-layers", "2-3"), {"layers": [2, 3]}),
    ],
)
def test_an_objectives_settings_reach_it(
    surgery: Surgery, given: Folder, more: tuple[str, ...], wanted: dict[str, Any]
) -> None:
    common = ("remove", "--model", given["model"], "--facts", given["known.jsonl"], "--method", "rank-one")
    statistics = ("--corpus", given["corpus.txt"], "--layer", "1")
    assert surgery(*common, *statistics, *more, "--out", "edit", "--report", "report") in (0, 10, 11, 13)
    assert Edit.load("edit").settings["objective_settings"] == wanted


@pytest.mark.parametrize(
    ("command", "method", "more", "message"),
    [
        ("remove", "rank-one", ("--refusal", "away"), "--refusal and --objective-layers go with --objective"),
        ("remove", "rank-one", ("--objective", "neutral", "--refusal", "away"), "the objective 'neutral' has no text"),
        ("remove", "memit", ("--objective", "refusal", "--objective-layers", "2"), "'refusal' has no layers"),
        ("edit", "zero-neurons", (), "serves the objective 'suppress', not 'replace'"),
        ("remove", "replace-neurons", (), "serves the objective 'replace', not 'neutral'"),
        ("remove", "zero-neurons", ("--objective", "neutral"), "serves the objective 'suppress', not 'neutral'"),
        ("edit", "rank-one", ("--layer", "0-1"), "rank-one edits exactly one mlp, such as 'L4.mlp'"),
        ("edit", "ft-m", ("--layer", "two"), "write 4, 4-8 or 4,6,9"),
        ("edit", "ft-m", ("--layer", "7"), "there is no layer 7: LlamaForCausalLM has layers 0 to 3"),
    ],
)  # fmt: skip
def test_what_a_method_cannot_serve_is_refused_before_anything_is_written(
    surgery: Surgery, given: Folder, command: str, method: str, more: tuple[str, ...], message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    report = ("--report", "report") if command == "remove" else ()
    common = ("--model", given["model"], "--facts", given["rewrite.jsonl"], "--method", method, "--out", "edit")
    assert surgery(command, *common, *report, *more, "--quiet") == 2
    assert message in capsys.readouterr().err
    assert list(Path().iterdir()) == []
