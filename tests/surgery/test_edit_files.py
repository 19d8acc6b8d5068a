"""Edits in files: everything comes back, and what is damaged or cannot be written is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from by_hand import delta_of, edit_of, same_bits
from safetensors.torch import save_file

from surgery import Edit, Model, SurgeryError, edit_files

IDS = torch.tensor([[5, 60, 7, 300, 9]])


def test_a_saved_edit_gives_the_same_logits(model: Model, tmp_path: Path) -> None:
    made = edit_of(model, delta_of(model, model.anatomy.names("mlp")[0]))
    loaded = Edit.load(made.save(tmp_path / "an.edit"))
    with torch.no_grad():
        with made.applied(model):
            expected = model.hf(IDS).logits
        before = model.hf(IDS).logits
        with loaded.applied(model):
            assert torch.equal(model.hf(IDS).logits, expected)
    assert not torch.equal(before, expected)


def test_a_file_keeps_everything(gpt2: Model, tmp_path: Path) -> None:
    made = edit_of(
        gpt2,
        *(delta_of(gpt2, f"transformer.h.{i}.mlp.c_proj", seed=i, rank=i + 1) for i in range(2)),
        claim="removed",
        settings={"site": "L1.mlp", "steps": 3, "hostile": "\x00{}é\u2028"},
        log=({"fact": "x", "loss": 0.25},),
        prompts=("a\nb", "ç"),
    )
    loaded = Edit.load(made.save(tmp_path / "deep" / "an.edit"))
    for one, other in zip(made.deltas, loaded.deltas, strict=True):
        assert one.module == other.module
        assert same_bits(one.left, other.left)
        assert same_bits(one.right, other.right)
    for name in ("base", "method", "claim", "facts", "settings", "log", "prompts"):
        assert getattr(loaded, name) == getattr(made, name), name
    assert loaded.summary() == made.summary()
    assert loaded.summary()["weights"]["transformer.h.1.mlp.c_proj"]["rank"] == 2


def test_files_that_are_no_edit_are_refused(gpt2: Model, tmp_path: Path) -> None:
    path = edit_of(gpt2, delta_of(gpt2, "transformer.h.1.mlp.c_proj")).save(tmp_path / "an.edit")
    whole = path.read_bytes()
    for length in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(SurgeryError, match=r"an.edit is damaged or cut off .*; make the edit again"):
            Edit.load(path)
    for metadata in (None, {"edit": "[]"}, {"edit": '{"format": "another"}'}):
        save_file({"0.left": torch.ones(2, 1)}, path, metadata=metadata)
        with pytest.raises(SurgeryError, match=r"an.edit is no edit of this package"):
            Edit.load(path)
    for other in (tmp_path, tmp_path / "absent.edit"):
        with pytest.raises(SurgeryError, match="there is no edit file"):
            Edit.load(other)
    path.write_bytes(whole)
    assert Edit.load(path).method == "by hand"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
def test_a_write_that_fails_leaves_the_old_file(
    gpt2: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    path = edit_of(gpt2, delta_of(gpt2, "transformer.h.1.mlp.c_proj")).save(tmp_path / "an.edit")
    whole = path.read_bytes()

    def halfway(tensors: Any, file: Any, **_: Any) -> None:
        Path(file).write_bytes(b"half")
        raise error

    monkeypatch.setattr(edit_files, "save_file", halfway)
    with pytest.raises(error):
        edit_of(gpt2, delta_of(gpt2, "transformer.h.2.mlp.c_proj")).save(path)
    assert path.read_bytes() == whole
    assert os.listdir(tmp_path) == ["an.edit"]


def test_a_place_that_cannot_be_written_is_refused(gpt2: Model, tmp_path: Path) -> None:
    made = edit_of(gpt2, delta_of(gpt2, "transformer.h.1.mlp.c_proj"))
    with pytest.raises(SurgeryError, match="it is a folder; give a file name"):
        made.save(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(SurgeryError, match="cannot write to the folder"):
        made.save(tmp_path / "file" / "an.edit")
