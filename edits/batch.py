"""Batches of facts written into a model one after the other, for as long as their changes are worked out.

A batch is steps 3 to 5 of `edits.grid`: it reads keys, solves a layer at a time from the lowest up, writes each change
before it reads for the next, looks at the limits, and remembers what the next batch needs. `undo` puts every weight
back, whatever happened.

Facts of one batch get in each other's way, for their values are found apart. `finish` asks every fact by its own
prompt, finds further values, on the weights as they are now, for those that do not answer as wanted, and solves for
these with the keys of all others as ordinary text. What is left then is told in the log.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from edits.keys import KeyOf, Scope, one_key_each, read_ends, read_subjects, subject_rows
from edits.limits import Limits, NearCollapse
from edits.namesakes import namesakes, read_names, scaled
from edits.objectives import Objective
from edits.places import WEIGHT, elsewhere_rows, other_rows
from edits.solve import Solution, Solver, Space
from edits.spread import Spread, share
from edits.statistics import SecondMoment, Statistics, find_statistics
from edits.values import Value
from edits.writing import Writes
from surgery.edit import Delta
from surgery.fact import Fact
from surgery.model import Model
from surgery.predict import rate
from surgery.site import Site

PILOTS = 8
"""Values whose mean length later ones are measured by: one alone may be an odd one."""
_Texts = tuple[list[list[tuple[int, ...]]], list[list[tuple[int, ...]]]]
"""Token ids of each value's texts: its facts in their contexts, and its subject elsewhere."""


