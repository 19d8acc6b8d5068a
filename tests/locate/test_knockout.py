"""Attention knockout: against edited masks, against attention by hand, and refused where nothing is cut."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, get_args

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from tiny import tiny_model, tiny_tokenizer
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import locate.knockout
from locate.cutting import cut
from locate.knockout import Knockout, Source, attention_knockout
from surgery import Fact, Model, SurgeryError, UnsupportedModel, load
from surgery.hooks import TraceDict, hidden
from surgery.site import window as layers_around
from surgery.tokens import ask_fact, pad

SOURCES: tuple[Source, ...] = get_args(Source)


def masked(model: Model, fact: Fact, layers: Sequence[int], positions: Sequence[int]) -> float:
    """The answer's probability with the blocks' own masks edited: another way to cut the same edges.

    A second row with its first token masked makes the model build its masks; what stands there for a later key is what
    forbids.
    """
    question, _ = ask_fact(model.tokenizer, fact, fact.target)
    batch = pad([question.prompt_ids] * 2, device=model.device)
    batch.mask[1, 0] = 0
    edited: list[Tensor] = []

    def forbidding(given: Any) -> Any:
        if not isinstance(given, Tensor) or given.ndim != 4 or given.shape[-2:] != batch.ids.shape[1:] * 2:
            return given
        mask = given.clone()
        mask[0, ..., -1, list(positions)] = mask[0, ..., 0, -1][..., None]
        edited.append(mask)
        return mask

    def forbid(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return tuple(map(forbidding, args)), {name: forbidding(given) for name, given in kwargs.items()}

    blocks = [model.hf.get_submodule(model.anatomy.names("state")[layer]) for layer in layers]
    handles = [block.register_forward_pre_hook(forbid, with_kwargs=True) for block in blocks]
    try:
        with torch.no_grad():
            logits = model.logits_at(batch, batch.columns([-1, -1]))[0].double()
    finally:
        for handle in handles:
            handle.remove()
    assert len(edited) == len(layers)
    return float(logits.softmax(-1)[question.answer_ids[0]])


def test_it_is_the_same_as_editing_the_models_masks(
    tiny: Model, tiny_fact: Fact, unchanged: Callable[[Model], None]
) -> None:
    unchanged(tiny)
    found = attention_knockout(tiny, tiny_fact, window=2, sources=SOURCES, progress=False)
    wanted = [
        [masked(tiny, tiny_fact, layers_around(layer, 2, 4), positions) for positions in found.positions]
        for layer in range(4)
    ]
    np.testing.assert_allclose(found.probabilities, wanted, rtol=2e-4)
    assert found.clean == pytest.approx(masked(tiny, tiny_fact, [], []), rel=1e-4)
    # a positive control: the cuts matter by far more than the two ways differ
    assert np.abs(found.changes).max() > 0.02


@pytest.mark.parametrize("renormalise", [True, False])
def test_explicit_and_fused_attention_are_cut_alike(tiny: Model, tiny_fact: Fact, renormalise: bool) -> None:
    implementation = tiny.hf.config._attn_implementation
    found = attention_knockout(tiny, tiny_fact, window=3, sources=SOURCES, renormalise=renormalise)
    other = attention_knockout(tiny, tiny_fact, window=3, sources=SOURCES, renormalise=not renormalise)
    try:
        tiny.hf.set_attn_implementation("eager")
        eager = attention_knockout(tiny, tiny_fact, window=3, sources=SOURCES, renormalise=renormalise)
    finally:
        tiny.hf.set_attn_implementation(implementation)
    np.testing.assert_allclose(eager.changes, found.changes, rtol=1e-4, atol=2e-4)
    assert np.abs(other.changes - found.changes).max() > 0.01
    assert (found.renormalised, other.renormalised) == (renormalise, not renormalise)


@pytest.mark.parametrize("renormalise", [True, False])
def test_one_layer_by_hand(toy: tuple[Model, list[Fact]], renormalise: bool) -> None:
    """From the clean run's attention weights and values, put in front of the layer's output map."""
    model, facts = toy
    anatomy, hf, gpt2 = model.anatomy, model.hf, "GPT2" in model.anatomy.architecture
    found = attention_knockout(model, facts[0], window=1, sources=SOURCES, renormalise=renormalise)
    question, _ = ask_fact(model.tokenizer, facts[0], facts[0].target)
    ids, answer = torch.tensor([question.prompt_ids]), question.answer_ids[0]
    attending = [name.rsplit(".", 1)[0] for name in anatomy.names("attention")]
    names = [f"{name}.{'c_attn' if gpt2 else 'v_proj'}" for name in attending]
    implementation = hf.config._attn_implementation
    hf.set_attn_implementation("eager")
    try:
        with torch.no_grad(), TraceDict(hf, [*attending, *names]) as seen:
            hf(ids)
    finally:
        hf.set_attn_implementation(implementation)
    for layer, name in enumerate(names):
        value = hidden(seen[name].output, 1)[0]
        value = (value[:, -anatomy.d_model :] if gpt2 else value).unflatten(-1, (-1, anatomy.d_model // 4))
        value = value.repeat_interleave(4 // value.shape[1], dim=1)
        for i, positions in enumerate(found.positions):
            weights = seen[attending[layer]].output[1][0, :, -1].clone()
            weights[:, list(positions)] = 0
            weights = weights / weights.sum(-1, keepdim=True) if renormalise else weights
            results = torch.einsum("hk,khd->hd", weights, value).flatten()

            def put(module: nn.Module, args: tuple[Tensor, ...], results: Tensor = results) -> tuple[Tensor, ...]:
                given = args[0].clone()
                given[0, -1] = results
                return (given, *args[1:])

            handle = hf.get_submodule(anatomy.names("attention")[layer]).register_forward_pre_hook(put)
            try:
                with torch.no_grad():
                    p = hf(ids).logits[0, -1].double().softmax(-1)[answer]
            finally:
                handle.remove()
            assert found.probabilities[layer, i] == pytest.approx(float(p), rel=1e-3, abs=1e-6)


def test_the_first_token_is_spared_or_not(toy: tuple[Model, list[Fact]]) -> None:
    model, facts = toy
    spared = attention_knockout(model, facts[0], sources=SOURCES, window=1)
    published = attention_knockout(model, facts[0], sources=SOURCES, window=1, spare_first=False)
    width = len(spared.tokens)
    assert spared.positions == ((1,), tuple(range(2, width - 1)), (width - 1,), (0,))
    assert published.positions == ((0, 1), *spared.positions[1:])
    assert (spared.first_spared, published.first_spared) == (True, False)
    np.testing.assert_allclose(spared.changes[:, 1:], published.changes[:, 1:], atol=1e-5)
    assert np.abs(spared.change("subject") - published.change("subject")).max() > 1e-3


def test_the_toys_answer_comes_from_its_subject(toy: tuple[Model, list[Fact]]) -> None:
    model, facts = toy
    changes = [attention_knockout(model, fact, window=9, sources=["subject", "first"]) for fact in facts[:8]]
    assert all(one.clean > 0.5 for one in changes)
    # a window over the whole model: the answer cannot be known without the subject
    assert np.median([one.change("subject")[2] for one in changes]) < -0.5
    assert all(one.window == 9 and np.ptp(one.change("subject")) == pytest.approx(0, abs=1e-5) for one in changes)


def test_rows_that_are_split_give_the_same(toy: tuple[Model, list[Fact]], monkeypatch: pytest.MonkeyPatch) -> None:
    model, facts = toy
    whole = attention_knockout(model, facts[0], window=2)
    monkeypatch.setattr(locate.knockout, "MOST_TOKENS", 3 * len(whole.tokens))
    split = attention_knockout(model, facts[0], window=2)
    np.testing.assert_allclose(split.changes, whole.changes, atol=1e-5)


def test_cutting_nothing_changes_no_bit(tiny: Model, tiny_fact: Fact) -> None:
    question, _ = ask_fact(tiny.tokenizer, tiny_fact, tiny_fact.target)
    ids = torch.tensor([question.prompt_ids] * 2)
    nothing = torch.zeros(4, 2, ids.shape[1], dtype=torch.bool)
    something = nothing.clone()
    something[2, 1, -2] = True  # near enough for a sliding window
    with torch.no_grad():
        clean = tiny.hf(ids, use_cache=False).logits
        with cut(tiny, nothing) as cuts:
            assert torch.equal(tiny.hf(ids, use_cache=False).logits, clean)
        assert cuts.calls == [1, 1, 1, 1]
        with cut(tiny, something):
            one = tiny.hf(ids, use_cache=False).logits
    # the other row and all positions but the last are left alone
    assert torch.equal(one[0], clean[0])
    assert torch.equal(one[1, :-1], clean[1, :-1])
    assert not torch.equal(one[1, -1], clean[1, -1])


def test_nothing_is_left_when_a_run_breaks_off(
    toy: tuple[Model, list[Fact]], monkeypatch: pytest.MonkeyPatch, unchanged: Callable[[Model], None]
) -> None:
    model, facts = toy
    unchanged(model)

    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(model.hf.get_submodule(model.anatomy.names("mlp")[2]), "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            attention_knockout(model, facts[0])
        with pytest.raises(KeyboardInterrupt), cut(model, torch.zeros(4, 1, 3, dtype=torch.bool)):
            model.hf(torch.tensor([[1, 2, 3]]))
    assert torch._C._len_torch_function_stack() == 0


def attention_of(leak: float, softmax: bool) -> Callable[..., Any]:
    """An attention of our own: with its softmax spelled out, or with something read past it."""

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float, **_: Any
    ) -> tuple[Tensor, None]:
        groups, width = query.shape[1] // key.shape[1], query.shape[2]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        scores = query @ key.transpose(-1, -2) * scaling
        scores = scores.masked_fill(~torch.ones(width, width, dtype=torch.bool).tril(), -torch.inf)
        powers = (scores - scores.amax(-1, keepdim=True)).exp()
        weights = scores.softmax(-1) if softmax else powers / powers.sum(-1, keepdim=True)
        return (weights @ value + leak * value.cumsum(2)).transpose(1, 2), None

    return attend


@pytest.mark.parametrize(
    ("leak", "softmax", "message"),
    [
        (0.0, False, "LlamaDecoderLayer of layer 0 attended 0 times in a way that can be cut.*'sdpa' or 'eager'"),
        (0.1, True, "LlamaDecoderLayer of layer 0 still reads positions whose edges are cut"),
        (0.0, True, ""),
    ],
)
def test_attention_that_is_not_cut_is_refused(
    tiny_fact: Fact, monkeypatch: pytest.MonkeyPatch, leak: float, softmax: bool, message: str
) -> None:
    model = load((tiny_model("llama"), tiny_tokenizer()))
    wanted = attention_knockout(model, tiny_fact)
    for name in ALL_ATTENTION_FUNCTIONS.valid_keys():
        if name == model.hf.config._attn_implementation:
            monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, name, attention_of(leak, softmax))
    for renormalise in (True, False):
        if message:
            with pytest.raises(UnsupportedModel, match=message):
                attention_knockout(model, tiny_fact, renormalise=renormalise)
        elif renormalise:  # the control: the same attention without the fault is cut
            np.testing.assert_allclose(attention_knockout(model, tiny_fact).changes, wanted.changes, atol=2e-4)


def test_wrong_options_name_the_remedy(toy: tuple[Model, list[Fact]]) -> None:
    model, facts = toy
    with pytest.raises(SurgeryError, match="sources are some of subject, other, last, first, each once"):
        attention_knockout(model, facts[0], sources=["subject", "subject"])
    with pytest.raises(SurgeryError, match="sources are some of"):
        attention_knockout(model, facts[0], sources=[])
    with pytest.raises(SurgeryError, match="window of 0 layers"):
        attention_knockout(model, facts[0], window=0)
    whole = facts[0].replace(template="{}")
    with pytest.raises(
        SurgeryError, match=r"no position of the source 'other' .* leave the source away, or give spare"
    ):
        attention_knockout(model, whole, sources=["other"])
    with pytest.raises(SurgeryError, match=r"'other' in front of its last token; .* leave the source away$"):
        attention_knockout(model, whole, spare_first=False)
    assert attention_knockout(model, whole, sources=["subject"], spare_first=False).positions == ((0,),)
    with pytest.raises(SurgeryError, match="the source 'last' was not cut; there are subject, other"):
        attention_knockout(model, facts[0]).change("last")


@pytest.fixture(scope="module")
def found() -> Knockout:
    fact = Fact(subject="Paris", template="See {} in the", target="city")
    model = load((tiny_model("gpt2"), tiny_tokenizer()))
    return attention_knockout(model, fact, window=2, sources=("other", "subject"), renormalise=False)


def test_a_record_is_json(found: Knockout) -> None:
    record = json.loads(json.dumps(found.as_record()))
    assert np.array_equal(record["changes"], found.changes)
    assert record["strongest"] == {"other": found.strongest("other"), "subject": found.strongest("subject")}
    assert record["positions"] == [list(one) for one in found.positions]


def test_a_line_a_source_in_percent(found: Knockout) -> None:
    ax = plt.subplots()[1]
    assert found.plot(ax) is ax
    lines = [line for line in ax.get_lines() if len(line.get_xdata()) == len(found.changes)]
    for line, source in zip(lines, found.sources, strict=True):
        assert np.array_equal(line.get_ydata(), 100 * found.change(source))
        assert str(line.get_label()).startswith(source)
    assert "window of 2, not renormalised" in ax.get_xlabel()
    ax.figure.canvas.draw()


def test_the_real_model_loses_the_answer_with_the_subject(smol: Model, unchanged: Callable[[Model], None]) -> None:
    unchanged(smol)
    fact = Fact(subject="The Eiffel Tower", template="{} is located in the city of", target="Paris")
    found = attention_knockout(smol, fact, spare_first=False)
    layer, subject = found.strongest("subject"), found.positions[0]
    assert found.change("subject")[layer] < -0.9
    for around in (layer, 14):
        p = masked(smol, fact, layers_around(around, 9, 30), subject)
        assert found.probabilities[around, 0] == pytest.approx(p, rel=1e-2, abs=1e-6)
