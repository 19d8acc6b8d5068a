"""The tiny model of Llama's architecture, for the tests of locate."""

from __future__ import annotations

import pytest
from tiny import tiny_model, tiny_tokenizer

from surgery import Model, load


@pytest.fixture(scope="module")
def llama() -> Model:
    return load((tiny_model("llama"), tiny_tokenizer()))
