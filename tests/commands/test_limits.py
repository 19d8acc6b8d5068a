"""Limits and names on the command line: what was done before a limit is kept and said, and it can be raised."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from command_line import Folder, Surgery, printed

from edits import METHODS
from surgery import Edit, Fact, write_facts

ONE_LAYER = ("--layer", "0")


@pytest.fixture
def three(surgery: Surgery, facts: list[Fact]) -> list[Fact]:
    """Three facts to rewrite, in `three.jsonl`."""
    found = [facts[i].replace(new_target=facts[i].neighbours[0].target) for i in (27, 45, 72)]
    write_facts("three.jsonl", found)
    return found


@pytest.fixture
def between(surgery: Surgery, given: Folder, three: list[Fact], capsys: pytest.CaptureFixture[str]) -> str:
    """A limit of the weights' change that the first fact stays below and the second one passes."""
    common = ("edit", "--model", given["model"], "--facts", "three.jsonl", *ONE_LAYER, "--quiet")
    far = ("--limits", "relative-change=1e9, value-norm=1e9,perplexity=1e9")
    assert surgery(*common, "--corpus", given["corpus.txt"], *far, "--out", "all") == 0
    changes = [one["total_change"] for one in Edit.load("all").log]
    assert changes[0] < changes[1]
    assert capsys.readouterr() == ("", "")
    return f"relative-change={(changes[0] + changes[1]) / 2},value-norm=1e9,perplexity=1e9"


def test_what_was_edited_before_a_limit_is_written_and_said(
    surgery: Surgery, given: Folder, three: list[Fact], between: str, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ("edit", "--model", given["model"], "--facts", "three.jsonl", *ONE_LAYER, "--limits", between)
    assert surgery(*common, "--out", "part", "--json") == 1
    out, err = capsys.readouterr()
    assert Edit.load("part").facts == (three[0],)
    stopped = json.loads(out)["stopped"]
    assert (stopped["done"], stopped["asked"]) == (1, 3)
    assert err == f"surgery: part holds 1 of 3 facts, the others were not done: {stopped['why']}\n"
    assert "after 1 of 3 facts the weights would have changed by" in stopped["why"]
    assert stopped["why"].endswith(
        "or raise the limit if you mean it: --limits NAME=NUMBER, NAME one of relative-change, value-norm, perplexity"
    )
    # only what is in the file is rated, and its words are kept as asked; a stop is told whatever else is not
    assert surgery(*common, "--out", "hashed", "--keep-facts", "hashed") == 1
    out, err = capsys.readouterr()
    assert three[0].prompt in out
    assert three[1].prompt not in out
    assert Edit.load("hashed").mentions(three[0])
    assert not Edit.load("hashed").mentions(three[1])
    assert surgery(*common, "--out", "silent", "--quiet") == 1
    assert capsys.readouterr() == ("", err.replace("hashed", "silent"))


def test_what_was_removed_before_a_limit_is_verified(
    surgery: Surgery, given: Folder, three: list[Fact], capsys: pytest.CaptureFixture[str]
) -> None:
    common = (
        "remove", "--model", given["model"], "--facts", "three.jsonl", "--corpus", given["corpus.txt"], *ONE_LAYER,
        "--method", "rank-one", "--objective", "suppress", "--report", "report", "--json",
    )  # fmt: skip
    far = "value-norm=1e9,perplexity=1e9"
    assert surgery(*common, "--out", "all", "--limits", f"{far},relative-change=1e9") in (0, 10, 11)
    assert "stopped" not in printed(capsys)[0]
    changes = [one["total_change"] for one in Edit.load("all").log]
    between = f"{far},relative-change={(changes[0] + changes[1]) / 2}"
    assert surgery(*common, "--out", "part", "--limits", between) == 1
    record, err = printed(capsys)
    assert err.startswith("surgery: part holds 1 of 3 facts, the others were not done: after 1 of 3 facts")
    assert (record["stopped"]["done"], record["stopped"]["asked"]) == (1, 3)
    assert [one["fact"] for one in record["verdicts"]] == [three[0].replace(new_target=None).label]
    assert json.loads(Path("report/report.json").read_text())["exit_code"] == record["exit_code"]
    assert len(Edit.load("part").facts) == 1


def test_where_nothing_was_done_nothing_is_written(
    surgery: Surgery, given: Folder, three: list[Fact], capsys: pytest.CaptureFixture[str]
) -> None:
    common = ("edit", "--model", given["model"], "--facts", "three.jsonl", "--corpus", given["corpus.txt"])
    assert surgery(*common, *ONE_LAYER, "--limits", "relative-change=1e-9", "--out", "none", "--quiet") == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("surgery: after 0 of 3 facts the weights would have changed by")
    assert "raise the limit if you mean it: --limits NAME=NUMBER" in err
    assert not Path("none").exists()


def test_the_same_names_weigh_what_the_user_says(
    surgery: Surgery, given: Folder, three: list[Fact], capsys: pytest.CaptureFixture[str]
) -> None:
    common = ("edit", "--model", given["model"], "--facts", "three.jsonl", "--corpus", given["corpus.txt"], *ONE_LAYER)
    far = ("--limits", "relative-change=1e9,value-norm=1e9,perplexity=1e9", "--quiet")
    made = {}
    for names in ("0", "16"):
        assert surgery(*common, *far, "--names", names, "--out", names) == 0
        made[names] = Edit.load(names)
        assert made[names].settings["names"] == int(names) / 3**0.25
    assert made["16"].log[0]["total_change"] > made["0"].log[0]["total_change"]
    capsys.readouterr()
    assert surgery(*common, "--limits", "relative-change=1e-9", "--names", "1", "--out", "none") == 2
    assert "edit fewer facts, weigh nearly the same names less (names=0), or raise" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--names", "-1"), "nearly the same names weigh 0 or more, not -1.0"),
        (("--names", "1", "--method", "ft-m"), "ft-m weighs no names; leave --names away"),
        (("--limits", "change=2"), "there is no limit 'change'; choose one of relative-change, value-norm, perplexity"),
        (("--limits", "perplexity"), "'perplexity' sets no limit; write a number, as perplexity=2"),
        (("--limits", "perplexity=high"), "'perplexity=high' sets no limit; write a number, as perplexity=2"),
        (("--limits", "value-norm=nan"), "a limit is a number above 0, not value_norm=nan"),
        (("--limits", "perplexity=2", "--method", "bare"), "bare watches no limits; leave --limits away"),
    ],
    ids=str,
)
def test_limits_and_names_that_make_no_sense_are_refused(
    surgery: Surgery,
    given: Folder,
    more: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(METHODS, "bare", dataclasses.make_dataclass("Bare", ["objective"]))
    common = ("--model", given["model"], "--facts", given["rewrite.jsonl"], "--out", "edit", "--quiet")
    assert surgery("edit", *common, *more) == 2
    assert message in capsys.readouterr().err
    assert surgery("remove", *common, "--report", "report", *more) == 2
    assert message in capsys.readouterr().err
    assert list(Path().iterdir()) == []
