"""Relevance rules: every value stays, relevance is conserved from layer to layer, and what is not met is refused."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface
from transformers.activations import ACT2FN

from locate.relevance import RULES, RelevancePatching, Rule, _is_activation, activation_modules, relevance_rules
from surgery import Model, SurgeryError, load
from surgery.hooks import TraceDict, hidden, with_hidden
from surgery.tokens import pad

IDS = (5, 9, 30, 44, 100, 7)
ANSWER = 17


def logits_and_relevance(
    model: Model, context: AbstractContextManager[None], dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """The last logits, and for each layer the sum over positions of state . gradient of one logit."""
    zeros: dict[str, Tensor] = {}
    states: dict[str, Tensor] = {}

    def probe(output: object, name: str) -> object:
        states[name] = hidden(output, 1).detach()
        zeros[name] = torch.zeros_like(states[name]).requires_grad_()
        return with_hidden(output, hidden(output, 1) + zeros[name])

    batch = pad([IDS])
    names = model.anatomy.names("state")
    with context, TraceDict(model.hf, names, retain_output=False, edit_output=probe):
        logits = model.logits_at(batch, batch.columns([-1]))[0]
    gradients = torch.autograd.grad(logits[ANSWER], [zeros[name] for name in names])
    sums = [(states[name].to(dtype) * one.to(dtype)).sum() for name, one in zip(names, gradients, strict=True)]
    return logits.detach(), torch.stack(sums)


@contextmanager
def without_biases(model: Model) -> Iterator[None]:
    """Biases are 0 inside the block, and come back as they were."""
    biases = {name: one.clone() for name, one in model.hf.named_parameters() if name.endswith("bias")}
    weights = dict(model.hf.named_parameters())
    with torch.no_grad():
        try:
            for name in biases:
                weights[name].zero_()
            with torch.enable_grad():
                yield
        finally:
            for name, old in biases.items():
                weights[name].copy_(old)


def llama() -> Model:
    return load((tiny_model("llama"), tiny_tokenizer()))


def test_no_value_changes_and_gradients_do(tiny: Model, unchanged: Callable[[Model], None]) -> None:
    unchanged(tiny)
    plain, steepness = logits_and_relevance(tiny, nullcontext())
    ruled, relevance = logits_and_relevance(tiny, relevance_rules(tiny))
    assert (ruled - plain).abs().max() <= 1e-6 * plain.abs().max()
    assert (relevance - steepness).abs().max() > 1e-2 * steepness.abs().max()


def test_relevance_is_conserved_where_there_are_no_biases(tiny: Model, unchanged: Callable[[Model], None]) -> None:
    unchanged(tiny)
    with without_biases(tiny):
        logits, relevance = logits_and_relevance(tiny, relevance_rules(tiny))
        _, steepness = logits_and_relevance(tiny, nullcontext())
    capped = getattr(tiny.hf.config, "final_logit_softcapping", None)
    # Gemma 2 bends the logit itself, which scales the relevance of all layers alike
    expected = float(relevance[-1] if capped else logits[ANSWER])
    torch.testing.assert_close(relevance, torch.full_like(relevance, expected), rtol=1e-4, atol=1e-5)
    # positive control: the plain gradient conserves nothing
    assert (steepness - expected).abs().max() > 0.1 * abs(expected)


@pytest.mark.parametrize(
    "left_out", [("norm",), ("attention",), ("activation", "product"), ("product",), RULES], ids=" ".join
)
def test_every_rule_is_needed(left_out: tuple[Rule, ...]) -> None:
    model = llama()  # it has no biases
    logits, whole = logits_and_relevance(model, relevance_rules(model))
    rules = tuple(rule for rule in RULES if rule not in left_out)
    _, partial = logits_and_relevance(model, relevance_rules(model, rules))
    assert (whole - logits[ANSWER]).abs().max() < 1e-4 * logits[ANSWER].abs()
    assert (partial - logits[ANSWER]).abs().max() > 0.02 * logits[ANSWER].abs()


def test_biases_take_their_share() -> None:
    model = load((tiny_model("gpt2"), tiny_tokenizer()))
    logits, relevance = logits_and_relevance(model, relevance_rules(model))
    assert (relevance - logits[ANSWER]).abs().max() > 0.02 * logits[ANSWER].abs()


def test_fused_and_written_out_attention_share_alike() -> None:
    relevance = []
    for kind in ("sdpa", "eager"):
        model = load((tiny_model("gpt2", attn_implementation=kind), tiny_tokenizer()))
        relevance.append(logits_and_relevance(model, relevance_rules(model))[1])
    torch.testing.assert_close(relevance[0], relevance[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3"])
def test_values_stay_in_sixteen_bits(name: str) -> None:
    hf = copy.deepcopy(tiny_model(name)).to(torch.bfloat16)
    model = load((hf, tiny_tokenizer()))
    plain, _ = logits_and_relevance(model, nullcontext())
    ruled, relevance = logits_and_relevance(model, relevance_rules(model))
    assert torch.equal(plain, ruled)
    assert relevance.isfinite().all()


@pytest.mark.parametrize("centred", [True, False], ids=["layer norm", "rms norm"])
def test_a_norm_is_its_frozen_linear_map(centred: bool) -> None:
    from locate.relevance import _layer_norm, _rms_norm

    draw = torch.Generator().manual_seed(0)
    states, weight, out_grad = (torch.randn(3, 8, generator=draw, dtype=torch.float64) for _ in range(3))
    states.requires_grad_()
    middle = states.detach() - (states.detach().mean(-1, keepdim=True) if centred else 0)
    scale = 1 / (middle.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    if centred:
        out = _layer_norm(functional.layer_norm, states, (8,), weight[0], None, 1e-5)
        by_hand = (states - states.mean(-1, keepdim=True)) * scale * weight[0]
    else:
        out = _rms_norm(functional.rms_norm, states, (8,), weight[0], 1e-5)
        by_hand = states * scale * weight[0]
    torch.testing.assert_close(out, by_hand, rtol=1e-6, atol=1e-6)
    (got,) = torch.autograd.grad((out * out_grad).sum(), states)
    (wanted,) = torch.autograd.grad((by_hand * out_grad).sum(), states)
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)
    # positive control: the norm's own gradient is another
    own = functional.layer_norm if centred else functional.rms_norm
    (steep,) = torch.autograd.grad((own(states, (8,), weight[0]) * out_grad).sum(), states)
    assert (steep - wanted).abs().max() > 0.1


def test_every_layer_has_one_activation(tiny: Model) -> None:
    names = activation_modules(tiny)
    assert len(names) == len(tiny.anatomy.layers)
    for name, block in zip(names, tiny.anatomy.names("state"), strict=True):
        assert name.startswith(block + ".")


@pytest.mark.parametrize("name", sorted(set(ACT2FN) - {"linear", "xielu"}))
def test_every_activation_is_known_as_one(name: str) -> None:
    assert _is_activation(ACT2FN[name], torch.device("cpu"), torch.float32)


@pytest.mark.parametrize(
    "module",
    [nn.Softmax(-1), nn.Dropout(0.1).eval(), nn.Identity(), nn.LayerNorm(12), nn.Linear(12, 12), nn.Flatten()],
    ids=lambda module: type(module).__name__,
)
def test_nothing_else_is(module: nn.Module) -> None:
    assert not _is_activation(module, torch.device("cpu"), torch.float32)


def own_softmax(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, **_: object
) -> tuple[Tensor, None]:
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = (query @ key.transpose(-1, -2) * scaling).exp()
    return (scores / scores.sum(-1, keepdim=True) @ value).transpose(1, 2), None


def test_attention_that_no_rule_meets_is_refused() -> None:
    AttentionInterface.register("own_softmax", own_softmax)
    model = load((tiny_model("llama"), tiny_tokenizer()))
    logits_and_relevance(model, relevance_rules(model))
    model.hf.set_attn_implementation("own_softmax")
    with pytest.raises(SurgeryError, match="the attention rule met 0 calls in the 4 layers of LlamaForCausalLM"):
        logits_and_relevance(model, relevance_rules(model))


def test_a_block_in_which_nothing_ran_is_refused() -> None:
    with pytest.raises(SurgeryError, match="run the model inside the block"), relevance_rules(llama()):
        pass


def test_an_interruption_leaves_no_rule_behind(unchanged: Callable[[Model], None]) -> None:
    model = llama()
    unchanged(model)
    model.hf.requires_grad_(True)
    before = logits_and_relevance(model, nullcontext())[1]

    def interrupted() -> None:
        with relevance_rules(model):
            assert not any(weight.requires_grad for weight in model.hf.parameters())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert all(weight.requires_grad for weight in model.hf.parameters())
    assert torch.equal(logits_and_relevance(model, nullcontext())[1], before)


def test_rules_that_cannot_be_followed_are_refused() -> None:
    with pytest.raises(SurgeryError, match="no relevance rule 'gate'; choose among norm, attention"):
        inspect.unwrap(RelevancePatching.__init__)(object.__new__(RelevancePatching), rules=("gate",))
    with pytest.raises(SurgeryError, match="product rule needs the activation rule"):
        RelevancePatching(rules=("norm", "product"))
    assert str(RelevancePatching(rules=("norm",))).endswith("without the rules for attention, activation, product")
