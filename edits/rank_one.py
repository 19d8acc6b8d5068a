"""Change one matrix by rank one so that a subject means something else.

Meng et al. 2022, "ROME" (https://arxiv.org/abs/2202.05262), with one key everywhere (Gupta et al. 2024, "r-ROME",
https://arxiv.org/abs/2403.07175):

1. Contexts: the bare prompt and beginnings the model makes up, by a seed (`edits.keys`).
2. k* and v* of the subject's last token at one layer's down-projection (`edits.values`).
3. dW = (v* - W k*) (C^-1 k*)^T / (k*^T C^-1 k*) (`edits.solve`), C from key statistics (`edits.statistics`).
4. Several facts are edited one after the other, each on the weights the earlier ones left; the weights are put back.

k* is a subject's key, v* its new value, C the keys' second moment.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from edits.keys import sample_contexts
from edits.method import register
from edits.objectives import Neutral, Objective, Replace
from edits.recommended import find_sweep
from edits.solve import rank_one
from edits.statistics import SecondMoment, Statistics, find_statistics
from edits.values import Value, ValueSearch, find_value
from surgery.edit import Delta, Edit, Undo
from surgery.errors import SurgeryError
from surgery.fact import Fact
from surgery.model import Model
from surgery.progress import bar
from surgery.site import Site

logger = logging.getLogger(__name__)

# (model type, layers) -> layer: published for the first six; the last is what the default model's sweep recommends, for
# its relatives
LAYERS = {
    ("gpt2", 24): 8,
    ("gpt2", 36): 12,
    ("gpt2", 48): 17,
    ("gptj", 28): 5,
    ("llama", 32): 5,
    ("mistral", 32): 5,
    ("llama", 30): 4,
}
RELATIVE_DEPTH = 1 / 6


def recommended_site(model: Model) -> Site:
    """The layer to edit: what the sweep of these weights recommends, one that was kept before the shipped one.

    Without a sweep, the published layer of the model's family and depth, else a sixth of the way up.
    """
    if (sweep := find_sweep(model, RankOne.name)) is not None:
        return sweep.recommend()
    depth = len(model.anatomy.layers)
    layer = LAYERS.get((model.hf.config.model_type, depth))
    if layer is None:
        layer = int(depth * RELATIVE_DEPTH)
        logger.info("no layer is known to be best for %s; taking layer %d of %d", model.source, layer, depth)
    return Site.at(layer, "mlp")


@register
@dataclass(frozen=True, kw_only=True)
class RankOne:
    """One rank-one change of one down-projection a fact.

    Attributes:
        statistics: key statistics; None for those shipped or cached for the model's weights.
        objective: what the model should say; None replaces where the facts name a new answer, else removes neutrally.
        contexts: texts that end with `{}` to read prompts in; None has the model make them up.
        count: how many contexts to make up besides the bare prompt.
        length: of a made-up context, in tokens.
        search: how the value is found.
        seed: of the contexts.
        progress: show a bar where somebody is looking.
    """

    name: ClassVar[str] = "rank-one"
    statistics: Statistics | None = None
    objective: Objective | None = None
    contexts: tuple[str, ...] | None = None
    count: int = 10
    length: int = 8
    search: ValueSearch = field(default_factory=ValueSearch)
    seed: int = 1
    progress: bool = True

    def __call__(self, model: Model, facts: Sequence[Fact] | Fact, sites: Sequence[Site] | None = None) -> Edit:
        """The edit of all facts at one site. The model's weights are bit-identical before and after, however it ends.

        Raises:
            SurgeryError: no facts, a site that is not one mlp, no key statistics, or a fact the objective cannot use.
        """
        facts = (facts,) if isinstance(facts, Fact) else tuple(facts)
        site = self._site(model, sites)
        objective = self._objective(facts)
        for fact in facts:
            objective.continuation(fact)
        base = model.fingerprint
        moment = (self.statistics or find_statistics(model, site.layer)).of(model, site.layer)
        contexts = self.contexts or sample_contexts(model, count=self.count, length=self.length, seed=self.seed)
        total: Delta | None = None
        log: list[dict[str, Any]] = []
        prompts: dict[str, None] = {}
        undos: list[Undo] = []
        try:
            for fact in bar(facts, "rank-one edits", show=self.progress and len(facts) > 1):
                value = find_value(model, fact, site, objective, contexts, self.search)
                delta, entry = self._step(model, fact, site, value, moment)
                undos.append(Undo(model, (delta,)))
                total = delta if total is None else total + delta
                log.append(entry)
                prompts.update(dict.fromkeys(value.prompts))
        finally:
            for undo in reversed(undos):
                undo()
        assert total is not None
        settings = {
            "site": site.name,
            "objective": objective.name,
            "contexts": list(contexts),
            "seed": self.seed,
            "steps": self.search.steps,
            "step": self.search.step,
            "clamp": self.search.clamp,
            "kl": self.search.kl,
            "decay": self.search.decay,
            "dtype": str(model.dtype),
        }
        return Edit((total,), base, self.name, objective.claim, facts, settings, tuple(log), tuple(prompts))

    def _site(self, model: Model, sites: Sequence[Site] | None) -> Site:
        chosen = list(sites) if sites is not None else [recommended_site(model)]
        if len(chosen) != 1 or chosen[0].kind != "mlp":
            raise SurgeryError(f"rank-one edits exactly one mlp, such as 'L4.mlp', not {[str(one) for one in chosen]}")
        model.anatomy.name(chosen[0])
        return Site.at(chosen[0].layer, "mlp")

    def _objective(self, facts: Sequence[Fact]) -> Objective:
        if not facts:
            raise SurgeryError("there is no fact to edit; give at least one")
        if self.objective is not None:
            return self.objective
        named = sum(fact.new_target is not None for fact in facts)
        if named not in (0, len(facts)):
            raise SurgeryError(f"{named} of {len(facts)} facts name a new_target; rewrite and remove in two edits")
        return Replace() if named else Neutral()

    def _step(
        self, model: Model, fact: Fact, site: Site, value: Value, moment: SecondMoment
    ) -> tuple[Delta, dict[str, Any]]:
        solution = rank_one(value.key, value.shift, moment)
        delta = Delta(model.anatomy.name(site), solution.left[:, None], solution.right[:, None])
        weight = model.anatomy.matrix(site).detach()
        entry = {
            "fact": fact.label,
            "steps": len(value.losses) - 1,
            "loss": value.losses[-1],
            "value_norm": float(value.old.norm()),
            "shift_norm": float(value.shift.norm()),
            "key_agreement": value.agreement,
            "denominator": solution.denominator,
            "direction_cosine": solution.cosine,
            "relative_change": delta.norm / float(torch.linalg.norm(weight.float())),
        }
        return delta, entry
