"""What weights are known by, and which of them are read again where their hashes are kept."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny import ARCHITECTURES, tiny_tokenizer
from torch import Tensor

import surgery.fingerprint
from surgery import Model, load
from surgery.fingerprint import fingerprint


@pytest.fixture(scope="module")
def pair() -> Any:
    return ARCHITECTURES["llama"](), tiny_tokenizer(bos=True)


@pytest.fixture
def model(pair: Any) -> Model:
    return load((copy.deepcopy(pair[0]), pair[1]))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The weights that are hashed."""
    found: list[Tensor] = []
    hash_of = surgery.fingerprint.tensor_sha256
    monkeypatch.setattr(surgery.fingerprint, "tensor_sha256", lambda weight: found.append(weight) or hash_of(weight))
    return found


def test_one_bit_or_another_dtype_changes_the_fingerprint(pair: Any) -> None:
    hf = copy.deepcopy(pair[0])
    before = fingerprint(hf)
    assert before == fingerprint(hf) == fingerprint(ARCHITECTURES["llama"]())
    seen = {before}
    for weight in hf.parameters():
        bits = weight.data.view(torch.int32).flatten()
        bits[-1] ^= 1
        seen.add(fingerprint(hf))
        bits[-1] ^= 1
    assert len(seen) == 1 + len(list(hf.parameters()))
    assert fingerprint(hf) == before
    assert fingerprint(hf.to(torch.bfloat16)) not in seen
    assert fingerprint(ARCHITECTURES["llama"](seed=1)) not in seen


def test_large_models_are_hashed_in_threads_to_the_same_end(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = fingerprint(pair[0])
    monkeypatch.setattr(surgery.fingerprint, "WORTH_THREADS", 0)
    assert fingerprint(pair[0]) == alone


def test_exchanged_weights_change_the_fingerprint(pair: Any) -> None:
    hf = copy.deepcopy(pair[0])
    first, second = hf.model.layers[0].mlp.up_proj, hf.model.layers[1].mlp.up_proj
    first.weight, second.weight = second.weight, first.weight
    assert fingerprint(hf) != fingerprint(pair[0])


def test_the_same_bytes_in_another_shape_or_dtype_are_another_fingerprint(pair: Any) -> None:
    hf = copy.deepcopy(pair[0]).to(torch.bfloat16)
    weight, seen = hf.lm_head.weight, {fingerprint(hf)}
    for other in (weight.reshape(weight.shape[::-1]), weight.view(torch.float16)):
        hf.lm_head.weight = torch.nn.Parameter(other, requires_grad=False)
        seen.add(fingerprint(hf))
    assert len(seen) == 3


def test_a_block_reads_again_only_what_was_written_to(model: Model, read: list[Tensor]) -> None:
    weights = list(model.hf.parameters())
    down = model.hf.model.layers[0].mlp.down_proj.weight
    before = model.fingerprint
    with model.read_once():
        assert model.fingerprint == before == model.fingerprint
        assert len(read) == 2 * len(weights)
        old = down.detach().clone()
        with torch.no_grad():
            down.T[0] += 1.0  # through a view
        assert model.fingerprint == fingerprint(model.hf) != before
        with torch.no_grad():
            down.copy_(old)
        read.clear()
        assert model.fingerprint == before
        assert len(read) == 1
        assert read[0] is down
    read.clear()
    assert model.fingerprint == before
    assert len(read) == len(weights)


def test_a_block_sees_a_weight_put_in_another_s_place(model: Model) -> None:
    down = model.hf.model.layers[0].mlp.down_proj
    before, old = model.fingerprint, down.weight
    with model.read_once():
        assert model.fingerprint == before
        with model.read_once():
            down.weight = torch.nn.Parameter(old + 1.0, requires_grad=False)
            assert model.fingerprint == fingerprint(model.hf) != before
        down.weight = old
        assert model.fingerprint == before


def test_outside_a_block_writing_past_pytorch_s_count_is_seen(model: Model) -> None:
    with model.read_once():
        before = model.fingerprint
    next(iter(model.hf.parameters())).data += 1.0
    assert model.fingerprint == fingerprint(model.hf) != before