class Batches:
    """What is written so far.

    Attributes:
        base: fingerprint of the weights as they came.
        dtype: their type.
        deltas: of everything written, by layer.
        values: of everything written.
        log: an entry a fact.
        names: what nearly the same names weigh, a subject.
        read: what the key statistics of each layer were fitted on.
        pilot: mean |v*| of the first batches' values, `PILOTS` or more; 0 before there are any.
        anchor: |v*| of all values where they are brought to one length, then their pilot; 0 where they are not.
    """

    def __init__(
        self,
        model: Model,
        sites: Sequence[Site],
        solver: Solver,
        statistics: Statistics | None,
        *,
        key: KeyOf,
        scope: Scope,
        names: float,
        spread: Spread,
        remember: bool,
        limits: Limits,
    ) -> None:
        self._model, self.sites, self._solver = model, list(sites), solver
        self._key, self._scope, self.names, self._spread = key, scope, names, spread
        self._remember, self._limits = remember, limits
        self.base, self.dtype = model.fingerprint, model.dtype
        self._spaces = {}
        self.read: dict[str, str] = {}
        for site in sites:
            own = statistics or find_statistics(model, site.layer, self.base)
            self._spaces[site.layer] = solver.space(own.of(model, site.layer, self.base))
            self.read[site.name] = f"{own.corpus}, {own.tokens} tokens"
        self._perplexity = limits.measure_once(model, self.base)
        self._norms = {site.layer: float(model.anatomy.matrix(site).detach().float().norm()) for site in sites}
        self._keys: dict[int, Float[Tensor, "d_ff values"]] = {}
        self._writes = Writes(model)
        self.deltas: dict[int, Delta] = {}
        self.values: list[Value] = []
        self.log: list[dict[str, Any]] = []
        self.pilot = self.anchor = 0.0

    def moment(self, site: Site) -> SecondMoment | None:
        """What keys of contexts are joined by at a site; None where they are averaged."""
        return self._spaces[site.layer].moment if self._key == "balanced" else None

    def add(self, values: Sequence[Value]) -> None:
        """Write one more batch.

        Raises:
            NearCollapse: it would pass a limit; `deltas`, `values` and `log` are those before it.
            SurgeryError: keys that cannot be solved for.
        """
        if self.anchor or len(self.values) < PILOTS:
            self.pilot = self.anchor or mean_norm([*self.values, *values])
        written, solutions, keys = self._written(values, self._keys if self._remember else {})
        entries = self._entries(values, written, solutions)
        self.deltas, self.log = written, self.log + entries
        self.values += values
        for layer, new in keys.items():
            old = self._keys.get(layer)
            self._keys[layer] = new.T if old is None else torch.cat([old, new.T], 1)

    def finish(
        self, objective: Objective, find: Callable[[Sequence[Fact]], Sequence[Value]] | None = None, passes: int = 1
    ) -> None:
        """Write more of what does not answer as wanted yet, and tell in the log what does.

        Args:
            objective: what is wanted.
            find: values of some facts on the weights as they are; None to write no more.
            passes: how often in all facts are written, the first time included; fewer where all answer as wanted, or
                where one more would pass a limit.
        """
        met = self._met(objective)
        for _ in range(passes - 1):
            again = [i for i, own in enumerate(met) if not all(own)]
            if find is None or not again:
                break
            values = find([fact for i in again for fact in self.values[i].facts])
            others = [i for i in range(len(self.values)) if i not in again]
            written, solutions, _ = self._written(values, {layer: own[:, others] for layer, own in self._keys.items()})
            try:
                entries = iter(self._entries(values, written, solutions))
            except NearCollapse:
                break  # `deltas` are those before this pass
            self.deltas = written
            places = [i for i, value in enumerate(self.values) for _ in value.facts]
            self.log = [
                _further(one, next(entries)) if i in again else one for i, one in zip(places, self.log, strict=True)
            ]
            met = self._met(objective)
        told = [one for own in met for one in own]
        self.log = [{**one, "met": answers} for one, answers in zip(self.log, told, strict=True)]

    def _met(self, objective: Objective) -> list[list[bool]]:
        """Of each value's facts, which answer as wanted, asked by their own prompts on the weights as they are."""
        asked = [(fact.prompt, objective.continuation(fact)) for value in self.values for fact in value.facts]
        answers = iter(rate(self._model, asked))
        return [[objective.met(next(answers)) for _ in value.facts] for value in self.values]

    def _written(
        self, values: Sequence[Value], earlier: Mapping[int, Float[Tensor, "d_ff _"]]
    ) -> tuple[dict[int, Delta], dict[int, Solution], dict[int, Float[Tensor, "values d_ff"]]]:
        """Write a batch, from the lowest layer up: all that is written then, this batch's solutions, its keys."""
        written, solutions, keys = dict(self.deltas), {}, {}
        wanted: Tensor | None = None
        texts = self._texts(values) if len(self.sites) > 1 else None
        for i, (site, found) in enumerate(zip(self.sites, self._names(values), strict=True)):
            near = scaled(found, self._spaces[site.layer].moment, self.names)
            keys[site.layer], states = self._read(values, texts, site, near)
            missing = torch.stack([value.shift for value in values])
            if states is not None:
                wanted = states + missing if wanted is None else wanted
                missing = wanted - states
            solution = self._solver(
                keys[site.layer].T,
                (share(self._spread, len(self.sites) - i) * missing).T,
                self._space(values, site, torch.cat(near)),
                earlier.get(site.layer),
            )
            delta = Delta(self._model.anatomy.name(site), solution.left, solution.right)
            self._writes.add(delta)
            before = written.get(site.layer)
            written[site.layer], solutions[site.layer] = delta if before is None else before + delta, solution
        return written, solutions, keys

    def _names(self, values: Sequence[Value]) -> Iterator[list[Float[Tensor, "_ d_ff"]]]:
        """Keys of each value's names at one site after the other, on the weights as they are by then."""
        known = [value.names for value in values if value.names is not None]
        if self.names and len(self.sites) == 1 and len(known) == len(values):
            yield known
            return
        names = namesakes(self._model, [value.facts for value in values]) if self.names else [()] * len(values)
        for site in self.sites:
            yield read_names(self._model, names, site)

    def undo(self) -> None:
        """Put all weights back."""
        self._writes()

    def _space(self, values: Sequence[Value], site: Site, near: Float[Tensor, "names d_ff"]) -> Space:
        """What the solver knows of a layer, nearly the same names and others in these subjects' place included."""
        space = self._spaces[site.layer]
        if len(near):
            space = self._solver.beside(space, near, float(len(near)))
        if self._scope == "prompt":
            return space
        rows = other_rows(self._model, [fact for value in values for fact in value.facts])
        if not rows:
            return space
        keys, _ = read_ends(self._model, rows, site)
        return self._solver.beside(space, keys.cpu(), WEIGHT)

    def _read(
        self, values: Sequence[Value], texts: _Texts | None, site: Site, near: Sequence[Float[Tensor, "_ d_ff"]]
    ) -> tuple[Float[Tensor, "values d_ff"], Float[Tensor, "values d_model"] | None]:
        """Keys of the values at a site, and mean states above the highest one over contexts, where there are texts."""
        if texts is None:
            return torch.stack([value.key for value in values]), None
        keys, states = read_subjects(self._model, *texts, site, self.sites[-1].layer)
        assert states is not None
        return one_key_each(keys, self.moment(site), near=near), torch.stack([part.mean(0) for part in states])

    def _texts(self, values: Sequence[Value]) -> _Texts:
        """What is read of each value at every site: its facts in their contexts, and its subject elsewhere."""
        own = [subject_rows(self._model, value.facts, value.contexts) for value in values]
        if self._scope == "prompt":
            return own, [[] for _ in values]
        return own, [
            [row for fact in value.facts for row in elsewhere_rows(self._model, fact, value.contexts)]
            for value in values
        ]

    def _entries(
        self, values: Sequence[Value], written: dict[int, Delta], solutions: dict[int, Solution]
    ) -> list[dict[str, Any]]:
        """What there is to tell of a batch, an entry a fact.

        Raises:
            NearCollapse: the batch passes a limit.
        """
        total = max(delta.norm / self._norms[layer] for layer, delta in written.items())
        perplexity = self._limits.measure(self._model) / self._perplexity
        longest = max(float((value.old + value.shift).norm()) for value in values) / self.pilot
        if (passed := self._limits.passed(total, longest, perplexity)) is not None:
            raise NearCollapse(passed, None, 0)
        highest = solutions[self.sites[-1].layer]
        entries = []
        for i, value in enumerate(values):
            own = max(
                float(one.left[:, i].norm() * one.right[:, i].norm()) / self._norms[layer]
                for layer, one in solutions.items()
            )
            numbers = {
                "steps": len(value.losses) - 1,
                "loss": value.losses[-1],
                "old_norm": float(value.old.norm()),
                "shift_norm": float(value.shift.norm()),
                "norm_to_pilot": float((value.old + value.shift).norm()) / self.pilot,
                "key_agreement": value.agreement,
                "denominator": highest.denominators[i],
                "direction_cosine": highest.cosines[i],
                "relative_change": own,
                "total_change": total,
                "perplexity_ratio": perplexity,
            }
            entries += [{"fact": fact.label, **numbers} for fact in value.facts]
        return entries


def _further(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """A fact's entry after one more pass: its numbers are those of the last, its steps all that were taken."""
    return {**before, **now, "steps": before["steps"] + now["steps"], "passes": before.get("passes", 1) + 1}


def anchored(values: Sequence[Value], norm: float) -> tuple[Value, ...]:
    """The values with |v*| = norm, their directions as they were."""
    made = []
    for value in values:
        new = value.old + value.shift
        made.append(dataclasses.replace(value, shift=norm / new.norm() * new - value.old))
    return tuple(made)


def mean_norm(values: Sequence[Value]) -> float:
    """Mean |v*|."""
    return sum(float((value.old + value.shift).norm()) for value in values) / len(values)
