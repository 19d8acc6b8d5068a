"""Watch and change the activations of neurons: the inputs of the down-projections, act(gate) * up in a gated mlp."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from surgery.errors import SurgeryError
from surgery.hooks import hidden
from surgery.model import Model
from surgery.site import Neuron
from surgery.tokens import Question, Span, pad

Positions = Literal["last", "subject", "all"]
POSITIONS: tuple[Positions, ...] = get_args(Positions)
MOST_TOKENS = 4096
"""Rows times tokens that go through a model at a time."""

Change = Callable[[int, Float[Tensor, "*rows d_ff"]], Float[Tensor, "*rows d_ff"]]


@contextmanager
def changed_neurons(
    model: Model, change: Change, *, rows: int | None = None, layers: Iterable[int] | None = None
) -> Iterator[None]:
    """Inside the block, down-projections are given `change(layer, activations)`.

    Args:
        model: the model.
        change: the new activations of a layer, from those it has.
        rows: how many rows the runs inside the block have, for activations as [rows, width, d_ff]; None for activations
            as the model holds them, [..., d_ff].
        layers: where; in every layer by default.
    """

    def changing(layer: int) -> Callable[[Any, tuple[Tensor, ...]], tuple[Tensor, ...]]:
        def hook(module: Any, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            new = change(layer, given[0] if rows is None else hidden(given[0], rows))
            return (new.reshape(given[0].shape).to(given[0].dtype), *given[1:])

        return hook

    names = model.anatomy.names("mlp")
    handles = []
    try:
        for layer in range(len(names)) if layers is None else layers:
            handles.append(model.hf.get_submodule(names[layer]).register_forward_pre_hook(changing(layer)))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def zeroed(model: Model, neurons: Iterable[Neuron], *, scale: float = 0.0) -> Iterator[None]:
    """Inside the block, the activations of some neurons are `scale` times theirs, at every position of every text.

    Zero erases what they add (the DEL test of https://arxiv.org/abs/2311.09060, the suppression of
    https://arxiv.org/abs/2104.08696); 2 doubles it. Weights are not touched.

    Raises:
        SurgeryError: the model has no such neuron.
    """
    anatomy = model.anatomy
    factors: dict[int, Tensor] = {}
    for neuron in neurons:
        if not (0 <= neuron.layer < len(anatomy.layers) and 0 <= neuron.index < anatomy.d_ff):
            raise SurgeryError(
                f"there is no neuron {neuron}: {anatomy.architecture} has layers 0 to {len(anatomy.layers) - 1} "
                f"of {anatomy.d_ff} neurons each"
            )
        factors.setdefault(neuron.layer, torch.ones(anatomy.d_ff))[neuron.index] = scale

    def scaled(layer: int, given: Tensor) -> Tensor:
        return given * factors[layer].to(given)

    with changed_neurons(model, scaled, layers=factors):
        yield


def columns(question: Question, span: Span, positions: Positions) -> list[int]:
    """Positions of a prompt: its last one, those of its subject, or all.

    Raises:
        SurgeryError: there is no such choice.
    """
    if positions == "last":
        return [question.answer_start - 1]
    if positions == "subject":
        return list(range(span.start, span.stop))
    if positions == "all":
        return list(range(question.answer_start))
    raise SurgeryError(f"there are no positions {positions!r}; choose one of {', '.join(POSITIONS)}")


@torch.no_grad()
def activations(model: Model, question: Question, at: Sequence[int]) -> Float[Tensor, "layers positions d_ff"]:
    """Activations of all neurons at some positions of a prompt, in the model's own run."""
    kept: dict[int, Tensor] = {}

    def keep(layer: int, given: Tensor) -> Tensor:
        kept[layer] = given[0, list(at)].clone()
        return given

    with changed_neurons(model, keep, rows=1):
        last_states(model, question, 1)
    return torch.stack([kept[layer].to(model.device) for layer in range(len(kept))])


def last_states(model: Model, question: Question, rows: int) -> Float[Tensor, "rows d_model"]:
    """Normed last state at the prompt's last position, for that many copies of the prompt."""
    batch = pad([question.prompt_ids] * rows, device=model.device)
    return model.normed_states(batch)[:, -1]


def answer_log_prob(model: Model, question: Question, rows: int) -> Float[Tensor, " rows"]:
    """Log probability of the answer's first token, for that many copies of the prompt."""
    logits = model.anatomy.head(last_states(model, question, rows)).float()
    return logits.log_softmax(-1)[:, question.answer_ids[0]]
