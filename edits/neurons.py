"""Write to the value vectors of single neurons: zero them, scale them, or have them say another answer.

Dai et al. 2022, "Knowledge Neurons" (https://arxiv.org/abs/2104.08696), section 5. Neuron j of a layer adds its
activation times column j of the down-projection W to the residual stream:

1. The `count` neurons of each fact with the highest attributions (`locate.attribute_neurons` judges them), of its
   prompt alone, as paraphrases are there to judge the edit. A neuron of several facts is zeroed or scaled once.
2. ZeroNeurons: dW[:, j] = -W[:, j]. ScaleNeurons: dW[:, j] = (factor - 1) W[:, j].
3. ReplaceNeurons: dW[:, j] = sign(a_j) |W[:, j]| (lambda_2 e(new) - lambda_1 e(old)), with e an answer's first token's
   row of the head at length 1, and a_j the neuron's activation at the prompt's last token.
4. Each change is a rank-n change of a layer's matrix: columns of W on the left, unit vectors on the right.

Published defaults: integrated gradients in 20 steps, neurons above 0.2 of the highest that many prompts share, zero to
suppress, twice to enhance, lambda_1 = 1 and lambda_2 = 8 for BERT's embeddings. Here lambda is in units of each
neuron's vector, and neurons are found by gradient times activation, in a seventieth of the time; integrated gradients
find some that spare neighbours more. Published pitfalls: BERT's neurons are above 0 where they are active, those of
gated mlps are not, and writing to one with a negative activation promotes the old answer; a neuron of two facts that is
zeroed for each has its sign turned around; and neurons are of an answer rather than of a fact (Niu et al. 2024,
https://arxiv.org/abs/2405.02421): what is written there, neighbours of other answers say too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from edits.limits import Limits, within
from edits.method import default_objective, register
from edits.objectives import Objective, Replace, Suppress, described
from edits.recommended import checked_sites
from locate import GradientActivation
from locate.neurons.activations import activations
from locate.neurons.method import Method as Attributing
from locate.neurons.method import ranked
from surgery.edit import Delta, Edit
from surgery.errors import SurgeryError
from surgery.fact import Fact
from surgery.linear_map import oriented
from surgery.model import Model
from surgery.site import Neuron, Site
from surgery.tokens import ask


@dataclass(frozen=True, kw_only=True)
class _NeuronEdit(ABC):
    """What writing to neurons has in common.

    Of a subclass: `_served` the objective, `_answer` whose neurons are written to, `_columns` what is written.

    Attributes:
        objective: what the model should say; None for what the method can do.
        count: neurons written to, a fact, where the attribution does not choose itself.
        attribution: how they are found.
        limits: how far the model may be moved.
        progress: show a bar where somebody is looking.
    """

    name: ClassVar[str]
    uses_statistics: ClassVar[bool] = False
    objective: Objective | None = None
    count: int = 5
    attribution: Attributing = field(default_factory=GradientActivation)
    limits: Limits = field(default_factory=Limits)
    progress: bool = True

    def __post_init__(self) -> None:
        if self.count < 1:
            raise SurgeryError(f"{self.name} writes to at least 1 neuron a fact, not {self.count}")

    def __call__(self, model: Model, facts: Sequence[Fact] | Fact, sites: Sequence[Site] | None = None) -> Edit:
        """The edit of all facts. The model's weights are not written to.

        Raises:
            SurgeryError: no facts, sites that are not mlps, or a fact the method cannot serve.
        """
        facts = (facts,) if isinstance(facts, Fact) else tuple(facts)
        objective, chosen, base = self.wanted(facts), self.sites(model, sites), model.fingerprint
        written: dict[Neuron, Float[Tensor, " d_model"]] = {}
        log = []
        for fact in facts:
            found = self._found(model, fact, objective, chosen)
            written |= self._columns(model, fact, found, written)
            log.append({"fact": fact.label, "neurons": [str(one) for one in found]})
        if not written:
            raise SurgeryError(f"{self.attribution} finds no neurons of these facts in the layers given; try others")
        edit = Edit(
            deltas=_deltas(model, written),
            base=base,
            method=self.name,
            claim=objective.claim,
            facts=facts,
            settings={
                "sites": [site.name for site in chosen],
                **described(objective),
                "dtype": str(model.dtype),
                "count": self.count,
                "attribution": str(self.attribution),
                **self._settings(),
            },
            log=tuple(log),
            prompts=tuple(dict.fromkeys(fact.prompt for fact in facts)),
        )
        return within(model, edit, self.limits)

    def sites(self, model: Model, sites: Sequence[Site] | None = None) -> list[Site]:
        """The mlps whose neurons may be written to, ascending: those given, or all.

        Raises:
            SurgeryError: they are no mlps of the model.
        """
        if sites is None:
            sites = [Site.at(layer, "mlp") for layer in range(len(model.anatomy.layers))]
        return checked_sites(model, self.name, sites)

    def wanted(self, facts: Sequence[Fact]) -> Objective:
        """What the model should say of these facts.

        Raises:
            SurgeryError: no facts, or an objective the method cannot serve.
        """
        served = self._served()
        objective = default_objective(facts, self.objective)
        if self.objective is None and objective.claim == served.claim:
            objective = served
        if objective.name != served.name:
            raise SurgeryError(
                f"{self.name} as it is set serves the objective {served.name!r}, not {objective.name!r}; give it facts "
                f"that are to be {served.claim}, or take another method"
            )
        if objective != served:
            raise SurgeryError(
                f"{self.name} knows no settings of an objective; give it {type(served).__name__}() as it comes, not "
                f"{objective}"
            )
        return objective

    def _found(self, model: Model, fact: Fact, objective: Objective, sites: Sequence[Site]) -> tuple[Neuron, ...]:
        """The neurons of the answer in question, best first."""
        asked = fact.replace(target=self._answer(fact), paraphrases=(), aliases=())
        scores = self.attribution(model, asked, progress=self.progress)
        layers = {site.layer for site in sites}
        if scores.chosen is not None:
            return tuple(one for one in scores.chosen if one.layer in layers)
        values = scores.values.copy()
        values[[layer for layer in range(len(values)) if layer not in layers]] = -float("inf")
        return ranked(values, min(self.count, values.shape[1] * len(sites)))

    @abstractmethod
    def _served(self) -> Objective:
        """The objective the method serves as it is set."""

    def _answer(self, fact: Fact) -> str:
        """The answer whose neurons are written to."""
        return fact.target

    @abstractmethod
    def _columns(
        self, model: Model, fact: Fact, neurons: Sequence[Neuron], before: dict[Neuron, Float[Tensor, " d_model"]]
    ) -> dict[Neuron, Float[Tensor, " d_model"]]:
        """What is added to each neuron's column for this fact and those before it."""

    def _settings(self) -> dict[str, Any]:
        return {}


