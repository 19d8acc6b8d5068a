"""Commands that take edits along: export, files without the facts' words, and what an edit leaks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import Folder, Surgery, printed

from surgery import Edit, Fact, Model, from_peft, load


def test_export_writes_a_model_and_an_adapter(
    surgery: Surgery, given: Folder, model: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    made = Edit.load(given["crude.edit"])
    arguments = ("export", "--model", given["model"], "--edit", given["crude.edit"])
    assert surgery(*arguments, "--to", "hf", "--out", "new/model", "--json") == 0
    record, err = printed(capsys)
    assert not err
    assert record["files"] == {path.name: path.stat().st_size for path in Path("new/model").iterdir()}
    assert record["method"] == "by hand"
    with made.applied(model):
        assert load("new/model").fingerprint == model.fingerprint
    assert surgery(*arguments, "--to", "peft", "--out", "adapter") == 0
    assert "adapter_model.safetensors" in capsys.readouterr().out
    assert from_peft(model, "adapter").facts == made.facts
    assert surgery(*arguments, "--to", "peft", "--keep-facts", "none", "--out", "bare", "--quiet") == 0
    assert from_peft(model, "bare").facts == ()
    assert surgery(*arguments, "--to", "peft", "--out", "bare") == 2
    assert "bare holds files already" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["edit", "remove"])
def test_facts_stay_out_of_the_file(
    command: str, surgery: Surgery, given: Folder, facts: list[Fact], capsys: pytest.CaptureFixture[str]
) -> None:
    fact = facts[27]
    common = ["--model", given["model"], "--facts", given["rewrite.jsonl"], "--corpus", given["corpus.txt"], "--json"]
    report = ["--report", "report"] if command == "remove" else []
    assert surgery(command, *common, *report, "--keep-facts", "hashed", "--out", "an.edit") in (0, 10, 11)
    record = printed(capsys)[0]
    edit, whole = Edit.load("an.edit"), Path("an.edit").read_bytes()
    assert edit.hidden is not None
    assert edit.mentions(fact.subject)
    assert not edit.mentions(facts[0].subject)
    assert fact.subject.encode() not in whole
    assert fact.target.encode() not in whole
    if command == "edit":
        assert record["log"] == [dict(one) for one in edit.log]
        assert (record["facts"], record["settings"]) == (1, edit.settings)
    assert surgery("verify", "--model", given["model"], "--edit", "an.edit", "--report", "again") == 2
    assert "keeps its facts hashed" in capsys.readouterr().err
    again = ("verify", "--model", given["model"], "--edit", "an.edit", "--facts", given["rewrite.jsonl"])
    assert surgery(*again, "--report", "again", "--quiet") in (0, 10, 11)


def test_verify_tells_what_an_edit_leaks(surgery: Surgery, given: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    common = ("verify", "--model", given["model"], "--edit", given["crude.edit"], "--report", "report", "--leak")
    common += ("--attacks", "paraphrases")
    assert surgery(*common, "--json") == 11
    record = printed(capsys)[0]
    assert record["leak"] == json.loads(Path("report/report.json").read_text())["leak"]
    (reading,) = record["leak"]["readings"]
    assert 1 <= reading["rank"] <= reading["of"] == record["leak"]["names"] + 1
    assert surgery(*common) == 11
    assert "read off the edit itself" in capsys.readouterr().out


EXPORT = ("export", "--model", "model", "--edit", "crude.edit", "--out", "out")
WRONG: dict[str, tuple[tuple[str, ...], str]] = {
    "unknown form": ((*EXPORT, "--to", "gguf"), "there is no form to export to 'gguf'; choose one of hf, peft"),
    "unknown way": ((*EXPORT, "--to", "peft", "--keep-facts", "maybe"), "choose one of plain, hashed, none"),
    "facts in a model": ((*EXPORT, "--to", "hf", "--keep-facts", "none"), "leave --keep-facts away"),
    "other weights": (
        ("export", "--model", "model", "--edit", "other weights.edit", "--out", "out", "--to", "hf"),
        "made for other weights",
    ),
    "export below a file": ((*EXPORT[:-1], "a file/below", "--to", "hf"), "is a file, not a folder"),
    "edit keeps maybe": (
        ("edit", "--model", "model", "--facts", "rewrite.jsonl", "--out", "out", "--keep-facts", "maybe"),
        "there is no way to keep facts 'maybe'",
    ),
    "leak of nothing": (
        ("verify", "--model", "model", "--facts", "known.jsonl", "--report", "report", "--leak"),
        "--leak looks at an edit; give --edit FILE too",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=list(WRONG))
def test_a_wrong_value_is_one_line_and_nothing_is_written(
    surgery: Surgery, given: Folder, arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    known = {path.name for path in given.path.iterdir()} | {"a file/below"}
    assert surgery(*[given[one] if one in known else one for one in arguments], "--quiet") == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err
    assert list(Path().iterdir()) == []
