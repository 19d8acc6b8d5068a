"""Relevance rules: a backward pass that shares a logit out among states, where a gradient only says how steep it is.

A gradient at one point says little about a finite change across a curved function. Relevance patching (RelP, Jafari et
al. 2025, https://arxiv.org/abs/2508.21258) takes the rules of layer-wise relevance propagation instead. Each keeps the
values of the forward run and changes only what flows back:

1. LN-rule: a norm is a linear map, its scale a constant (Ali et al. 2022, "Conservative Propagation").
2. AH-rule: an attention pattern is a constant, so relevance goes back through the values alone (the same paper).
3. Identity rule: an activation is a multiplication of its input x by the constant f(x) / x.
4. Half rule: a product of two states, the gate of an mlp, gives each factor half of the gradient.
5. 0-rule: linear maps keep their gradient.

Then a logit is a sum of frozen linear maps: over any layer, sum_i state_i . d logit / d state_i is the same number, the
logit itself, but for what biases bring in. Rules 1, 2 and 4 act on functions as a model calls them, and rule 3 on its
activation modules, so no architecture is known here; a run in which a rule met fewer calls than layers is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from surgery.errors import SurgeryError
from surgery.hooks import TraceDict, frozen
from surgery.model import Model

Rule = Literal["norm", "attention", "activation", "product"]
RULES: tuple[Rule, ...] = get_args(Rule)
ALWAYS_MET: tuple[Rule, ...] = ("norm", "attention", "activation")
"""Rules every layer calls for; not every mlp is gated."""


@dataclass(frozen=True, kw_only=True)
class RelevancePatching:
    """Screen by relevance (RelP): the backward pass follows the rules of `locate.relevance`.

    Attributes:
        rules: the rules to follow; leave some out only to see what they do. The published code for GPT-2 names the
            norm, activation and product rules and leaves attention its gradient.

    Raises:
        SurgeryError: a rule is unknown, or the product rule stands without the activation rule (an activation written
            as a product would be taken for a gate).
    """

    rules: tuple[Rule, ...] = RULES

    def __post_init__(self) -> None:
        object.__setattr__(self, "rules", tuple(self.rules))
        unknown = [rule for rule in self.rules if rule not in RULES]
        if unknown:
            raise SurgeryError(f"there is no relevance rule {unknown[0]!r}; choose among {', '.join(RULES)}")
        if "product" in self.rules and "activation" not in self.rules:
            raise SurgeryError("the product rule needs the activation rule; give both or neither")

    def __str__(self) -> str:
        left_out = [rule for rule in RULES if rule not in self.rules]
        return "relevance patching" + (f" without the rules for {', '.join(left_out)}" if left_out else "")

    def __call__(self, model: Model) -> AbstractContextManager[None]:
        """The context in which the model runs forward."""
        return relevance_rules(model, self.rules)


@contextmanager
def relevance_rules(model: Model, rules: tuple[Rule, ...] = RULES) -> Iterator[None]:
    """Inside the block, runs of the model build a graph whose backward pass is relevance propagation.

    Values of the forward run stay as they are. Compute a metric of the logits outside the block: its softmax is no
    attention pattern.

    Args:
        model: the model to run; its parameters collect no gradients meanwhile.
        rules: the rules to follow.

    Raises:
        SurgeryError: at the end, if a rule met fewer calls than the model has layers: attention in a kernel of its own,
            say. Relevance would be wrong without a sign of it.
    """
    met: Counter[str] = Counter()
    with ExitStack() as stack:
        stack.enter_context(frozen(model.hf))
        if "activation" in rules:
            stack.enter_context(_identity_rule(model, met))
        stack.enter_context(_Rules({func: one for func, one in FUNCTIONS.items() if one[0] in rules}, met))
        yield
    layers = len(model.anatomy.layers)
    for rule in ALWAYS_MET:
        if rule in rules and met[rule] < layers:
            raise SurgeryError(
                f"the {rule} rule met {met[rule]} calls in the {layers} layers of {model.anatomy.architecture}, which "
                "computes it in a way not known here; run the model inside the block, and load it with "
                "attn_implementation='sdpa' or 'eager', or screen it with AttributionPatching()"
            )


class _Rules(TorchFunctionMode):
    """Intercepts the functions of the rules, and counts."""

    def __init__(self, functions: Mapping[Any, tuple[Rule, Callable[..., Any]]], met: Counter[str]) -> None:
        super().__init__()
        self._functions, self._met = functions, met

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        rule, replaced = self._functions.get(func, (None, None))
        if rule is None or replaced is None:
            return func(*args, **(kwargs or {}))
        self._met[rule] += 1
        return replaced(func, *args, **(kwargs or {}))


def _with_gradient_of(value: Tensor, through: Tensor) -> Tensor:
    """One tensor's value, to the bit, with the gradient of another."""
    return value.detach() + (through - through.detach())


