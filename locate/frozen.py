"""One run of a prompt with the scale of every norm held, so that a logit is affine in what each site puts out.

Direct logit attribution rests on it (`locate.direct`). No architecture is named:

1. One run keeps, at the last position, what every block, site and norm was given and made.
2. The head's row w reads the answer's logit off the normed last state; pulled back through the final norm it reads it
   off the state, and so off everything that is added to the state.
3. A norm after a site is the module of vector weights whose input was the site's output. What a norm does is read off
   three probes: its bias (of zero), its gain and whether it takes the mean out; its scale, off the run itself.
4. A block is its input + attention + mlp. Where that does not give its output, a constant multiplier of each is fitted,
   as Granite has; where that does not either, the model is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from surgery.errors import UnsupportedModel
from surgery.hooks import TraceDict, hidden
from surgery.linear_map import oriented
from surgery.model import Model
from surgery.tokens import pad

SITES: tuple[Literal["attention", "mlp"], ...] = ("attention", "mlp")


@dataclass(frozen=True, eq=False)
class Affine:
    """A norm with its scale held: x -> gain * x + bias, of x - mean(x) if centred; the scale is within the gain."""

    gain: Float[Tensor, " d_model"]
    bias: Float[Tensor, " d_model"]
    centred: bool

    def pull(self, direction: Float[Tensor, " d_model"]) -> Float[Tensor, " d_model"]:
        """The direction before the norm that reads what `direction` reads after it, bias apart."""
        read = self.gain * direction
        return read - read.mean() if self.centred else read


@dataclass(frozen=True, eq=False)
class Write:
    """How one site writes to the answer's logit.

    Attributes:
        direction: what reads its effect off the site's output.
        constant: its effect where that output is 0: the bias of a norm after it.
        bias: the linear map's bias, as an effect.
        output: the site's output.
        units: effect of each input of its linear map.
    """

    direction: Float[Tensor, " d_model"]
    constant: Float[Tensor, ""]
    bias: Float[Tensor, ""]
    output: Float[Tensor, " d_model"]
    units: Float[Tensor, " inputs"]

    @property
    def total(self) -> float:
        """Effect of the whole site."""
        return float(self.direction @ self.output + self.constant)


class FrozenRun:
    """One run of a prompt at its last position, in float64, and what reads the answer's logit off its parts.

    Attributes:
        states: what enters the first block, and what leaves each, [d_model].
        logit: the answer's, minus the foil's if there is one, before any soft cap.
        model_logit: the same after it.
        direction: what reads the logit off the last state and off all that is added to it, [d_model].
        constant: what the final norm's and the head's biases add.

    Raises:
        UnsupportedModel: a block is no sum of its input, attention and mlp, or a norm's scale cannot be held.
    """

    def __init__(self, model: Model, ids: tuple[int, ...], answer: int, foil: int | None) -> None:
        self._model, anatomy = model, model.anatomy
        self._sites = {kind: anatomy.names(kind) for kind in SITES}
        blocks = anatomy.names("state")
        self._norms = [_norms(anatomy.hf, block, anatomy.d_model) for block in blocks]
        final = [anatomy.final_norm] if anatomy.final_norm else []
        watched = [
            *blocks,
            *self._sites["attention"],
            *self._sites["mlp"],
            *(name for names in self._norms for name in names),
            *final,
        ]
        # cloned: Falcon adds to its mlp's output in place
        with TraceDict(model.hf, watched, retain_input=True, clone=True) as seen:
            model.normed_states(pad([ids], device=model.device))
        self._given = {name: hidden(seen[name].input, 1)[0, -1] for name in watched}
        self._made = {name: hidden(seen[name].output, 1)[0, -1] for name in watched}
        self.states = [self._given[blocks[0]].double(), *(self._made[name].double() for name in blocks)]

        normed = self._made[final[0]] if final else self._made[blocks[-1]]
        head = anatomy.hf.get_output_embeddings()
        answers = [answer] if foil is None else [answer, foil]
        self.logit = _contrast(head(normed)[answers].double())
        self.model_logit = _contrast(anatomy.head(normed)[answers].double())
        read = oriented(head)[answers].double()
        read = read[0] - read[1] if foil is not None else read[0]
        self.direction, self.constant = read, 0.0
        if getattr(head, "bias", None) is not None:
            self.constant += _contrast(head.bias[answers].double())
        if final:
            norm = self._frozen(final[0])
            self.direction, self.constant = norm.pull(read), self.constant + float(norm.bias @ read)
        self._multipliers = [self._multiplier(layer) for layer in range(len(blocks))]

    def writes(self, kind: Literal["attention", "mlp"]) -> list[Write]:
        """How each layer's site of one kind writes to the logit."""
        found = []
        for layer, site in enumerate(self._sites[kind]):
            direction = self.direction * self._multipliers[layer][kind]
            constant = direction.new_zeros(())
            if (after := self._norm_after(layer, site)) is not None:
                norm = self._frozen(after)
                direction, constant = norm.pull(direction), norm.bias @ direction
            module = self._model.hf.get_submodule(site)
            bias = getattr(module, "bias", None)
            found.append(
                Write(
                    direction=direction,
                    constant=constant,
                    bias=direction.new_zeros(()) if bias is None else direction @ bias.double(),
                    output=self._made[site].double(),
                    units=(direction @ oriented(module).double()) * self._given[site].double(),
                )
            )
        return found

    def _norm_after(self, layer: int, site: str) -> str | None:
        """The norm whose input was the site's output."""
        output = self._made[site]
        return next((name for name in self._norms[layer] if torch.equal(self._given[name], output)), None)

    def _frozen(self, name: str) -> Affine:
        return _freeze(self._model.hf.get_submodule(name), name, self._given[name], self._made[name])

    def _multiplier(self, layer: int) -> dict[str, float]:
        """By what attention and mlp are multiplied before they are added: 1, or as Granite does a constant."""
        added = []
        for kind in SITES:
            site = self._sites[kind][layer]
            after = self._norm_after(layer, site)
            added.append(self._made[after or site].double())
        parts = torch.stack(added, dim=1)
        wanted = self.states[layer + 1] - self.states[layer]
        size = float(torch.cat([parts.flatten(), self.states[layer], self.states[layer + 1]]).abs().max())
        tolerance = (1e-5 if self._model.dtype == torch.float32 else 2e-2) * size
        for factors in (torch.ones(2).to(parts), torch.linalg.lstsq(parts, wanted[:, None]).solution[:, 0]):
            if float((parts @ factors - wanted).abs().max()) <= tolerance:
                return dict(zip(SITES, factors.tolist(), strict=True))
        block = type(self._model.hf.get_submodule(self._model.anatomy.names("state")[layer])).__name__
        raise UnsupportedModel(
            f"{block} of layer {layer} does not add its attention and mlp to its input, so a logit cannot be split here"
        )


