"""Watching and changing modules for the length of a block, and leaving nothing behind."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny import ARCHITECTURES
from torch import Tensor, nn
from transformers import PreTrainedModel

from surgery import SurgeryError
from surgery.hooks import Trace, TraceDict, frozen, get_module, hidden, with_hidden

IDS = torch.tensor([[5, 60, 7, 300, 9]])
MLP = "transformer.h.1.mlp"


@pytest.fixture(scope="module")
def shared() -> PreTrainedModel:
    return ARCHITECTURES["gpt2"]()


@pytest.fixture
def hf(shared: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """A GPT-2 that has no hook at the test's end."""
    yield shared
    assert hooked(shared) == []


def states_of(hf: PreTrainedModel) -> tuple[Tensor, ...]:
    """Hidden states as the model itself gives them; it keeps hooks of its own for that, so a copy is asked."""
    return copy.deepcopy(hf)(IDS, output_hidden_states=True).hidden_states


def hooked(model: nn.Module) -> list[str]:
    return [name for name, one in model.named_modules() if one._forward_hooks or one._forward_pre_hooks]


def silenced(hf: PreTrainedModel) -> Tensor:
    """Logits of a copy whose mlp of block 1 writes nothing, by its weights."""
    other = copy.deepcopy(hf)
    for weight in other.get_submodule(MLP).c_proj.parameters():
        weight.zero_()
    return other(IDS).logits


def test_the_output_is_the_modules(hf: PreTrainedModel) -> None:
    with Trace(hf, "transformer.h.1") as trace:
        assert hooked(hf) == ["transformer.h.1"]
        hf(IDS)
    states = states_of(hf)
    assert torch.equal(hidden(trace.output, 1), states[2])
    assert not torch.equal(states[1], states[2])


def test_the_input_is_the_modules_first_argument(hf: PreTrainedModel) -> None:
    with Trace(hf, f"{MLP}.c_proj", retain_input=True) as trace:
        hf(IDS)
    module = get_module(hf, f"{MLP}.c_proj")
    assert torch.allclose(trace.output, trace.input @ module.weight + module.bias, atol=1e-5)
    assert trace.input.shape == (1, 5, 80)


def test_an_input_given_by_name_is_kept() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(input=x)

    model = Named()
    with Trace(model, "inner", retain_input=True) as trace:
        model(torch.ones(3))
    assert torch.equal(trace.input, torch.ones(3))


def test_edit_output_changes_what_later_modules_see(hf: PreTrainedModel) -> None:
    names = []

    def silence(output: Tensor, name: str) -> Tensor:
        names.append(name)
        return torch.zeros_like(output)

    expected, before = silenced(hf), hf(IDS).logits
    with Trace(hf, MLP, edit_output=silence) as trace:
        logits = hf(IDS).logits
    assert torch.allclose(logits, expected, atol=1e-5)
    assert (logits - before).abs().max() > 0.1
    assert names == [MLP]
    assert not trace.output.any()
    assert torch.equal(hf(IDS).logits, before)


def test_the_last_run_is_the_one_kept(hf: PreTrainedModel) -> None:
    with Trace(hf, MLP) as trace:
        hf(IDS)
        hf(IDS[:, :2])
    assert trace.output.shape == (1, 2, 32)


def test_a_tuple_stays_a_tuple(hf: PreTrainedModel) -> None:
    with Trace(hf, "transformer.h.0.attn", clone=True) as trace:
        hf(IDS)
    assert isinstance(trace.output, tuple)
    assert hidden(trace.output, 1).shape == (1, 5, 32)
    new = torch.zeros(1, 5, 32)
    assert with_hidden((trace.output[0], "rest"), new)[1:] == ("rest",)
    assert with_hidden([trace.output[0], "rest"], new)[0] is not trace.output[0]
    assert torch.equal(with_hidden(trace.output[0], new), new)


def test_rows_put_into_one_are_taken_apart_again() -> None:
    flat = torch.arange(24.0).reshape(6, 4)
    assert torch.equal(hidden(flat, 2), flat.reshape(2, 3, 4))
    assert with_hidden(flat, flat.reshape(2, 3, 4) + 1).shape == (6, 4)


def test_what_is_no_hidden_state_is_refused() -> None:
    with pytest.raises(SurgeryError, match="a module returned str where hidden states were expected"):
        hidden("x", 1)


def test_clone_and_detach(hf: PreTrainedModel) -> None:
    frame = nn.Sequential(nn.Identity(), nn.Linear(3, 3))
    x = torch.ones(1, 3, requires_grad=True)
    with Trace(frame, "0") as kept, Trace(frame, "0", clone=True) as cloned, Trace(frame, "1", detach=True) as cut:
        frame(x)
    assert kept.output is x
    assert cloned.output is not x
    assert cloned.output.requires_grad
    assert not cut.output.requires_grad


def test_a_clone_is_safe_from_later_changes_in_place() -> None:
    # Falcon adds its attention's output to its mlp's
    falcon, name = ARCHITECTURES["falcon"](), "transformer.h.1.mlp"
    with Trace(falcon, name, stop=True) as alone:
        falcon(IDS)
    with Trace(falcon, name) as kept, Trace(falcon, name, clone=True) as cloned:
        falcon(IDS)
    assert torch.equal(cloned.output, alone.output)
    assert not torch.allclose(kept.output, alone.output, atol=0.1)


