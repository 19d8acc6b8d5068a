"""The command line: what it writes and prints, its exit codes, and that a wrong value ends it with one line and 2."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from toy import trained_toy

from edits import Statistics
from surgery import Delta, Edit, Fact, Model, load, write_facts
from surgery.__main__ import main

Surgery = Callable[..., int]


@dataclasses.dataclass(frozen=True)
class Folder:
    """A folder with a model, facts and text."""

    path: Path

    def __getitem__(self, name: str) -> str:
        return str(self.path / name)


@pytest.fixture(scope="module")
def facts() -> list[Fact]:
    records = trained_toy("llama")[2]
    return [Fact.from_record({key: record[key] for key in record if key != "relation"}) for record in records]


@pytest.fixture(scope="module")
def model() -> Model:
    return load(trained_toy("llama")[:2])


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory, facts: list[Fact], model: Model) -> Folder:
    """What the commands are given: `model/`, facts files, text, edits good and bad."""
    folder = Folder(tmp_path_factory.mktemp("given"))
    fact = facts[27]
    other = fact.neighbours[0].target
    model.hf.save_pretrained(folder["model"])
    model.tokenizer.save_pretrained(folder["model"])
    model.hf.config.save_pretrained(folder["no weights"])
    write_facts(folder["known.jsonl"], [fact])
    write_facts(folder["rewrite.jsonl"], [fact.replace(new_target=other)])
    write_facts(folder["never.jsonl"], [fact.replace(target=other)])
    write_facts(folder["already.jsonl"], [fact.replace(target=other, new_target=fact.target)])
    lines = [f"{prompt} {one.target} ." for one in facts for prompt in (one.prompt, *one.paraphrases)]
    Path(folder["corpus.txt"]).write_text("\n".join(lines))
    Path(folder["two words.txt"]).write_text("people went")
    Path(folder["latin.txt"]).write_bytes(b"caf\xe9")
    good = Path(folder["known.jsonl"]).read_text().strip()
    Path(folder["broken.jsonl"]).write_text(f"{good}\n{good[:40]}\n")
    no_slot = {**json.loads(good), "template": "lives in the city of"}
    Path(folder["no slot.jsonl"]).write_text(json.dumps(no_slot))
    Path(folder["empty target.jsonl"]).write_text(json.dumps({**json.loads(good), "target": " "}))
    module = model.anatomy.layers[-1].mlp
    delta = Delta(module, 10 * torch.ones(model.anatomy.d_model, 1), torch.ones(model.anatomy.d_ff, 1))
    edit = Edit((delta,), model.fingerprint, "by hand", "removed", (fact,))
    edit.save(folder["crude.edit"])
    dataclasses.replace(edit, facts=(fact.replace(target=other),)).save(folder["crude and never known.edit"])
    dataclasses.replace(edit, base="0" * 64).save(folder["other weights.edit"])
    Path(folder["cut off.edit"]).write_bytes(Path(folder["crude.edit"]).read_bytes()[:-100])
    Path(folder["a file"]).write_text("")
    return folder


@pytest.fixture
def surgery(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Surgery:
    """Runs the command line in this process, in an empty folder, and gives its exit code."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("SURGERY_CACHE", str(tmp_path / "cache"))

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["surgery", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        code = ended.value.code
        assert isinstance(code, int)
        return code

    return run


def printed(capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], str]:
    """The one JSON object on stdout, and stderr."""
    out, err = capsys.readouterr()
    assert out.count("\n") == 1
    record = json.loads(out)
    assert isinstance(record, dict)
    return record, err


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
        (("--facts", "rewrite.jsonl"), 10),
        (("--edit", "crude.edit"), 11),
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
    edited = surgery("edit", *common, "--facts", given["rewrite.jsonl"], "--layer", "1", "--out", "edit", "--quiet")
    assert edited == 0


def test_help_is_given_without_a_command(surgery: Surgery, capsys: pytest.CaptureFixture[str]) -> None:
    assert surgery("--help") == 0
    out = capsys.readouterr().out
    for command in ("demo", "locate", "edit", "remove", "verify", "stats"):
        assert command in out


MODEL = ("--model", "model")
OUT = ("--out", "out")
REPORT = ("--report", "report")
STATS = ("--corpus", "corpus.txt")
EDIT = ("edit", *MODEL, "--facts", "rewrite.jsonl", *STATS, *OUT)
REMOVE = ("remove", *MODEL, "--facts", "known.jsonl", *STATS, *OUT, *REPORT)
LOCATE = ("locate", *MODEL, "--facts", "known.jsonl", *OUT)
BELOW = "a file/below"