def _contrast(values: Float[Tensor, " answers"]) -> float:
    """The one value, or the first minus the second."""
    return float(values[0] if len(values) == 1 else values[0] - values[1])


def _norms(model: nn.Module, block: str, width: int) -> list[str]:
    """Modules of a block that may be norms over the residual stream's width: all their weights are vectors of it."""
    found = []
    for name, module in model.get_submodule(block).named_modules():
        shapes = {tuple(weight.shape) for weight in module.parameters()}
        if shapes == {(width,)} and not list(module.children()):
            found.append(f"{block}.{name}")
    return found


def _freeze(norm: nn.Module, name: str, given: Float[Tensor, " d_model"], made: Float[Tensor, " d_model"]) -> Affine:
    """The affine map a norm was in one run, from what it does to three probes.

    Raises:
        UnsupportedModel: it was no such map.
    """
    tolerance = 1e-4 if given.dtype == torch.float32 else 3e-2
    signs = torch.ones_like(given)
    signs[1::2] = -1
    at_zero, at_signs, shifted = norm(torch.stack([torch.zeros_like(signs), signs, signs + 1])).double()
    # one number added everywhere is lost on a norm that takes the mean out, and only on such a one
    centred = float((shifted - at_signs).abs().max()) <= 1e-2 * float((at_signs - at_zero).abs().max())
    signs, given, made = signs.double(), given.double(), made.double()
    gain = (at_signs - at_zero) / (signs - signs.mean() if centred else signs)
    linear = gain * (given - given.mean() if centred else given)
    scale = (made - at_zero) @ linear / (linear @ linear).clamp(min=1e-300)
    off = float((scale * linear + at_zero - made).abs().max())
    if not off <= tolerance * float(made.abs().max()):
        raise UnsupportedModel(f"{name} ({type(norm).__name__}) is no norm whose scale can be held, off by {off:.1e}")
    return Affine(scale * gain, at_zero, centred)
