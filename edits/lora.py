"""Train a low-rank adapter on the facts, and take its factors as the edit.

Hu et al. 2022 (https://arxiv.org/abs/2106.09685), through `peft`:

1. Each chosen map gets an adapter beside it: it puts out W x + (alpha / r) B A x, A drawn by a seed, B zero.
2. Adam trains A and B on the objective's loss at the tokens of its text (`edits.training`), until every fact's loss is
   below a threshold.
3. dW = (alpha / r) B A is a change of rank r as it stands. The model's own modules are put back, whatever happened.

Published defaults for editing (EasyEdit): r = 8, alpha = 32, dropout 0.1, 70 steps of 5e-3 on the query and value maps
of all layers. Here steps are in units of the weights' root mean square; dropout is 0, for what it drops depends on how
facts are batched; and the maps are the down-projections of five layers: with those of all layers, every prompt of the
relation is given the new answer. Published pitfall: alpha / r scales what is trained, so factors read out without it
are a quarter of the edit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from edits.method import register
from edits.recommended import checked_sites, recommended_sites
from edits.training import Trained, descend, lessons_of, log_of, root_mean_square
from surgery.edit import Delta, Edit
from surgery.errors import SurgeryError
from surgery.fact import Fact
from surgery.hooks import frozen
from surgery.model import Model
from surgery.site import Kind, Site

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

LAYERS = 5
KINDS: tuple[Kind, ...] = ("mlp", "attention")


@register
@dataclass(frozen=True, kw_only=True)
class LoRA(Trained):
    """Train adapters; the other settings are those of `edits.training.Trained`.

    Attributes:
        rank: columns of an adapter's factors, r.
        alpha: the adapter's output is scaled by alpha / r.
        dropout: share of an adapter's inputs that is dropped while it trains.
        steps: most steps of Adam.
        step: length of a coordinate's step, in units of the root mean square of the map's weight.
        stop: end early once every fact's loss is below this.
        seed: of A, and of what is dropped.
    """

    name: ClassVar[str] = "lora"
    rank: int = 8
    alpha: float = 32.0
    dropout: float = 0.0
    steps: int = 70
    step: float = 5e-3
    stop: float = 0.05
    seed: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank < 1 or self.steps < 1 or self.step <= 0 or self.alpha <= 0 or not 0 <= self.dropout < 1:
            raise SurgeryError(
                "rank, alpha, steps and step of an adapter must be above 0, and its dropout from 0 to below 1"
            )

    def __call__(self, model: Model, facts: Sequence[Fact] | Fact, sites: Sequence[Site] | None = None) -> Edit:
        """The edit of all facts, trained together. The model's weights are not written to.

        Raises:
            SurgeryError: no facts, sites that are no maps of the model, or a fact the objective cannot use.
        """
        facts = (facts,) if isinstance(facts, Fact) else tuple(facts)
        objective, chosen, base = self.wanted(facts), self.sites(model, sites), model.fingerprint
        lessons = lessons_of(model, facts, objective, self.contexts)
        sizes = {model.anatomy.name(site): root_mean_square(model.anatomy.matrix(site)) for site in chosen}
        with torch.random.fork_rng(), frozen(model.hf):
            torch.manual_seed(self.seed)
            with self._adapted(model, chosen) as adapters:
                told = descend(
                    model,
                    lessons,
                    [{"params": _factors(adapters[name]), "lr": self.step * sizes[name]} for name in adapters],
                    steps=self.steps,
                    stop=self.stop,
                    progress=self.progress,
                    label=f"{self.name} steps",
                )
                deltas = [_delta(name, adapter) for name, adapter in adapters.items()]
        return self._edit(model, base, facts, objective, chosen, deltas, log_of(told), self.settings())

    def sites(self, model: Model, sites: Sequence[Site] | None = None) -> list[Site]:
        """The maps to adapt, ascending: those given, or the down-projections of five layers recommended for the model.

        Raises:
            SurgeryError: they are no mlps or attentions of the model.
        """
        if sites is None:
            sites = recommended_sites(model, LAYERS)
        return checked_sites(model, self.name, sites, kinds=KINDS)

    def settings(self) -> dict[str, Any]:
        """What decides the numbers of an edit besides model, facts and sites, as JSON values."""
        names = ("rank", "alpha", "dropout", "steps", "step", "stop", "seed")
        return {name: getattr(self, name) for name in names}

    @contextmanager
    def _adapted(self, model: Model, sites: Sequence[Site]) -> Iterator[dict[str, LoraLayer]]:
        """Adapters by name of their map. Afterwards the model has its own modules and attributes again."""
        from peft import LoraConfig, inject_adapter_in_model  # which loads whatever quantises, where it is installed

        names = [model.anatomy.name(site) for site in sites]
        modules = {name: model.hf.get_submodule(name) for name in names}
        attributes = set(vars(model.hf))
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # any number will do
            lora_dropout=self.dropout,
            target_modules=names,
            fan_in_fan_out=isinstance(modules[names[0]], Conv1D),
        )
        try:
            inject_adapter_in_model(config, model.hf)
            yield {name: model.hf.get_submodule(name) for name in names}  # type: ignore[misc]  # peft put them there
        finally:
            for name, module in modules.items():
                parent, _, own = name.rpartition(".")
                setattr(model.hf.get_submodule(parent), own, module)
            for added in set(vars(model.hf)) - attributes:
                delattr(model.hf, added)


def _factors(adapter: LoraLayer) -> list[Tensor]:
    """A [r, in] and B [out, r]."""
    return [cast(Tensor, factor["default"].weight) for factor in (adapter.lora_A, adapter.lora_B)]


def _delta(name: str, adapter: LoraLayer) -> Delta:
    down, up = _factors(adapter)
    return Delta(name, adapter.scaling["default"] * up.detach().float(), down.detach().float().T)
