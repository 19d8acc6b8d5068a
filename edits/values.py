"""The value an edited matrix should give for a key, found by gradient descent on a shift of it.

Meng et al. 2022, eq. 4 (https://arxiv.org/abs/2202.05262):

1. The prompt is read in every context; k* is their key at the subject's last token (`edits.keys`), v = W k* the old
   value.
2. A shift delta is added to the down-projection's output at that token, in every context and in an essence prompt.
3. Gradient steps (`edits.descent`; published: Adam's) lessen the objective's loss
   + kl KL(p_before || p_after) of the next token after "{subject} is a" (the subject stays what it is)
   + decay |delta|^2 / |v|^2,
   with steps in proportion to |v| and delta projected back to |delta| <= clamp |v|.
4. The new value is v* = v + delta, of the same k*.

The rows are read by replay from the edited block on (`edits.reading`), or by full runs as published.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from edits.descent import Adam, Steepest
from edits.keys import Scope, by_key, one_key_each, read_subjects
from edits.losses import SearchLoss
from edits.namesakes import namesakes, read_names, scaled
from edits.objectives import Loss, Objective, depths_of
from edits.places import elsewhere_rows
from edits.reading import FullRuns, Reader, Replayed, Rows, packed_above
from edits.room import in_chunks
from edits.statistics import SecondMoment
from surgery.errors import SurgeryError, check_choice
from surgery.fact import SLOT, Fact
from surgery.gpu_queue import Asked, sent
from surgery.hooks import frozen
from surgery.model import Model
from surgery.progress import counter
from surgery.replay import CannotReplay
from surgery.site import Site

logger = logging.getLogger(__name__)

FEWEST = 3
"""Steps that nearly every fact takes; what weights are surely used for."""
FLAT = 1e-6
"""Nats that a shift as long as the value would change the loss by, from which on they are rounding."""


@dataclass(frozen=True, kw_only=True)
class ValueSearch:
    """How to look for a value.

    Attributes:
        steps: most there are; more fit harder.
        step: length of a step in units of |v|; of a coordinate's step where the rule is "adam", whose published 0.5 is
            absolute and suits one model's norms only.
        rule: "steepest" finds shorter shifts, which move less of what is near; "adam" is the published one.
        clamp: most |delta| may be, in units of |v|.
        kl: weight of keeping the essence prompt's next token.
        decay: weight of |delta|^2 / |v|^2; published: 0.5, which a search that stops early does not need.
        stop: end early once the objective's own loss is below this; the other two terms would hide that it is reached.
            Published: once the sum of all three is below 0.05.
        essence: a prompt that asks what the subject is.
        method: "fast" replays only what the shift can change; "plain" runs the whole model at each step, as published.
            Their numbers are the same to rounding.
    """

    steps: int = 25
    step: float = 0.5
    rule: Literal["steepest", "adam"] = "steepest"
    clamp: float = 4.0
    kl: float = 0.0625
    decay: float = 1e-3
    stop: float = 0.02
    essence: str = "{} is a"
    method: Literal["fast", "plain"] = "fast"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.step <= 0 or self.clamp <= 0:
            raise SurgeryError("steps, step and clamp of a value search must be above 0")
        check_choice("search method", self.method, ("fast", "plain"))
        check_choice("rule", self.rule, ("steepest", "adam"))
        if self.essence.count(SLOT) != 1:
            raise SurgeryError(f"the essence prompt {self.essence!r} needs exactly one {{}} for the subject")


@dataclass(frozen=True, eq=False)
class Value:
    """A key with its old value and the shift to the new one.

    Attributes:
        key: k*, of all contexts together (`edits.keys`).
        agreement: smallest cosine between one context's key and k*.
        old: W k*.
        shift: delta; the new value is old + shift.
        losses: the loss at each step.
        prompts: every text that was read.
        facts: what it is the value of: facts with one key, which share one shift.
        contexts: what they were read in.
        names: keys of nearly the same names at that site, on the CPU; None where they had no say. Files leave them out.
    """

    key: Float[Tensor, " d_ff"]
    agreement: float
    old: Float[Tensor, " d_model"]
    shift: Float[Tensor, " d_model"]
    losses: tuple[float, ...]
    prompts: tuple[str, ...]
    facts: tuple[Fact, ...]
    contexts: tuple[str, ...]
    names: Float[Tensor, "names d_ff"] | None = None


def find_values(
    model: Model,
    facts: Sequence[Fact],
    site: Site,
    objective: Objective,
    contexts: Sequence[str],
    search: ValueSearch,
    *,
    moment: SecondMoment | None = None,
    scope: Scope = "prompt",
    names: float = 0.0,
    progress: bool = False,
) -> tuple[Value, ...]:
    """Find the values that make the model say what the objective wants, each on the model as it is.

    Args:
        model: the model; its weights are not touched.
        facts: those about the same subject share one value, in the place of the first of them. A fact without a subject
            shares with those of the same prompt, and is edited at the prompt's last token: whoever is asked for in the
            same words is told the same.
        site: the mlp whose output is shifted.
        objective: what the model should say.
        contexts: texts that end with `{}` to read the prompts in.
        search: how to look.
        moment: of the site's keys, for a key that all contexts respond to alike; without it, it is their mean.
        scope: "subject" to make the key of other places of the subject as well (`edits.places`).
        names: what nearly the same names weigh in it besides (`edits.namesakes`).
        progress: show a bar where somebody is looking.

    Returns:
        one value for each subject.

    Raises:
        SurgeryError: the objective cannot be had of a fact, an answer is cut into other tokens in some context, or does
            not depend on its subject at that site.
    """
    depths = depths_of(objective, model, site)
    groups = [Rows(model, group, objective, contexts, search.essence) for group in by_key(facts)]
    keys = _keys(model, site, groups, contexts if scope == "subject" else ())
    named: list[Tensor] | None = None
    near = None
    if moment and names:
        named = read_names(model, namesakes(model, [rows.facts for rows in groups]), site)
        near = scaled(named, moment, names)
    joined = one_key_each(keys, moment, near=near)
    matrix = model.anatomy.matrix(site).detach().float()
    old = joined @ matrix.T
    usual = old if near is None else one_key_each(keys, moment) @ matrix.T  # names have no say in |v|
    found: dict[int, Value] = {}
    chunks = in_chunks(model, groups) if search.method == "fast" else [[i] for i in range(len(groups))]
    products = packed_above(model, site, sure=len(chunks) * (FEWEST if search.stop > 0 else search.steps))
    with frozen(model.hf), counter(len(groups), "values", show=progress and len(groups) > 1) as shown:
        for chunk in chunks:
            read = [groups[i] for i in chunk]
            reader = _reader(model, site, read, depths, search, products)
            wanted = [[objective.loss(model, fact) for fact in rows.facts] for rows in read]
            ended = _descend(reader, read, site, wanted, usual[chunk], search, shown.update)
            for i, (shift, losses) in zip(chunk, ended, strict=True):
                agreement = float(torch.nn.functional.cosine_similarity(keys[i], joined[i, None], dim=1).min())
                rows = groups[i]
                found[i] = Value(
                    joined[i], agreement, old[i], shift, losses, rows.prompts, rows.facts, tuple(contexts),
                    named[i] if named else None,
                )  # fmt: skip
    return tuple(found[i] for i in range(len(groups)))


def _keys(
    model: Model, site: Site, groups: Sequence[Rows], elsewhere: Sequence[str]
) -> list[Float[Tensor, "contexts d_ff"]]:
    """Keys at the subject of every row but the essence prompt, of each group; with contexts, elsewhere as well."""
    ends = [rows.asked_ends for rows in groups]
    more = [
        [row for fact in rows.facts for row in elsewhere_rows(model, fact, elsewhere)] if elsewhere else []
        for rows in groups
    ]
    return read_subjects(model, ends, more, site)[0]


def _reader(
    model: Model,
    site: Site,
    groups: Sequence[Rows],
    depths: Sequence[int],
    search: ValueSearch,
    products: AbstractContextManager[Any],
) -> Reader:
    if search.method == "fast":
        try:
            return Replayed(model, site, groups, depths, products)
        except CannotReplay as error:
            logger.warning("%s; searching by full runs, which takes several times longer", error)
    return FullRuns(model, site, groups, depths)


def _descend(
    reader: Reader,
    groups: Sequence[Rows],
    site: Site,
    wanted: Sequence[Sequence[Loss]],
    old: Float[Tensor, "groups d_model"],
    search: ValueSearch,
    done: Callable[[int], object],
) -> list[tuple[Float[Tensor, " d_model"], tuple[float, ...]]]:
    """Each group's shift and losses. A group that is done is left out of the reading; the others go on.

    The shifts are sought in units of |v|; groups do not feel each other.
    """
    loss = SearchLoss(reader, groups, wanted, old, kl=search.kl, decay=search.decay)
    descent = (Adam if search.rule == "adam" else Steepest)(loss.unit, search.step)
    losses: list[list[float]] = [[] for _ in groups]
    ended: dict[int, Tensor] = {}
    for step in range(search.steps + 1):
        last = step == search.steps
        found = loss(last=last)
        now, said = Asked(found).tolist()
        for i, one in zip(loss.going, now, strict=True):
            losses[i].append(one)
        still = [] if last else [n for n, one in enumerate(said) if not one < search.stop]
        for n in set(range(len(loss.going))) - set(still):
            i = loss.going[n]
            ended[i] = loss.unit[i] * loss.norms[i]
        done(len(loss.going) - len(still))
        if not still:
            break
        gradient, kept = loss.gradient(still), found[0][sent(still, old.device)]
        if len(still) < len(loss.going):
            loss.keep(still)
        if not step:
            _check_reach([groups[i] for i in loss.going], gradient, site)
        descent.step_(loss.unit, loss.at, gradient, kept)
        loss.unit *= (search.clamp / loss.unit.norm(dim=1, keepdim=True).clamp_min(1e-30)).clamp_max(1.0)
    return [(ended[i], tuple(losses[i])) for i in range(len(groups))]


def _check_reach(groups: Sequence[Rows], gradients: Float[Tensor, "groups d_model"], site: Site) -> None:
    """Refuse what no shift can change: of rounding alone, a direction would still be made, and written.

    Raises:
        SurgeryError: an answer does not depend on its subject there.
    """
    for rows, size in zip(groups, gradients.norm(dim=1).tolist(), strict=True):
        if size < FLAT:
            raise SurgeryError(
                f"what is answered to {rows.facts[0].prompt!r} does not depend on {site} at the subject's last token: "
                "no later layer looks back at it; choose a lower layer"
            )
