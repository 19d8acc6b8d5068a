"""The grid of closed-form methods: an objective for the values, times a solver, times how layers share the change.

Papers name points of this grid; here they are presets of one class (`edits.rank_one`, `edits.mass`, `edits.emmet`,
`edits.alpha_edit`), and any other point is a matter of its settings.

1. Facts are taken `batch` at a time, those about one subject always together. Contexts are made up by the model, by a
   seed (`edits.keys`).
2. Values v* are found at the highest site, on the weights as they are by then (`edits.values`). With `anchor`, each is
   brought to the length that the first ones had, which were found on the model as it came (NAS,
   https://arxiv.org/abs/2602.02543: v* grows with every edit, and the growth is what breaks models).
3. Layers are written from the lowest up: keys K are read on the weights written so far, and so is the state above the
   highest site; each layer takes its share of what is still missing of v*, R (`edits.spread`).
4. dW from K and R (`edits.solve`). With `remember`, keys of earlier batches weigh like ordinary text: the running sum
   makes a sequence of batches what one batch of all would be (https://arxiv.org/abs/2605.26670).
5. After each batch the limits are looked at (`edits.limits`). With `passes`, facts that do not answer as wanted once
   all are written are taken up again (`edits.batch`). At the end the weights are put back; the edit is the sum of the
   changes, and its log tells of each fact whether it is "met".

`find` and `solve` are steps 2 and 3 to 4 of one batch on the weights as they are: values that are kept can be solved
for again, for any subset of them; where names weigh, as they do by how many subjects there were when values were found.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from edits.batch import Batches, anchored, mean_norm
from edits.keys import KEYS, SCOPES, KeyOf, Scope, by_key, in_batches, sample_contexts
from edits.limits import Limits, NearCollapse
from edits.method import default_objective
from edits.namesakes import WEIGHT
from edits.objectives import Objective, described
from edits.recommended import checked_sites, recommended_sites
from edits.solve import LeastSquares, Solver
from edits.spread import SPREADS, Spread, check_spread
from edits.statistics import SecondMoment, Statistics, find_statistics
from edits.values import Value, ValueSearch, find_values
from surgery.edit import Edit
from surgery.errors import SurgeryError, check_choice
from surgery.fact import Fact
from surgery.model import Model
from surgery.progress import bar
from surgery.site import Site


@dataclass(frozen=True, kw_only=True)
class ClosedForm:
    """A point of the grid.

    Attributes:
        statistics: key statistics; None for those shipped or cached for the model's weights.
        objective: what the model should say; None replaces where the facts name a new answer, else removes neutrally.
        solver: from keys and residuals to a change.
        layers: how many share a change where no sites are given; 1 edits one layer only.
        key: how the keys of a subject's contexts become one: "balanced", so that all respond alike, or their "mean" as
            published (`edits.keys`).
        scope: where a subject is looked at: "prompt", the facts' own, as published; or "subject", wherever it stands,
            and with others in its place left alone (`edits.places`). None takes "subject" for removals.
        names: what nearly the same names weigh, which should keep their own answers (`edits.namesakes`), where one
            subject is edited; n^-1/4 of it each for n of them. 0 leaves them to ordinary text, as published; None
            takes `edits.namesakes.WEIGHT` for rewrites and 0 for removals.
        spread: how they share it.
        batch: facts solved for together; None for all of them at once, 1 for one after the other. Facts that share a
            key are solved for together, however many: an edit of the second would undo that of the first.
        remember: keys of earlier batches count like ordinary text.
        passes: how often facts are written at most: further times only those that do not answer as wanted by then.
        anchor: bring every value to the mean length of so many facts' values on the model as it came; 0 leaves them.
        limits: where to stop.
        contexts: texts that end with `{}` to read prompts in; None has the model make them up.
        count: how many contexts to make up besides the bare prompt.
        length: of a made-up context, in tokens.
        search: how values are found.
        seed: of the contexts.
        progress: show a bar where somebody is looking.
    """

    name: ClassVar[str] = "closed-form"
    uses_statistics: ClassVar[bool] = True
    statistics: Statistics | None = None
    objective: Objective | None = None
    solver: Solver = field(default_factory=LeastSquares)
    layers: int = 1
    key: KeyOf = "balanced"
    scope: Scope | None = None
    names: float | None = None
    spread: Spread = "even"
    batch: int | None = None
    remember: bool = False
    passes: int = 1
    anchor: int = 0
    limits: Limits = field(default_factory=Limits)
    contexts: tuple[str, ...] | None = None
    count: int = 4
    length: int = 8
    search: ValueSearch = field(default_factory=ValueSearch)
    seed: int = 1
    progress: bool = True

    def __post_init__(self) -> None:
        check_choice("spread", self.spread, SPREADS)
        check_choice("key", self.key, KEYS)
        check_choice("scope", self.scope, (*SCOPES, None))
        if min(self.layers, self.passes, 1 if self.batch is None else self.batch) < 1 or self.anchor < 0:
            raise SurgeryError("layers, batch and passes of a method must be 1 or more, and its anchor 0 or more")
        if self.names is not None and self.names < 0:
            raise SurgeryError(f"nearly the same names weigh 0 or more, not {self.names}")

    def __call__(self, model: Model, facts: Sequence[Fact] | Fact, sites: Sequence[Site] | None = None) -> Edit:
        """The edit of all facts. The model's weights are bit-identical before and after, however it ends.

        Raises:
            SurgeryError: no facts, sites that are not mlps or cannot share a change, no key statistics, or a fact the
                objective cannot use.
            NearCollapse: one more batch would pass a limit; the error holds the edit of the facts before it.
        """
        with model.read_once():  # recommended layers and key statistics are both looked up by the weights
            facts, objective, chosen = self._given(model, facts, sites)
            run = self._run(model, chosen, objective, facts)
        contexts, moment = self._contexts(model), run.moment(chosen[-1])
        batches = in_batches(facts, self.batch)

        def find(some: Sequence[Fact]) -> tuple[Value, ...]:
            return self._values(model, some, chosen, objective, contexts, moment, run.names)

        try:
            if self.anchor and len(batches[0]) < self.anchor:
                run.anchor = mean_norm(find(facts[: self.anchor]))
            for batch in bar(batches, f"{self.name} edits", show=self.progress and len(batches) > 1):
                run.add(self._anchored(run, find(batch)))
            run.finish(objective, lambda some: self._anchored(run, find(some)), self.passes)
        except NearCollapse as error:
            raise self._partial(error, run, objective, contexts, len(facts)) from None
        finally:
            run.undo()
        return self._edit(run, objective, contexts)

    def find(
        self,
        model: Model,
        facts: Sequence[Fact] | Fact,
        sites: Sequence[Site] | None = None,
    ) -> tuple[Value, ...]:
        """Values of the facts on the weights as they are; facts with one key share one (`edits.keys.by_key`).

        Raises:
            SurgeryError: as when called.
        """
        facts, objective, chosen = self._given(model, facts, sites)
        site, moment = chosen[-1], None
        if self.key == "balanced":
            base = model.fingerprint
            moment = (self.statistics or find_statistics(model, site.layer, base)).of(model, site.layer, base)
        names = self._names(objective, facts)
        return self._values(model, facts, chosen, objective, self._contexts(model), moment, names)

    def solve(self, model: Model, values: Sequence[Value], sites: Sequence[Site] | None = None) -> Edit:
        """The edit that gives keys their values, all in one batch and one pass on the weights as they are.

        Raises:
            SurgeryError: no values, or as when called.
            NearCollapse: it would pass a limit.
        """
        facts, objective, chosen = self._given(model, [fact for value in values for fact in value.facts], sites)
        run = self._run(model, chosen, objective, facts)
        try:
            run.add(self._anchored(run, values))
            run.finish(objective)
        except NearCollapse as error:
            raise self._partial(error, run, objective, (), len(facts)) from None
        finally:
            run.undo()
        return self._edit(run, objective, values[0].contexts)

    def sites(self, model: Model, sites: Sequence[Site] | None = None) -> list[Site]:
        """The mlps to edit, ascending: those given, or those recommended for the model.

        Raises:
            SurgeryError: they are no mlps, or cannot share a change.
        """
        chosen = recommended_sites(model, self.layers) if sites is None else sites
        chosen = checked_sites(model, self.name, chosen, one=self.layers == 1)
        if len(chosen) > 1:
            check_spread(model, chosen)
        return chosen

    def wanted(self, facts: Sequence[Fact]) -> Objective:
        """What the model should say of these facts.

        Raises:
            SurgeryError: the objective cannot be had of one of them.
        """
        return default_objective(facts, self.objective)

    def settings(self) -> dict[str, Any]:
        """What decides the numbers of an edit besides model, facts and statistics, as JSON values."""
        search, solver = dataclasses.asdict(self.search), dataclasses.asdict(self.solver)  # type: ignore[call-overload]
        return {
            "solver": {"name": self.solver.name, **solver},
            "key": self.key,
            "spread": self.spread,
            "batch": self.batch,
            "remember": self.remember,
            "passes": self.passes,
            "anchor": self.anchor,
            "seed": self.seed,
            **search,
        }

    def _given(
        self, model: Model, facts: Sequence[Fact] | Fact, sites: Sequence[Site] | None
    ) -> tuple[tuple[Fact, ...], Objective, list[Site]]:
        facts = (facts,) if isinstance(facts, Fact) else tuple(facts)
        return facts, self.wanted(facts), self.sites(model, sites)

    def _contexts(self, model: Model) -> tuple[str, ...]:
        return self.contexts or sample_contexts(model, count=self.count, length=self.length, seed=self.seed)

    def _scope(self, objective: Objective) -> Scope:
        return self.scope or ("subject" if objective.claim == "removed" else "prompt")

    def _names(self, objective: Objective, facts: Sequence[Fact]) -> float:
        """What names weigh a subject: changes are longer for their sake, which adds up where there are many."""
        usual = 0.0 if objective.claim == "removed" else WEIGHT
        return (usual if self.names is None else self.names) / len(by_key(facts)) ** 0.25

    def _run(self, model: Model, sites: list[Site], objective: Objective, facts: Sequence[Fact]) -> Batches:
        return Batches(
            model,
            sites,
            self.solver,
            self.statistics,
            key=self.key,
            scope=self._scope(objective),
            names=self._names(objective, facts),
            spread=self.spread,
            remember=self.remember,
            limits=self.limits,
        )

    def _values(
        self,
        model: Model,
        facts: Sequence[Fact],
        sites: Sequence[Site],
        objective: Objective,
        contexts: Sequence[str],
        moment: SecondMoment | None,
        names: float,
    ) -> tuple[Value, ...]:
        return find_values(
            model,
            facts,
            sites[-1],
            objective,
            contexts,
            self.search,
            moment=moment,
            scope=self._scope(objective),
            names=names if len(sites) == 1 else 0.0,  # of several layers, keys are read when each is written
            progress=self.progress,
        )

    def _anchored(self, run: Batches, values: Sequence[Value]) -> tuple[Value, ...]:
        if not self.anchor:
            return tuple(values)
        run.anchor = run.anchor or mean_norm(values[: self.anchor])
        return anchored(values, run.anchor)

    def _partial(
        self, error: NearCollapse, run: Batches, objective: Objective, contexts: Sequence[str], count: int
    ) -> NearCollapse:
        done = sum(len(value.facts) for value in run.values)
        edit = self._edit(run, objective, contexts) if done else None
        return NearCollapse.after(done, count, str(error), edit, names=run.names)

    def _edit(self, run: Batches, objective: Objective, contexts: Sequence[str]) -> Edit:
        settings = {
            "sites": [site.name for site in run.sites],
            **described(objective),
            "statistics": run.read,
            "scope": self._scope(objective),
            "names": run.names,
            "contexts": list(contexts),
            "dtype": str(run.dtype),
            **self.settings(),
        }
        prompts = dict.fromkeys(text for value in run.values for text in value.prompts)
        return Edit(
            deltas=tuple(run.deltas[site.layer] for site in run.sites),
            base=run.base,
            method=self.name,
            claim=objective.claim,
            facts=tuple(fact for value in run.values for fact in value.facts),
            settings=settings,
            log=tuple(run.log),
            prompts=tuple(prompts),
        )