def test_retain_grad_gives_the_gradient_at_the_output(hf: PreTrainedModel) -> None:
    push = torch.zeros(32, requires_grad=True)
    with torch.enable_grad(), Trace(hf, MLP, edit_output=lambda out, _: out + push, retain_grad=True) as trace:
        loss = hf(IDS).logits[0, -1].square().sum()
    loss.backward()
    assert trace.output.grad.shape == (1, 5, 32)
    assert push.grad is not None
    assert push.grad.abs().max() > 0.1
    assert torch.allclose(trace.output.grad.sum((0, 1)), push.grad, rtol=1e-4, atol=1e-3)


def test_stop_ends_the_run_after_the_module(hf: PreTrainedModel) -> None:
    ran = []
    finished = False
    with Trace(hf, "transformer.h.2", edit_output=lambda out, name: ran.append(name) or out):
        with Trace(hf, MLP, stop=True) as trace:
            hf(IDS)
            finished = True
    assert not finished
    assert ran == []
    assert trace.output.shape == (1, 5, 32)


def test_stop_is_quiet_only_about_its_own_end(hf: PreTrainedModel) -> None:
    with Trace(hf, MLP, stop=True) as trace:
        pass
    with pytest.raises(SurgeryError, match="has not run inside the block"):
        _ = trace.output
    with pytest.raises(ZeroDivisionError), Trace(hf, MLP, stop=True):
        _ = 1 / 0
    with pytest.raises(ZeroDivisionError), TraceDict(hf, [MLP], stop=True):
        _ = 1 / 0


def test_a_body_that_catches_exceptions_does_not_keep_the_stop(hf: PreTrainedModel) -> None:
    caught, went_on = [], []
    with Trace(hf, MLP, stop=True) as trace:
        try:
            hf(IDS)
        except Exception as error:
            caught.append(error)
        went_on.append(True)
    assert caught == went_on == []
    assert trace.output.shape == (1, 5, 32)
    assert hooked(hf) == []


def test_a_module_can_be_given_as_itself(hf: PreTrainedModel) -> None:
    with Trace(hf, get_module(hf, MLP)) as trace:
        hf(IDS)
    assert trace.name == MLP
    assert trace.output.shape == (1, 5, 32)
    with pytest.raises(SurgeryError, match="Linear is no part of this GPT2LMHeadModel"):
        Trace(hf, nn.Linear(1, 1))


def test_an_unknown_name_is_refused_with_the_nearest(hf: PreTrainedModel) -> None:
    with pytest.raises(
        SurgeryError, match=r"has no module 'transformer.h.1.mlpp'; did you mean 'transformer.h.1.mlp'\?"
    ):
        Trace(hf, "transformer.h.1.mlpp")
    with pytest.raises(SurgeryError, match=r"has no module 'zzzz'$"):
        get_module(hf, "zzzz")


def test_what_was_not_kept_is_not_given(hf: PreTrainedModel) -> None:
    with Trace(hf, MLP, retain_output=False) as trace:
        hf(IDS)
    with pytest.raises(SurgeryError, match=r"the output of .* was not kept; ask for it with retain_output=True"):
        _ = trace.output
    with pytest.raises(SurgeryError, match=r"the input of .* retain_input=True"):
        _ = trace.input


def test_entering_again_forgets_the_last_time(hf: PreTrainedModel) -> None:
    trace = Trace(hf, MLP)
    with trace:
        hf(IDS)
    with trace, pytest.raises(SurgeryError, match="has not run"):
        _ = trace.output


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("where", ["body", "hook"])
def test_an_exception_leaves_no_hook(hf: PreTrainedModel, error: type[BaseException], where: str) -> None:
    def fail(output: Any, name: str) -> Any:
        raise error

    edit = fail if where == "hook" else None

    def body() -> None:
        with Trace(hf, MLP, edit_output=edit), TraceDict(hf, [MLP, "lm_head"]):
            hf(IDS)
            raise error

    with pytest.raises(error):
        body()
    assert hooked(hf) == []


def test_a_trace_dict_watches_several(hf: PreTrainedModel) -> None:
    names = ["transformer.h.2", "transformer.h.0"]
    with TraceDict(hf, names) as traces:
        hf(IDS)
    states = states_of(hf)
    assert list(traces) == names
    assert len(traces) == 2
    assert torch.equal(hidden(traces[names[0]].output, 1), states[3])
    assert torch.equal(hidden(traces[names[1]].output, 1), states[1])


def test_a_trace_dict_edits_each_module_by_name(hf: PreTrainedModel) -> None:
    def silence_one(output: Any, name: str) -> Any:
        return torch.zeros_like(output) if name == MLP else output

    with TraceDict(hf, [MLP, "transformer.h.0.mlp"], edit_output=silence_one) as traces:
        logits = hf(IDS).logits
    assert torch.allclose(logits, silenced(hf), atol=1e-5)
    assert traces["transformer.h.0.mlp"].output.any()


def test_a_trace_dict_stops_after_the_last_in_running_order(hf: PreTrainedModel) -> None:
    ran = []
    with TraceDict(hf, ["transformer.h.3", "transformer.h.2.mlp"], edit_output=lambda o, n: ran.append(n) or o):
        for _ in range(2):  # the second block has forgotten the first
            with TraceDict(hf, ["transformer.h.2", "transformer.h.0"], stop=True) as traces:
                hf(IDS)
    assert ran == ["transformer.h.2.mlp"] * 2
    assert all(hidden(one.output, 1).shape == (1, 5, 32) for one in traces.values())


def test_frozen_stops_gradients_and_brings_the_flags_back() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].requires_grad_(False)
    flags = [weight.requires_grad for weight in model.parameters()]
    assert flags == [True, True, False, False]

    def interrupted() -> None:
        with frozen(model):
            assert not any(weight.requires_grad for weight in model.parameters())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [weight.requires_grad for weight in model.parameters()] == flags
