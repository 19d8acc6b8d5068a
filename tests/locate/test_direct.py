"""Direct logit attribution: the parts add up on every architecture, and each is what it is called."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, get_args

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from tiny import tiny_model, tiny_tokenizer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from locate.direct import BIASES, EMBEDDING, OTHERS, By, LogitAttribution, direct_logit_attribution
from locate.figures.direct import attribution_bars, attribution_map
from surgery import Fact, Model, SurgeryError, UnsupportedModel, load
from surgery.hooks import TraceDict, hidden, with_hidden
from surgery.tokens import ask_fact


def ids_of(model: Model, fact: Fact, target: str | None = None) -> tuple[Tensor, int]:
    question, _ = ask_fact(model.tokenizer, fact, target or fact.target)
    return torch.tensor([question.prompt_ids]), question.answer_ids[0]


def frozen_norm(norm: nn.Module | None, state: Tensor) -> Callable[[Tensor], Tensor]:
    """The norm's formula, with the scale of one state, and without its bias."""
    if norm is None:
        return lambda x: x
    centred = isinstance(norm, nn.LayerNorm)
    gain = norm.weight.double() + (1 if "Gemma" in type(norm).__name__ else 0)
    eps = next(getattr(norm, name) for name in ("eps", "variance_epsilon") if hasattr(norm, name))
    inner = state - state.mean() if centred else state
    scale = (inner.square().mean() + eps).rsqrt()
    return lambda x: gain * (x - x.mean() if centred else x) * scale


@pytest.mark.parametrize("by", get_args(By))
def test_the_parts_add_up_to_the_models_logit(
    tiny: Model, tiny_fact: Fact, by: By, unchanged: Callable[[Model], None]
) -> None:
    unchanged(tiny)
    ids, answer = ids_of(tiny, tiny_fact)
    foil = ids_of(tiny, tiny_fact, "Rome")[1]
    with torch.no_grad():
        logits = tiny.hf(ids).logits[0, -1].double()
    for found, wanted in (
        (direct_logit_attribution(tiny, tiny_fact, by=by), logits[answer]),
        (direct_logit_attribution(tiny, tiny_fact, by=by, foil="Rome"), logits[answer] - logits[foil]),
    ):
        assert found.model_logit == pytest.approx(float(wanted), abs=1e-5)
        assert found.capped == (tiny.anatomy.architecture == "Gemma2ForCausalLM")
        if not found.capped:
            assert found.logit == found.model_logit
        assert found.logit == pytest.approx(float(found.values.sum()), abs=2e-6 * np.abs(found.values).sum())
        # a positive control: no part is so small that leaving it away would go unnoticed, but for absent biases
        others = np.delete(np.abs(found.values), found.names.index(BIASES))
        assert np.median(others) > 1000 * abs(found.gap)


def test_what_a_site_adds_is_what_its_block_lacks_without_it(tiny: Model, tiny_fact: Fact) -> None:
    check_what_sites_add(tiny, tiny_fact)


def check_what_sites_add(tiny: Model, tiny_fact: Fact) -> None:
    """Silence one site at the last position, with the other one held: the block's output loses what it added."""
    anatomy, (ids, answer) = tiny.anatomy, ids_of(tiny, tiny_fact)
    found = direct_logit_attribution(tiny, tiny_fact)
    states, names = anatomy.names("state"), [*anatomy.names("attention"), *anatomy.names("mlp")]
    with torch.no_grad(), TraceDict(tiny.hf, [*states, *names], clone=True) as clean:
        tiny.hf(ids)
    held = {name: hidden(clean[name].output, 1) for name in [*states, *names]}
    final = tiny.hf.get_submodule(anatomy.final_norm) if anatomy.final_norm else None
    norm = frozen_norm(final, held[states[-1]][0, -1].double())
    row = tiny.hf.get_output_embeddings().weight[answer].double()
    assert np.median(np.abs(found.values[:-1])) > 1e-2
    for layer, parts in enumerate(anatomy.layers):
        for kind in ("attention", "mlp"):
            silent = getattr(parts, kind)

            def hold(output: Any, name: str, silent: str = silent) -> Any:
                new = held[name].clone()
                new[:, -1] = 0 if name == silent else new[:, -1]
                return with_hidden(output, new)

            with torch.no_grad(), TraceDict(tiny.hf, [parts.attention, parts.mlp], edit_output=hold):
                with TraceDict(tiny.hf, [parts.state], clone=True, stop=True) as without:
                    tiny.hf(ids)
            lost = (held[parts.state] - hidden(without[parts.state].output, 1))[0, -1].double()
            assert float(row @ norm(lost)) == pytest.approx(found.value(f"L{layer}.{kind}"), abs=2e-5)


