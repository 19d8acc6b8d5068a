"""Small screens of tiny models, and the same restored by hooks of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from locate import AttributionPatching, Gaussian, RelevancePatching, Screen, Unit, screen
from locate.contrast import SITES, UnitKind
from locate.corrupt import embed
from surgery import Fact, Model
from surgery.tokens import ask_fact

SAMPLES, SEED = 2, 3
NOISE = Gaussian(std=0.5)
METHODS = [AttributionPatching(), RelevancePatching()]
FACT = Fact(subject="old tower", template="The {} in", target="Paris")


def screened(model: Model, fact: Fact = FACT, **options: Any) -> Screen:
    return screen(model, fact, **{"corruption": NOISE, "samples": SAMPLES, "seed": SEED, **options})


class ByHand:
    """The corrupted runs with part of a unit's way back to its clean activation gone, by hooks of its own."""

    def __init__(self, model: Model, fact: Fact, unit: UnitKind) -> None:
        self.hf, self.inputs = model.hf, unit in ("head", "neuron")
        names = model.anatomy.names(SITES[unit])
        self.maps = [model.hf.get_submodule(name) for name in names]
        self.table = model.hf.get_submodule(model.anatomy.embedding)
        question, self.span = ask_fact(model.tokenizer, fact, fact.target)
        self.noised = NOISE(model, fact, embed(model, question, self.span), SAMPLES, SEED)
        self.ids, self.answer = torch.tensor([question.ids[:-1]]), torch.tensor(question.answer_ids)
        width = self.maps[0].weight.numel() // model.anatomy.d_model
        self.size = {"mlp": model.anatomy.d_model, "attention": model.anatomy.d_model, "neuron": 1}.get(
            unit, width // model.anatomy.heads
        )
        self.clean: list[Tensor] = []
        self.clean = self._activations(noise=False)
        self.corrupted = self._activations(noise=True)

    def _activations(self, noise: bool) -> list[Tensor]:
        found: list[Tensor] = []

        def keep(_: object, given: tuple[Tensor, ...], out: Tensor) -> None:
            seen = given[0] if self.inputs else out
            found.append(seen.reshape(-1, self.ids.shape[1], seen.shape[-1]).clone())

        hooks = [one.register_forward_hook(keep) for one in self.maps]
        try:
            self._log_probability(noise)
        finally:
            for hook in hooks:
                hook.remove()
        return found

    def moved(self, unit: Unit, share: float) -> Tensor:
        """The answer's log-probability in each corrupted run with that share of the unit restored."""
        part = slice((unit.index or 0) * self.size, ((unit.index or 0) + 1) * self.size)
        change = share * (self.clean[unit.layer] - self.corrupted[unit.layer])[:, unit.position, part]

        def changed(states: Tensor) -> Tensor:
            new = states.clone()
            new.view(SAMPLES, self.ids.shape[1], -1)[:, unit.position, part] += change
            return new

        one = self.maps[unit.layer]
        if self.inputs:
            hook = one.register_forward_pre_hook(lambda _, given: (changed(given[0]), *given[1:]))
        else:
            hook = one.register_forward_hook(lambda _, given, out: changed(out))
        try:
            return self._log_probability(noise=True)
        finally:
            hook.remove()

    @torch.no_grad()
    def _log_probability(self, noise: bool) -> Tensor:
        def corrupt(_: object, given: object, out: Tensor) -> Tensor:
            new = out.clone()
            new[:, self.span.start : self.span.stop] = self.noised
            return new

        hook = self.table.register_forward_hook(corrupt) if noise else None
        try:
            logits = self.hf(self.ids.expand(SAMPLES if noise else 1, -1), use_cache=False).logits
        finally:
            if hook is not None:
                hook.remove()
        steps = logits[:, -len(self.answer) :].log_softmax(-1)
        return torch.stack([steps[:, i, token] for i, token in enumerate(self.answer)]).sum(0)


def some_units(found: Screen, k: int) -> list[Unit]:
    """The largest and others drawn at random."""
    draw = np.random.RandomState(0)
    places = zip(*(draw.randint(0, size, k) for size in found.scores.shape), strict=True)
    drawn = [Unit(found.unit, int(layer), int(position), *map(int, index)) for position, layer, *index in places]
    return [*found.top(k), *drawn]
