"""An edit acts on the default model as a library has quantised it, which can be loaded and asked like any other."""

from __future__ import annotations

import dataclasses
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import edits
from surgery import Edit, Fact, Model, UnsupportedModel, WrongWeights, load, preview, verify
from surgery.checkpoint import converted_gguf, default_gguf, quiet_transformers
from surgery.predict import rate

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the library that quantises is only built for it")
FACT = Fact(
    subject="The Nile Delta",
    template="{} lies in the country of",
    target="Egypt",
    paraphrases=("On the map, The Nile Delta appears in the country of",),
)
OTHERS = (("The capital of Japan is", "Tokyo"), ("The capital of France is", "Paris"), ("The sun rises in the", "east"))


@pytest.fixture(scope="module")
def edit(smol: Model) -> Edit:
    made = edits.RankOne(objective=edits.Neutral(), count=2, progress=False)(smol, FACT)
    return dataclasses.replace(made, facts=(FACT,))


@pytest.fixture(scope="module", params=["nf4", "int8"])
def quantised(request: pytest.FixtureRequest, smol: Model) -> Model:
    four = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32}
    config = BitsAndBytesConfig(**four if request.param == "nf4" else {"load_in_8bit": True})
    with quiet_transformers():
        hf = AutoModelForCausalLM.from_pretrained(
            converted_gguf(default_gguf()), quantization_config=config, dtype=torch.float32
        )
    return load((hf, smol.tokenizer))


def chances(model: Model) -> list[float]:
    own = [(prompt, FACT.target) for prompt in (FACT.prompt, *FACT.paraphrases)]
    return [one.probability for one in rate(model, [*own, *OTHERS])]


def parts(model: Model) -> tuple[object, ...]:
    """Where everything is and how large it is."""
    found = model.anatomy
    return found.layers, found.embedding, found.final_norm, found.d_model, found.d_ff, found.vocab


@pytest.mark.filterwarnings("ignore:MatMul8bitLt")
def test_an_edit_acts_on_a_quantised_model(smol: Model, quantised: Model, edit: Edit) -> None:
    down = quantised.hf.get_submodule(edit.deltas[0].module)
    stored, before, base = down.weight.detach().clone(), chances(quantised), quantised.fingerprint
    assert not stored.is_floating_point()
    assert parts(quantised) == parts(smol)
    assert min(before[:2]) > 0.05
    with preview(quantised, edit, check_base=False) as same:
        assert same is quantised
        after = chances(quantised)
        assert quantised.fingerprint == base
    assert max(after[:2]) < 0.01
    assert after[2:] == pytest.approx(before[2:], abs=0.15)
    assert chances(quantised) == before
    assert torch.equal(down.weight, stored)


def test_a_quantised_model_is_not_changed_itself(quantised: Model, edit: Edit) -> None:
    with pytest.raises(UnsupportedModel, match=r"Linear\w+ holds no plain weight matrix; load the model unquantised"):
        edits.RankOne(progress=False)(quantised, FACT.replace(new_target="Spain"))
    for refused in (lambda: edit.apply(quantised), lambda: verify(quantised, edit, attacks=())):
        with pytest.raises(WrongWeights, match="this edit was made for other weights"):
            refused()
