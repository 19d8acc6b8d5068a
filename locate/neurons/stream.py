"""What each neuron adds to the residual stream at a prompt's last position.

1. A run with one row a layer, in which the layer's down-projection puts out nothing at the last position, gives the
   stream just before the mlp adds to it; one more row is left alone.
2. The mlp adds o = sum_i m_i v_i (+ bias), where m_i is an activation and v_i a column of the down-projection. Some
   families norm o first. The norm is taken at its measured scale, as an elementwise gain g = norm(o) / o: then neuron
   i adds m_i (g * v_i), and what the neurons add sums to what the mlp adds.
3. The check: stream + g * o must be the block's own output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from locate.neurons.activations import activations
from surgery.errors import UnsupportedModel
from surgery.hooks import TraceDict, hidden, with_hidden
from surgery.linear_map import oriented
from surgery.model import Model
from surgery.tokens import Question, pad


@dataclass(frozen=True, eq=False)
class Stream:
    """A prompt's last position, layer by layer.

    Attributes:
        before: the residual stream just before the mlp adds to it.
        gains: what the mlp's output is multiplied with on its way into the stream; ones where nothing is.
        activations: of the neurons.
        matrices: the down-projections, views of the weights.
    """

    before: Float[Tensor, "layers d_model"]
    gains: Float[Tensor, "layers d_model"]
    activations: Float[Tensor, "layers d_ff"]
    matrices: tuple[Float[Tensor, "d_model d_ff"], ...]

    def added(self, layer: int, part: slice = slice(None)) -> Float[Tensor, "neurons d_model"]:
        """What neurons of a layer add to the stream."""
        values = self.matrices[layer][:, part].T.float() * self.gains[layer]
        return values * self.activations[layer, part, None]


@torch.no_grad()
def read_stream(model: Model, question: Question) -> Stream:
    """Measure the stream at a prompt's last position.

    Raises:
        UnsupportedModel: what a mlp puts out reaches the stream neither as it is nor through a norm without a mean.
    """
    anatomy, count = model.anatomy, len(model.anatomy.layers)
    rows, states, outputs = count + 1, anatomy.names("state"), anatomy.names("mlp")
    silent: dict[str, Tensor] = {}
    clean: dict[str, Tensor] = {}

    def silence(output: Any, name: str) -> Any:
        new = hidden(output, rows).clone()
        clean[name] = new[count, -1].clone()
        new[outputs.index(name), -1] = 0
        return with_hidden(output, new)

    def note(output: Any, name: str) -> Any:
        seen = hidden(output, rows)[:, -1]
        silent[name], clean[name] = seen[states.index(name)].clone(), seen[count].clone()
        return output

    batch = pad([question.prompt_ids] * rows, device=model.device)
    with (
        TraceDict(model.hf, outputs, retain_output=False, edit_output=silence),
        TraceDict(model.hf, states, retain_output=False, edit_output=note),
    ):
        model.hf.base_model(**model.inputs(batch))
    gains = []
    for layer in range(count):
        before, after, out = silent[states[layer]], clean[states[layer]], clean[outputs[layer]]
        gain = next((g for g in _gains(model, layer, out) if _explains(before, g * out, after)), None)
        if gain is None:
            raise UnsupportedModel(
                f"{anatomy.architecture}: what {outputs[layer]} puts out reaches the stream neither as it is nor "
                "through a norm without a mean, so a neuron's share of it is not defined; use a method of gradients"
            )
        gains.append(gain.float())
    return Stream(
        before=torch.stack([silent[name].float() for name in states]),
        gains=torch.stack(gains),
        activations=activations(model, question, [-1])[:, 0].float(),
        matrices=tuple(oriented(model.hf.get_submodule(name)) for name in outputs),
    )


def _gains(model: Model, layer: int, out: Float[Tensor, " d_model"]) -> list[Float[Tensor, " d_model"]]:
    """One, and what each norm of the block would multiply this output with."""
    found = [torch.ones_like(out)]
    for child in model.hf.get_submodule(model.anatomy.names("state")[layer]).children():
        weights = list(child.parameters())
        if weights and all(weight.shape == out.shape for weight in weights):
            gain = torch.where(out == 0, 0, child(out) / out)
            turned = out.flip(0)  # has the same scale; a norm that takes a mean out, or adds a bias, shows here
            if _explains(torch.zeros_like(out), gain * turned, child(turned)):
                found.append(gain)
    return found


def _explains(before: Tensor, added: Tensor, after: Tensor) -> bool:
    """Whether the stream before and what is added make the stream after, to rounding."""
    before, added, after = before.float(), added.float(), after.float()
    tolerance = (1e-4 if after.dtype == torch.float32 else 3e-2) * float(after.abs().max())
    return float((before + added - after).abs().max()) <= tolerance
