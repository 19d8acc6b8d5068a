"""What methods compute, once more: one token or one neuron at a time, with plain hooks, loops and numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call

from surgery import Model
from surgery.linear_map import oriented


def answer_ids(model: Model, prompt: str, answer: str) -> list[int]:
    """Token ids of an answer after its prompt."""
    asked = model.tokenizer(prompt)["input_ids"]
    return list(model.tokenizer(f"{prompt} {answer}")["input_ids"][len(asked) :])


def teacher_forced(model: Model, prompt: str, answer: str) -> float:
    """Mean negative log-likelihood of the answer's tokens, each in a run of its own after those before it."""
    asked = list(model.tokenizer(prompt)["input_ids"])
    total, ids = 0.0, answer_ids(model, prompt, answer)
    for i, token in enumerate(ids):
        with torch.no_grad():
            logits = model.hf(torch.tensor([asked + ids[:i]])).logits[0, -1]
        total -= float(logits.double().log_softmax(-1)[token])
    return total / len(ids)


def at_the_last_position(model: Model, prompt: str, answer: str) -> float:
    """The known mistake: all of the answer's tokens asked for where the prompt ends."""
    with torch.no_grad():
        logits = model.hf(torch.tensor([model.tokenizer(prompt)["input_ids"]])).logits[0, -1]
    return -float(logits.double().log_softmax(-1)[answer_ids(model, prompt, answer)].mean())


def weight_gradient(model: Model, module: str, prompt: str, answer: str) -> Float[Tensor, "out in"]:
    """Gradient of the teacher-forced loss for a map's whole weight, which is a copy the model is run with."""
    name = f"{module}.weight"
    own = model.hf.get_submodule(module)
    weight = own.weight.detach().clone().requires_grad_()
    ids, asked = answer_ids(model, prompt, answer), list(model.tokenizer(prompt)["input_ids"])
    out: Any = functional_call(model.hf, {name: weight}, (torch.tensor([asked + ids]),))
    said = out.logits[0, len(asked) - 1 : -1].log_softmax(-1)
    loss = -said.gather(1, torch.tensor(ids)[:, None]).mean()
    (gradient,) = torch.autograd.grad(loss, weight)
    return gradient if oriented(own).shape == gradient.shape else gradient.T


def standardised(rows: Float[np.ndarray, "n features"], seen: Float[np.ndarray, "m features"]) -> np.ndarray:
    """Rows minus the mean of all that was seen, over its standard deviation."""
    std = seen.std(0, ddof=1)
    return np.divide(rows - seen.mean(0), std, out=np.zeros_like(rows), where=std > 0)


def ridge(keys: Float[np.ndarray, "n d_ff"], values: Float[np.ndarray, "n d_model"]) -> np.ndarray:
    """(H^T H + I)^-1 H^T V, transposed: [d_model, d_ff], by a solve of the large system."""
    return np.linalg.solve(keys.T @ keys + np.eye(keys.shape[1]), keys.T @ values).T


def blamed(model: Model, module: str, ids: list[int], first: int) -> list[Float[Tensor, "n features"]]:
    """Inputs of a map, gradients of a text's loss at its outputs, and these, a row a position that predicts a token.

    The loss is the sum over the tokens from position `first` on, those before being given.
    """
    kept: list[Tensor] = []

    def lift(part: Any, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
        kept.extend([given[0].detach().clone(), output.detach().clone().requires_grad_()])
        return kept[1]

    handle = model.hf.get_submodule(module).register_forward_hook(lift)
    try:
        logits = model.hf(torch.tensor([ids])).logits[0]
    finally:
        handle.remove()
    loss = torch.nn.functional.cross_entropy(logits[first - 1 : -1], torch.tensor(ids[first:]), reduction="sum")
    (gradient,) = torch.autograd.grad(loss, kept[1])
    return [one[0, first - 1 : -1].detach().double() for one in (kept[0], gradient, kept[1])]


def activation(model: Model, layer: int, index: int, prompt: str) -> float:
    """A neuron's activation at a prompt's last token."""
    kept: list[Tensor] = []
    module = model.hf.get_submodule(model.anatomy.layers[layer].mlp)
    handle = module.register_forward_pre_hook(lambda part, given: kept.append(given[0].reshape(-1, given[0].shape[-1])))
    try:
        with torch.no_grad():
            model.hf(torch.tensor([model.tokenizer(prompt)["input_ids"]]))
    finally:
        handle.remove()
    return float(kept[0][-1, index])