@register
@dataclass(frozen=True, kw_only=True)
class ZeroNeurons(_NeuronEdit):
    """Take what a fact's neurons say out of the model; settings as above."""

    name: ClassVar[str] = "zero-neurons"

    def _served(self) -> Objective:
        return Suppress()

    def _columns(
        self, model: Model, fact: Fact, neurons: Sequence[Neuron], before: dict[Neuron, Float[Tensor, " d_model"]]
    ) -> dict[Neuron, Float[Tensor, " d_model"]]:
        return {one: -_column(model, one) for one in neurons}


@register
@dataclass(frozen=True, kw_only=True)
class ScaleNeurons(_NeuronEdit):
    """Have an answer's neurons say the same louder or less loudly; the other settings as above.

    Attributes:
        factor: below 1 it weakens the neurons of the old answer, to remove it; above 1 it strengthens those of the new
            one, which may be the answer the model gives already.
    """

    name: ClassVar[str] = "scale-neurons"
    factor: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.factor == 1:
            raise SurgeryError("a factor of 1 changes nothing; strengthen neurons by more than 1, weaken them by less")

    def _served(self) -> Objective:
        return Replace() if self.factor > 1 else Suppress()

    def _answer(self, fact: Fact) -> str:
        return str(fact.new_target) if self.factor > 1 else fact.target

    def _columns(
        self, model: Model, fact: Fact, neurons: Sequence[Neuron], before: dict[Neuron, Float[Tensor, " d_model"]]
    ) -> dict[Neuron, Float[Tensor, " d_model"]]:
        return {one: (self.factor - 1) * _column(model, one) for one in neurons}

    def _settings(self) -> dict[str, Any]:
        return {"factor": self.factor}


@register
@dataclass(frozen=True, kw_only=True)
class ReplaceNeurons(_NeuronEdit):
    """Have the old answer's neurons say the new one; the other settings as above.

    Attributes:
        old: how much of the old answer is taken out, in units of a neuron's own vector, lambda_1.
        new: how much of the new one is put in, lambda_2.
    """

    name: ClassVar[str] = "replace-neurons"
    old: float = 0.5
    new: float = 0.5

    def _served(self) -> Objective:
        return Replace()

    def _columns(
        self, model: Model, fact: Fact, neurons: Sequence[Neuron], before: dict[Neuron, Float[Tensor, " d_model"]]
    ) -> dict[Neuron, Float[Tensor, " d_model"]]:
        question = ask(model.tokenizer, fact.prompt, fact.target)
        active = activations(model, question, [question.answer_start - 1])[:, 0]
        wanted = self.new * _said(model, fact, str(fact.new_target)) - self.old * _said(model, fact, fact.target)
        found = {}
        for one in neurons:
            size = float(_column(model, one).norm()) * (-1 if active[one.layer, one.index] < 0 else 1)
            found[one] = before.get(one, 0.0) + size * wanted
        return found

    def _settings(self) -> dict[str, Any]:
        return {"old": self.old, "new": self.new}


@torch.no_grad()
def _column(model: Model, neuron: Neuron) -> Float[Tensor, " d_model"]:
    """A neuron's value vector as it is."""
    return model.anatomy.matrix(Site.at(neuron.layer, "mlp"))[:, neuron.index].detach().float().cpu()


@torch.no_grad()
def _said(model: Model, fact: Fact, answer: str) -> Float[Tensor, " d_model"]:
    """The head's row of an answer's first token, at length 1.

    Raises:
        UnsupportedModel: the head is no plain matrix.
    """
    first = ask(model.tokenizer, fact.prompt, answer).answer_ids[0]
    row = oriented(model.hf.get_output_embeddings())[first].float().cpu()
    return row / row.norm()


def _deltas(model: Model, written: dict[Neuron, Float[Tensor, " d_model"]]) -> tuple[Delta, ...]:
    """One change a layer, a column a neuron."""
    deltas = []
    for layer in sorted({neuron.layer for neuron in written}):
        own = sorted(neuron for neuron in written if neuron.layer == layer)
        right = torch.zeros(model.anatomy.d_ff, len(own))
        right[[neuron.index for neuron in own], range(len(own))] = 1.0
        left = torch.stack([written[neuron] for neuron in own], 1)
        deltas.append(Delta(model.anatomy.name(Site.at(layer, "mlp")), left, right))
    return tuple(deltas)