WRONG: dict[str, tuple[tuple[str, ...], str]] = {
    "template without slot": (("edit", *MODEL, "--facts", "no slot.jsonl", *OUT), "no {} for the subject; write it"),
    "inline template without slot": (
        ("locate", *MODEL, "--subject", "Alda", "--template", "lives in", "--target", "Orvel", *OUT),
        "no {} for the subject; write it like",
    ),
    "empty target": (("edit", *MODEL, "--facts", "empty target.jsonl", *OUT), "target: is empty"),
    "inline empty target": (
        ("locate", *MODEL, "--subject", "Alda", "--template", "{} is", "--target", "", *OUT),
        "target: is empty; a fact needs some words there",
    ),
    "half a fact": (("locate", *MODEL, "--subject", "Alda", *OUT), "give --facts, or all of --subject"),
    "two facts": ((*LOCATE, "--subject", "Alda"), "not both"),
    "broken line": (("edit", *MODEL, "--facts", "broken.jsonl", *OUT), "broken.jsonl"),
    "no facts file": (("edit", *MODEL, "--facts", "absent.jsonl", *OUT), "absent.jsonl"),
    "nothing to say instead": (("edit", *MODEL, "--facts", "known.jsonl", *STATS, *OUT), "no new_target to replace"),
    "unknown method": ((*EDIT, "--method", "rome"), "there is no method 'rome'; choose one of rank-one"),
    "unknown objective": ((*REMOVE, "--objective", "forget"), "there is no objective 'forget'; choose one of"),
    "objective that removes nothing": ((*REMOVE, "--objective", "replace"), "removes nothing; choose neutral"),
    "unknown kind": ((*LOCATE, "--kind", "neuron"), "there is no kind 'neuron' to patch; choose state"),
    "unknown format": ((*LOCATE, "--format", "bmp"), "there is no figure format 'bmp'; choose png"),
    "no samples": ((*LOCATE, "--samples", "0"), "at least 1"),
    "layer": ((*EDIT, "--layer", "9"), "there is no layer 9: LlamaForCausalLM has layers 0 to 3"),
    "layer of statistics": (("stats", *MODEL, *STATS, "--layers", "2-9", *OUT), "there is no layer 4"),
    "layers in words": (("stats", *MODEL, *STATS, "--layers", "all", *OUT), "write 4, 4-8 or 4,6,9"),
    "no statistics": (("edit", *MODEL, "--facts", "rewrite.jsonl", *OUT), "give --corpus FILE"),
    "too little text": (("stats", *MODEL, "--corpus", "two words.txt", "--layers", "1", *OUT), "too few"),
    "no text file": (("stats", *MODEL, "--corpus", "absent.txt", "--layers", "1", *OUT), "cannot read the text file"),
    "not utf-8": (("stats", *MODEL, "--corpus", "latin.txt", "--layers", "1", *OUT), "not UTF-8"),
    "model without weights": (("edit", "--model", "no weights", *EDIT[3:]), "holds no weights (*.safetensors"),
    "no model folder": (("edit", "--model", "./absent", *EDIT[3:]), "there is no model folder absent; give a folder"),
    "unknown dtype": ((*EDIT, "--dtype", "float7"), "there is no dtype 'float7'; write 'float32'"),
    "unknown device": ((*EDIT, "--device", "toaster"), "there is no device 'toaster'; write 'cpu'"),
    "edit cut off": (("verify", *MODEL, "--edit", "cut off.edit", *REPORT), "damaged or cut off"),
    "no edit": (("verify", *MODEL, "--edit", "absent.edit", *REPORT), "there is no edit file"),
    "no edit but facts": (("verify", *MODEL, "--edit", "known.jsonl", *REPORT), "make the edit again"),
    "edit of other weights": (("verify", *MODEL, "--edit", "other weights.edit", *REPORT), "made for other weights"),
    "nothing to verify": (("verify", *MODEL, *REPORT), "give --facts, --edit or both"),
    "edit below a file": ((*EDIT[:-2], "--out", BELOW), "is a file, not a folder; choose another place"),
    "traces below a file": ((*LOCATE[:-2], "--out", BELOW), "is a file, not a folder"),
    "report below a file": ((*REMOVE[:-2], "--report", BELOW), "is a file, not a folder"),
    "verified below a file": (("verify", *MODEL, "--edit", "crude.edit", "--report", BELOW), "is a file, not a folder"),
    "statistics below a file": (("stats", *MODEL, *STATS, "--layers", "1", "--out", BELOW), "is a file, not a folder"),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=list(WRONG))
def test_a_wrong_value_ends_it_with_one_line_and_nothing_written(
    surgery: Surgery, given: Folder, arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    known = {path.name for path in given.path.iterdir()}
    here = [given[one] if one in known or one == BELOW else one for one in arguments[1:]]
    assert surgery(arguments[0], *here, "--quiet") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("surgery: ")
    assert err.count("\n") == 1
    assert message in err
    assert "Traceback" not in err
    assert list(Path().iterdir()) == []
    assert {path.name for path in given.path.iterdir()} == known


@pytest.mark.parametrize("arguments", [("operate",), ("edit", "--facts", "x"), ("verify", "--seed", "one")], ids=str)
def test_wrong_usage_exits_with_2(
    surgery: Surgery, arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert surgery(*arguments) == 2
    assert "Usage" in capsys.readouterr().err


def test_it_ends_so_in_a_process_of_its_own_as_well(given: Folder, tmp_path: Path) -> None:
    # also because the tests' own type checks would notice this value before the package does
    report = tmp_path / "report"
    command = [sys.executable, "-m", "surgery", "verify", "--model", given["model"], "--facts", given["known.jsonl"]]
    done = subprocess.run(
        [*command, "--profile", "full", "--report", str(report), "--quiet"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "surgery: there is no verification profile 'full'; choose 'quick'\n"
    assert not report.exists()