def _constant(func: Any, *args: Any, **kwargs: Any) -> Any:
    return func(*args, **kwargs).detach()


def _layer_norm(
    func: Any,
    states: Tensor,
    shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    **_: Any,
) -> Tensor:
    over = tuple(range(-len(shape), 0))
    centred = states - states.mean(over, keepdim=True)
    scale = (centred.detach().float().square().mean(over, keepdim=True) + eps).rsqrt().to(states.dtype)
    through = centred * scale if weight is None else centred * scale * weight
    return _with_gradient_of(func(states, shape, weight, bias, eps), through)


def _rms_norm(func: Any, states: Tensor, shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    over = tuple(range(-len(shape), 0))
    least = torch.finfo(states.dtype).eps if eps is None else eps
    scale = (states.detach().float().square().mean(over, keepdim=True) + least).rsqrt().to(states.dtype)
    through = states * scale if weight is None else states * scale * weight
    return _with_gradient_of(func(states, shape, weight, eps), through)


def _attention(func: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
    return func(query.detach(), key.detach(), value, *args, **kwargs)


def _product(func: Any, left: Any, right: Any, **kwargs: Any) -> Any:
    both = isinstance(left, Tensor) and isinstance(right, Tensor) and left.requires_grad and right.requires_grad
    if not both or kwargs:
        return func(left, right, **kwargs)
    return (left.detach() * right + left * right.detach()) / 2


FUNCTIONS: dict[Any, tuple[Rule, Callable[..., Any]]] = {
    functional.layer_norm: ("norm", _layer_norm),
    functional.rms_norm: ("norm", _rms_norm),
    torch.rsqrt: ("norm", _constant),
    Tensor.rsqrt: ("norm", _constant),
    torch.sqrt: ("norm", _constant),
    Tensor.sqrt: ("norm", _constant),
    functional.scaled_dot_product_attention: ("attention", _attention),
    functional.softmax: ("attention", _constant),
    torch.softmax: ("attention", _constant),
    Tensor.softmax: ("attention", _constant),
    torch.mul: ("product", _product),
    Tensor.mul: ("product", _product),
    Tensor.__mul__: ("product", _product),
    Tensor.__rmul__: ("product", _product),
}


@contextmanager
def _identity_rule(model: Model, met: Counter[str]) -> Iterator[None]:
    """Let every activation module multiply its input by the constant f(x) / x, 0 where x is 0."""

    def proportional(output: Any, name: str) -> Any:
        met["activation"] += 1
        states = traces[name].input
        ratio = torch.where(states == 0, 0, output.detach() / states.detach())
        return _with_gradient_of(output, states * ratio)

    options: dict[str, Any] = {"retain_input": True, "retain_output": False, "edit_output": proportional}
    with TraceDict(model.hf, activation_modules(model), **options) as traces:
        yield


def activation_modules(model: Model) -> tuple[str, ...]:
    """Names of the activation functions inside the blocks, found by trying: modules that bend each number on its own.

    A candidate has no parts and no weight of more than one entry; for a handful of numbers it must give as many others,
    and for the first few alone the same as among all.
    """
    blocks = model.anatomy.names("state")
    return tuple(
        f"{block}.{name}"
        for block in blocks
        for name, module in model.hf.get_submodule(block).named_modules()
        if name and _is_activation(module, model.device, model.dtype)
    )


@torch.no_grad()
def _is_activation(module: nn.Module, device: torch.device, dtype: torch.dtype) -> bool:
    if any(True for _ in module.children()) or any(weight.numel() > 1 for weight in module.parameters()):
        return False
    numbers = torch.linspace(-2, 3, 12, device=device, dtype=dtype).reshape(1, 1, -1)
    try:
        out, alone = module(numbers.clone()), module(numbers[..., :5].clone())
    except Exception:  # a module of another kind, which wants other arguments
        return False
    if not isinstance(out, Tensor) or out.shape != numbers.shape or torch.equal(out, numbers):
        return False
    return torch.allclose(out[..., :5], alone, rtol=1e-4, atol=1e-6)  # kernels round by length
