"""Edits taken along: folders that transformers loads without this package, adapters that PEFT loads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from by_hand import delta_of, edit_of, in_dtype
from safetensors.torch import load_file
from tiny import tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from surgery import Edit, Model, SurgeryError, WrongWeights, export, from_peft, load, redact, to_hf, to_peft

IDS = torch.tensor([[5, 60, 7, 300, 9]])
MLP = "transformer.h.{}.mlp.c_proj"
# what somebody else has: transformers, and no trace of this package
ELSEWHERE = """
import sys
for name in ("surgery", "locate", "edits"):
    sys.modules[name] = None
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
try:
    import surgery
    raise SystemExit("it is here after all")
except ImportError:
    pass
hf = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
ids = AutoTokenizer.from_pretrained(sys.argv[1])("The old tower stands", return_tensors="pt").input_ids
with torch.no_grad():
    save_file({"logits": hf(ids).logits, "ids": ids}, sys.argv[2])
"""


def logits(model: Model) -> torch.Tensor:
    with torch.no_grad():
        return model.hf(IDS).logits


def test_a_folder_is_the_edited_model(model: Model, tmp_path: Path) -> None:
    fingerprint, config = model.fingerprint, model.hf.config.to_json_string()
    made = edit_of(model, *(delta_of(model, name, seed=i) for i, name in enumerate(model.anatomy.names("mlp")[1:3])))
    assert to_hf(model, made, tmp_path / "new") == tmp_path / "new"
    assert (model.fingerprint, model.hf.config.to_json_string()) == (fingerprint, config)
    loaded = load((AutoModelForCausalLM.from_pretrained(tmp_path / "new"), model.tokenizer))
    with made.applied(model):
        assert loaded.fingerprint == model.fingerprint
        # the copies of the tests have rounded their rotary frequencies as well, which are no weights
        if model.dtype == torch.float32:
            assert torch.equal(logits(loaded), logits(model))
    assert os.listdir(tmp_path) == ["new"]
    (tmp_path / "plain").touch()
    assert {file.stat().st_mode for file in (tmp_path / "new").iterdir()} == {(tmp_path / "plain").stat().st_mode}


def test_transformers_alone_loads_it(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    model = load((tiny_model("llama_tied"), tokenizer))
    # as a model that was read from a GGUF file is marked
    model.hf.config.quantization_config = {"quant_method": "gguf"}
    vars(model.hf).update(hf_quantizer="a quantizer", is_quantized=True)
    made = edit_of(model, delta_of(model, model.anatomy.names("mlp")[1]))
    to_hf(model, made, tmp_path / "new")
    assert vars(model.hf)["hf_quantizer"] == "a quantizer"
    assert model.hf.config.quantization_config == {"quant_method": "gguf"}
    script, found = tmp_path / "elsewhere.py", tmp_path / "found.safetensors"
    script.write_text(ELSEWHERE)
    environment = {**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "new"), str(found)],
        capture_output=True, text=True, cwd=tmp_path, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    there = load_file(found)
    assert there["ids"].tolist() == [tokenizer("The old tower stands").input_ids]
    with made.applied(model), torch.no_grad():
        assert torch.equal(model.hf(there["ids"]).logits, there["logits"])
    assert AutoTokenizer.from_pretrained(tmp_path / "new").chat_template == tokenizer.chat_template
    assert "quantization_config" not in json.loads((tmp_path / "new" / "config.json").read_text())


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_peft_loads_an_adapter_to_the_same_answers(
    tiny: Model, tmp_path: Path, unchanged: Callable[[Model], None]
) -> None:
    from peft import PeftModel

    unchanged(tiny)
    names = tiny.anatomy.names("mlp")[1], tiny.anatomy.names("attention")[2], tiny.anatomy.names("mlp")[3]
    made = edit_of(tiny, *(delta_of(tiny, name, seed=i, rank=(2, 2, 3)[i]) for i, name in enumerate(names)))
    to_peft(tiny, made, tmp_path / "adapter")
    assert sorted(os.listdir(tmp_path / "adapter")) == [export.CONFIG, export.WEIGHTS, export.ABOUT]
    config = json.loads((tmp_path / "adapter" / export.CONFIG).read_text())
    assert (config["r"], config["lora_alpha"]) == (2, 2)
    assert config["rank_pattern"] == config["alpha_pattern"] == {names[2]: 3}
    copy = in_dtype(tiny, torch.float32)
    with made.applied(copy):
        expected = logits(copy)
    with torch.no_grad():
        found = PeftModel.from_pretrained(copy.hf, tmp_path / "adapter").eval()(IDS).logits
    assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()))
    assert not torch.allclose(found, logits(tiny), atol=1e-2)
    back = from_peft(tiny, tmp_path / "adapter")
    assert [delta.module for delta in back.deltas] == [*names]
    for one, other in zip(back.deltas, made.deltas, strict=True):
        assert torch.equal(one.left, other.left)
        assert torch.equal(one.right, other.right)


def test_an_edit_comes_back_as_it_was(small: Model, tmp_path: Path) -> None:
    changes = {"claim": "removed", "settings": {"steps": 3}, "log": ({"loss": 0.5},), "prompts": ("a", "ç")}
    made = edit_of(small, delta_of(small, MLP.format(1)), **changes)
    back = from_peft(small, to_peft(small, made, tmp_path / "adapter"))
    for name in ("base", "method", "claim", "facts", "settings", "log", "prompts", "hidden"):
        assert getattr(back, name) == getattr(made, name), name
    assert back.summary() == made.summary()
    again = from_peft(small, tmp_path / "adapter", claim="rewritten", facts=())
    assert (again.claim, again.facts, again.method) == ("rewritten", (), "by hand")
    hashed = redact(made)
    whole = [path.read_bytes() for path in to_peft(small, hashed, tmp_path / "hashed").iterdir()]
    assert not any(b"tower" in one for one in whole)
    assert from_peft(small, tmp_path / "hashed").hidden == hashed.hidden


def test_repeated_columns_do_not_make_an_adapter_larger(small: Model, tmp_path: Path) -> None:
    delta = delta_of(small, MLP.format(1))
    to_peft(small, edit_of(small, delta + delta), tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / export.CONFIG).read_text())["r"] == 2
    assert torch.allclose(from_peft(small, tmp_path / "adapter").deltas[0].dense(), 2 * delta.dense(), atol=1e-5)


def test_what_is_no_adapter_is_refused(small: Model, tiny_tied: Model, tmp_path: Path) -> None:
    with pytest.raises(SurgeryError, match=r"rank 32 of 32, so an adapter .* export the whole model, with to_hf"):
        to_peft(small, edit_of(small, delta_of(small, MLP.format(1), rank=50)), tmp_path / "adapter")
    with pytest.raises(SurgeryError, match=r"lm_head shares its weight with .*; export the whole model"):
        to_peft(tiny_tied, edit_of(tiny_tied, delta_of(tiny_tied, "lm_head")), tmp_path / "adapter")
    for write in (to_peft, to_hf):
        with pytest.raises(WrongWeights, match="made for other weights"):
            write(small, edit_of(small, delta_of(small, MLP.format(1)), base="0" * 64), tmp_path / "adapter")
    assert os.listdir(tmp_path) == []


def test_a_head_that_is_the_embedding_is_exported_whole(tiny_tied: Model, tmp_path: Path) -> None:
    made = edit_of(tiny_tied, delta_of(tiny_tied, "lm_head"))
    to_hf(tiny_tied, made, tmp_path / "new")
    with made.applied(tiny_tied):
        expected = logits(tiny_tied)
    assert torch.equal(logits(load(tmp_path / "new")), expected)


@pytest.mark.parametrize("write", [to_hf, to_peft])
def test_a_folder_is_whole_or_absent(
    small: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Model, Edit, Path], Path]
) -> None:
    made, fingerprint = edit_of(small, delta_of(small, MLP.format(1))), small.fingerprint
    (tmp_path / "empty").mkdir()
    write(small, made, tmp_path / "empty")
    with pytest.raises(SurgeryError, match="holds files already; give a folder that is empty or not there yet"):
        write(small, made, tmp_path / "empty")
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(SurgeryError, match=r"is a file, not a folder|cannot write"):
            write(small, made, place)

    def halfway(*given: object, **_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "save_plain" if write is to_hf else "file_sha256", halfway)
    with pytest.raises(KeyboardInterrupt):
        write(small, made, tmp_path / "new")
    assert sorted(os.listdir(tmp_path)) == ["empty", "file"]
    assert small.fingerprint == fingerprint
