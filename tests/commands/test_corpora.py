"""`--corpus` means the same to every command: so many tokens, in a drawn order, records of .jsonl, going on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Folder, Surgery

import edits
from edits import Statistics, find_statistics
from surgery import Edit, Model

COMMANDS: dict[str, tuple[str, ...]] = {
    "edit": ("edit", "--layer", "0", "--out", "new/out"),
    "remove": ("remove", "--method", "rank-one", "--layer", "0", "--out", "new/out", "--report", "report"),
    "ledger add": ("ledger", "add", "--method", "rank-one", "--layer", "0", "--ledger", "new/out"),
    "sweep": ("sweep", "--layers", "0", "--out", "new/out"),
}
LEFT = Path("new/out.statistics.partial")
Command = Callable[..., int]


@pytest.fixture(params=COMMANDS)
def command(surgery: Surgery, given: Folder, request: pytest.FixtureRequest) -> Command:
    """One of the commands, on one fact and one layer."""
    name, *more = COMMANDS[request.param]
    sub = more[:1] if name == "ledger" else []
    common = ("--model", given["model"], "--facts", given["rewrite.jsonl"], "--quiet")
    return lambda *arguments: surgery(name, *sub, *common, *more[len(sub) :], *arguments)


@pytest.fixture
def records(surgery: Surgery, given: Folder) -> str:
    """The text of `corpus.txt` six times over, in records that hold much else."""
    lines = Path(given["corpus.txt"]).read_text().splitlines() * 6
    Path("records.jsonl").write_text("\n".join(json.dumps({"noise": "x " * 50, "text": line}) for line in lines))
    return "records.jsonl"


def test_a_long_file_is_read_as_stats_reads_it(
    command: Command, surgery: Surgery, given: Folder, model: Model, records: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SURGERY_CACHE", "apart")
    arguments = ("stats", "--model", given["model"], "--layers", "0", "--no-convergence", "--out", "wanted", "--quiet")
    assert surgery(*arguments, "--corpus", records) == 0
    wanted, most = Statistics.load("wanted"), 10 * model.anatomy.d_ff
    assert most <= wanted.tokens < most + 30
    monkeypatch.setenv("SURGERY_CACHE", "own")
    assert command("--corpus", records) in (0, 10, 11)
    found = find_statistics(model, 0)
    assert (found.tokens, found.corpus) == (wanted.tokens, records)
    assert torch.equal(found.layers[0].factors, wanted.layers[0].factors)
    assert torch.equal(found.layers[0].diagonal, wanted.layers[0].diagonal)
    assert not LEFT.exists()


def test_records_without_text_are_refused_before_anything_is_written(
    command: Command, given: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--corpus", given["known.jsonl"]) == 2
    err = capsys.readouterr().err
    assert 'known.jsonl, line 1: has no text in the field "text"; name another with surgery stats --column' in err
    assert list(Path().iterdir()) == []


def test_a_stopped_edit_goes_on(
    surgery: Surgery, given: Folder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("edits.checkpoint.SECONDS", 0)
    products, read, most = edits.fitting._products, [], [10**6]

    def counted(*given: Any) -> Any:
        read.append(1)
        if len(read) > most[0]:
            raise MemoryError
        return products(*given)

    monkeypatch.setattr("edits.fitting._products", counted)
    common = ("edit", "--model", given["model"], "--facts", given["rewrite.jsonl"], "--layer", "0", "--out", "new/out")
    assert surgery(*common, "--corpus", given["corpus.txt"]) == 0
    whole, wanted = len(read), Edit.load("new/out").deltas[0]
    read.clear()
    most[0] = 9
    with pytest.raises(MemoryError):
        surgery(*common, "--corpus", given["corpus.txt"])
    assert LEFT.is_file()
    read.clear()
    most[0] = 10**6
    capsys.readouterr()
    assert surgery(*common, "--corpus", given["corpus.txt"]) == 0
    assert f"going on from {LEFT}" in capsys.readouterr().out
    assert len(read) == whole - 9
    assert not LEFT.exists()
    assert torch.equal(Edit.load("new/out").deltas[0].left, wanted.left)


def test_layers_that_have_statistics_need_no_text(
    surgery: Surgery, given: Folder, model: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ("sweep", "--model", given["model"], "--facts", given["rewrite.jsonl"], "--out", "out")
    assert surgery(*common, "--corpus", given["corpus.txt"], "--layers", "0", "--quiet") == 0
    assert sorted(find_statistics(model, 0).layers) == [0]
    assert surgery(*common, "--corpus", given["corpus.txt"], "--layers", "0") == 0
    assert "all these layers have key statistics, so corpus.txt is not read" in capsys.readouterr().out
    # the others are fitted, and kept for later edits
    assert surgery(*common, "--corpus", given["corpus.txt"], "--layers", "0-1", "--quiet") == 0
    assert sorted(find_statistics(model, 1).layers) == [0, 1]
