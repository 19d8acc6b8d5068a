"""Texts of facts and models reach a terminal as text."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from command_line import Folder, Surgery

from surgery import Fact, write_facts
from surgery.commands.options import Run
from surgery.commands.terminal import Formatter

CLEAR = "\x1b[2J"
SHOWN = "[001B][2J"
HOSTILE = f"{CLEAR}\x9b2J\x07\r\u202e [/] [red]x[/red] :smile:"


@pytest.fixture
def hostile(surgery: Surgery, facts: list[Fact]) -> Fact:
    """A fact of the toy's whose every text would act on a terminal, in `hostile.jsonl`."""
    fact = facts[27].replace(
        paraphrases=[f"{HOSTILE} has a house in"],
        new_target=facts[27].neighbours[0].target,
        neighbours=[facts[27].neighbours[0], *facts[27].neighbours[1:]],
        id=f"one {HOSTILE}",
    )
    write_facts("hostile.jsonl", [fact])
    return fact


def harmless(text: str) -> bool:
    return all(one == "\n" or (one.isprintable() and one != "\u202e") for one in text)


def test_what_is_said_of_a_hostile_fact_is_text(
    surgery: Surgery, given: Folder, hostile: Fact, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ("--model", given["model"], "--facts", "hostile.jsonl")
    surgery("verify", *common, "--report", "report", "--attacks", "paraphrases")
    out, err = capsys.readouterr()
    assert harmless(out + err)
    assert f"one {SHOWN}[009B]2J[0007][000D][202E] [/] [red]x[/red] :smile:" in out  # the verdict
    assert SHOWN in out.split("drift on neutral text")[0]  # the table
    # a program reads what was written
    surgery("verify", *common, "--report", "report", "--attacks", "paraphrases", "--json")
    out, err = capsys.readouterr()
    assert harmless(out + err)
    assert json.loads(out)["verdicts"][0]["fact"] == hostile.id


def test_a_ledger_lists_a_hostile_fact_as_text(
    surgery: Surgery, given: Folder, hostile: Fact, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ("--model", given["model"], "--facts", "hostile.jsonl", "--corpus", given["corpus.txt"], "--layer", "0")
    assert surgery("ledger", "add", *common, "--ledger", "kept", "--method", "rank-one") == 0
    assert surgery("ledger", "list", "--ledger", "kept") == 0
    out, err = capsys.readouterr()
    assert harmless(out + err)
    assert "[/]" in "".join(out.split())


def test_errors_and_warnings_are_text(surgery: Surgery, capsys: pytest.CaptureFixture[str]) -> None:
    assert surgery("verify", "--facts", f"{CLEAR}.jsonl", "--report", "report") == 2
    assert capsys.readouterr().err.startswith(f"surgery: cannot read the facts file {SHOWN}.jsonl")
    record = logging.LogRecord("surgery", logging.WARNING, "", 1, "%s is odd", (HOSTILE,), None)
    assert harmless(Formatter("%(message)s").format(record))
    Run().complain(HOSTILE)
    assert harmless(capsys.readouterr().err)


def test_lines_and_styles_stay(capsys: pytest.CaptureFixture[str]) -> None:
    Run().say("\n1. Where is it?\n\tthere", dim=True)
    assert capsys.readouterr().out.split() == ["1.", "Where", "is", "it?", "there"]


def test_half_a_character_is_refused(surgery: Surgery, given: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"subject": "Alda \ud800", "template": "{} lives in", "target": "Orvel"}
    Path("half.jsonl").write_text(json.dumps(row))
    common = ("--model", given["model"], "--out", "traces")
    for more in (("--facts", "half.jsonl"), ("--subject", "Alda \udc80", "--template", "{} is", "--target", "Orvel")):
        assert surgery("locate", *common, *more) == 2
        err = capsys.readouterr().err
        assert "which is half of a character; write the whole one" in err
        assert "subject: holds " in err
    assert not Path("traces").exists()
