"""The command line in this process, and the files its commands are given."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch
from command_line import Folder, Surgery
from toy import trained_toy

from surgery import Delta, Edit, Fact, Model, load, write_facts
from surgery.__main__ import main


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
    write_facts(folder["too long.jsonl"], [fact.replace(template="{} was " + "so " * 80 + "in")])
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
