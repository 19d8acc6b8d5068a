"""Models that may be changed, for the tests of edits."""

from __future__ import annotations

import pytest
import torch
from by_hand import in_dtype
from tiny import tiny_model, tiny_tokenizer

from surgery import Model, load


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def model(tiny: Model, request: pytest.FixtureRequest) -> Model:
    """A copy of each tiny model in each type."""
    return in_dtype(tiny, request.param)


@pytest.fixture
def small(gpt2: Model) -> Model:
    """A copy of one of them, where the architecture does not matter."""
    return in_dtype(gpt2, torch.float32)


@pytest.fixture(scope="session")
def tiny_tied() -> Model:
    """One whose head is its embedding table."""
    return load((tiny_model("llama_tied"), tiny_tokenizer()))