def test_heads_and_neurons_by_hand(toy: tuple[Model, list[Fact]]) -> None:
    """Heads from attention weights and values, neurons from their activations, each through its own columns."""
    model, facts = toy
    anatomy, (ids, answer) = model.anatomy, ids_of(model, facts[0])
    heads, neurons = (direct_logit_attribution(model, facts[0], by=by) for by in ("head", "neuron"))
    hf, gpt2 = model.hf, "GPT2" in anatomy.architecture
    before = hf.config._attn_implementation
    hf.set_attn_implementation("eager")
    attending = [name.rsplit(".", 1)[0] for name in anatomy.names("attention")]
    values = [f"{name}.{'c_attn' if gpt2 else 'v_proj'}" for name in attending]
    watched = [*attending, *values, *anatomy.names("mlp"), *anatomy.names("state")]
    try:
        with torch.no_grad(), TraceDict(hf, watched, retain_input=True) as seen:
            hf(ids)
    finally:
        hf.set_attn_implementation(before)
    state = hidden(seen[anatomy.names("state")[-1]].output, 1)[0, -1].double()
    norm = frozen_norm(hf.get_submodule(anatomy.final_norm), state)
    row = hf.get_output_embeddings().weight[answer].double()
    for layer, parts in enumerate(anatomy.layers):
        value = hidden(seen[values[layer]].output, 1)[0].double()
        value = value[:, -anatomy.d_model :] if gpt2 else value
        weights = seen[attending[layer]].output[1][0, :, -1].double()
        width = anatomy.d_model // 4
        per_head = value.unflatten(-1, (-1, width)).repeat_interleave(4 * width // value.shape[-1], dim=1)
        results = torch.einsum("hk,khd->hd", weights, per_head)
        matrix = hf.get_submodule(parts.attention).weight.double()
        matrix = matrix.T if gpt2 else matrix
        for head in range(4):
            written = matrix[:, head * width : (head + 1) * width] @ results[head]
            assert float(row @ norm(written)) == pytest.approx(heads.grid[layer, head], abs=1e-5)
        down = hf.get_submodule(parts.mlp).weight.double()
        down = down.T if gpt2 else down
        activations = hidden(seen[parts.mlp].input, 1)[0, -1].double()
        for neuron in range(0, anatomy.d_ff, 37):
            written = float(row @ norm(down[:, neuron] * activations[neuron]))
            assert written == pytest.approx(neurons.grid[layer, neuron], abs=1e-5)


def test_a_finer_split_adds_up_to_a_coarser_one(toy: tuple[Model, list[Fact]]) -> None:
    model, facts = toy
    layers, heads, neurons = (direct_logit_attribution(model, facts[1], by=by) for by in get_args(By))
    assert heads.names.count("L2.mlp") == neurons.names.count("L2.attention") == 1
    for name in ("L0.mlp", "L3.mlp", EMBEDDING):
        assert heads.value(name) == layers.value(name)
    named = [name for name in neurons.names if ".n" in name]
    assert len(named) == 20
    assert neurons.value(OTHERS) + sum(map(neurons.value, named)) == pytest.approx(neurons.grid.sum())
    smallest = min(abs(neurons.value(name)) for name in named)
    assert (np.abs(neurons.grid) > smallest - 1e-12).sum() == 20
    place = named[0].removeprefix("L").split(".n")
    assert neurons.value(named[0]) == neurons.grid[int(place[0]), int(place[1])]
    bias = heads.value(BIASES) - layers.value(BIASES)
    attention = sum(layers.value(f"L{i}.attention") for i in range(4))
    assert heads.grid.sum() + bias == pytest.approx(attention, abs=1e-5)
    assert (abs(bias) > 1e-4) == ("GPT2" in model.anatomy.architecture)


def test_a_residual_multiplier_is_found(tiny_fact: Fact) -> None:
    settings: dict[str, Any] = {
        "vocab_size": 400,
        "hidden_size": 32,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "residual_multiplier": 0.3,
        "embedding_multiplier": 5.0,
        "initializer_range": 0.2,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hf = AutoModelForCausalLM.from_config(AutoConfig.for_model("granite", **settings)).requires_grad_(False)
    model = load((hf, tiny_tokenizer()))
    assert model.hf.get_submodule(model.anatomy.names("state")[0]).residual_multiplier == 0.3
    found = direct_logit_attribution(model, tiny_fact, by="neuron")
    assert float(found.values.sum()) == pytest.approx(found.logit, abs=1e-5)
    check_what_sites_add(model, tiny_fact)


def test_a_block_that_is_no_sum_is_refused(tiny_fact: Fact) -> None:
    hf = tiny_model("bloom", apply_residual_connection_post_layernorm=True)
    with pytest.raises(UnsupportedModel, match="BloomBlock of layer 0 does not add its attention and mlp"):
        direct_logit_attribution(load((hf, tiny_tokenizer())), tiny_fact)


def test_heads_that_do_not_share_evenly_are_refused(tiny_fact: Fact) -> None:
    model = load((tiny_model("llama"), tiny_tokenizer()))
    model.hf.config.num_attention_heads = 7
    with pytest.raises(UnsupportedModel, match=r"7 heads do not share \[32\] inputs evenly"):
        direct_logit_attribution(model, tiny_fact, by="head")


def test_wrong_options_name_the_remedy(toy: tuple[Model, list[Fact]]) -> None:
    model, facts = toy
    with pytest.raises(SurgeryError, match="top at least 1"):
        direct_logit_attribution(model, facts[0], top=0)
    with pytest.raises(SurgeryError, match="begins with the answer's own token; give one"):
        direct_logit_attribution(model, facts[0], foil=facts[0].target)
    with pytest.raises(SurgeryError, match=r"no part 'L0.n3' here; there are embedding"):
        direct_logit_attribution(model, facts[0]).value("L0.n3")


@pytest.fixture(scope="module")
def found() -> LogitAttribution:
    fact = Fact(subject="Paris", template="See {} in the", target="city")
    return direct_logit_attribution(load((tiny_model("gpt2"), tiny_tokenizer())), fact, by="head")


def test_a_record_holds_the_parts(found: LogitAttribution) -> None:
    record = json.loads(json.dumps(found.as_record()))
    assert sum(record["values"].values()) + record["gap"] == pytest.approx(record["logit"])
    assert np.array_equal(record["grid"], found.grid)


def test_bars_are_sorted_and_add_up(found: LogitAttribution) -> None:
    ax = attribution_bars(found, k=5)
    widths = [bar.get_width() for bar in ax.patches]
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels[:5] == [name for name, _ in found.top(5)]
    assert labels[5] == f"{len(found.names) - 5} others"
    assert np.all(np.diff(np.abs(widths[:5])) <= 0)
    assert sum(widths) == pytest.approx(found.values.sum())


def test_the_map_is_centred_at_zero(found: LogitAttribution) -> None:
    ax = plt.subplots()[1]
    assert found.plot(ax) is ax
    assert attribution_map(found).collections[0].get_array().shape == found.grid.shape
    image = ax.collections[0]
    assert image.norm.vmin == -image.norm.vmax == -np.abs(found.grid).max()


def test_the_real_model_adds_up(smol: Model, unchanged: Callable[[Model], None]) -> None:
    unchanged(smol)
    fact = Fact(subject="The Eiffel Tower", template="{} is located in the city of", target="Paris")
    ids, answer = ids_of(smol, fact)
    with torch.no_grad():
        logit = float(smol.hf(ids).logits[0, -1, answer])
    for by in get_args(By):
        found = direct_logit_attribution(smol, fact, by=by)
        assert float(found.values.sum()) == pytest.approx(logit, abs=1e-4)
