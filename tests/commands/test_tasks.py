"""`surgery verify --tasks`: what it writes and prints, and what is wrong with its values."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest
from command_line import Folder, Surgery, printed
from harness_tasks import task_folder

from surgery import Fact


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


def test_verify_asks_tasks_before_and_after(
    surgery: Surgery, given: Folder, facts: list[Fact], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = task_folder(tmp_path / "tasks", facts[:9])
    common = ["verify", "--model", given["model"], "--edit", given["crude.edit"], "--report", "report"]
    common += ["--attacks", "paraphrases"]
    asked = ["--tasks", "choose,read", "--tasks-path", str(folder), "--task-limit", "7", "--seed", "3"]
    assert surgery(*common, *asked, "--json") == 11
    record, err = printed(capsys)
    assert not err
    found = record["beside"]["tasks"]
    assert found == json.loads(Path("report/report.json").read_text())["beside"]["tasks"]
    assert (found["limit"], found["seed"]) == (7, 3)
    assert [(one["task"], one["metric"], one["documents"]) for one in found["effects"]] == [
        ("choose", "acc", 7), ("read", "word_perplexity", 7),
    ]  # fmt: skip
    assert not any("lm-evaluation-harness" in one for one in record["not_tested"])
    assert surgery(*common, *asked) == 11
    out = " ".join(capsys.readouterr().out.split())
    assert "choose acc: 1 →" in out
    assert "read word_perplexity:" in out
    assert surgery(*common, "--json") == 11
    bare = printed(capsys)[0]
    assert bare["beside"]["tasks"] is None
    assert any("tasks of lm-evaluation-harness" in one for one in bare["not_tested"])


VERIFY = ("verify", "--model", "model", "--report", "report")
WRONG: dict[str, tuple[tuple[str, ...], str]] = {
    "no edit": ((*VERIFY, "--facts", "known.jsonl", "--tasks", "piqa"), "tasks compare a model before and after an"),
    "no name": ((*VERIFY, "--edit", "crude.edit", "--tasks", "piqa,"), "'piqa,' names no tasks"),
    "no folder": ((*VERIFY, "--edit", "crude.edit", "--tasks", "piqa", "--tasks-path", "absent"), "no folder absent"),
    "no document": ((*VERIFY, "--edit", "crude.edit", "--tasks", "piqa", "--task-limit", "0"), "at least 1 document"),
    "folder alone": ((*VERIFY, "--edit", "crude.edit", "--tasks-path", "."), "give --tasks NAME,NAME too"),
    "limit alone": ((*VERIFY, "--edit", "crude.edit", "--task-limit", "5"), "give --tasks NAME,NAME too"),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=list(WRONG))
def test_a_wrong_value_is_one_line_and_nothing_is_written(
    surgery: Surgery, given: Folder, arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    known = {path.name for path in given.path.iterdir()}
    assert surgery(*[given[one] if one in known else one for one in arguments], "--quiet") == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err
    assert list(Path().iterdir()) == []
