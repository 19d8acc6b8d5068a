"""Which layer to edit: the same facts edited at one layer after the other.

1. A sample of facts, each with a new answer (`edits.sample`).
2. Each fact alone is edited at each layer, the edit applied and taken back; prompt, held-out wordings and neighbours
   are rated before and after (`edits.scores`). An edit the method refuses leaves the model as it is, and scores so.
3. Facts come one after the other, each at all layers, so that layers are compared on the same facts.
4. What an edit gave is kept in a file named by a hash of weights, fact, layer, settings and key statistics: a sweep
   that was stopped goes on where it was.

Hase et al. 2023 (https://arxiv.org/abs/2301.04213) found that how well an edit goes depends on the layer and hardly on
where tracing finds the fact; so the layer is chosen by trying (`Sweep.recommend`), and the trace is shown beside it.
Over layers the two can still go together, since both fall with depth: the default model's correlation is 0.84.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edits.layer_statistics import LayerStatistics
from edits.layers import MEASURES, RATED, Sweep, TraceProfile
from edits.method import Method
from edits.rank_one import RankOne
from edits.sample import sample_facts, with_new_answers
from edits.trials import Trial, Trials, settings
from locate.profile import AverageTrace
from surgery.errors import SurgeryError
from surgery.fact import Fact
from surgery.model import Model
from surgery.progress import bar


def sweep(
    model: Model,
    facts: Sequence[Fact] | None = None,
    *,
    layers: Sequence[int] | None = None,
    method: Method | None = None,
    texts: Sequence[str] | None = None,
    trace: AverageTrace | None = None,
    drift: bool = False,
    neighbour_shift: float = 0.05,
    seed: int = 0,
    cache: str | Path | None = None,
    progress: bool = True,
) -> Sweep:
    """Edit facts at each layer and score the edits. The weights are bit-identical afterwards, however it ends.

    Args:
        model: the model.
        facts: what to rewrite; None for eight that `sample_facts` draws. One without a `new_target` gets the answer of
            one of its neighbours.
        layers: which to try; all by default.
        method: how to edit; `RankOne()` by default.
        texts: ordinary text to fit key statistics on, for layers the method's own do not cover, or those shipped or
            cached where it brings none. Without texts such layers are left out, and the result says so.
        trace: averaged traces with kind mlp, such as `locate.average_trace(model, facts, kinds=("mlp",))`, to compare.
        drift: also measure how far each edit moves neutral text.
        neighbour_shift: most a neighbour's probability may move.
        seed: of the facts and new answers drawn.
        cache: a folder that keeps what each edit gave, to go on from; stopping loses only the edit at work.
        progress: show a bar where somebody is looking.

    Raises:
        SurgeryError: there is no layer, fact or new answer to try, every edit is refused, or an option is out of range.
        WrongWeights: the method's statistics belong to other weights.
    """
    method = RankOne(progress=False) if method is None else method
    _check(facts, method, neighbour_shift)
    depth = len(model.anatomy.layers)
    profile = None if trace is None else _profile(trace, depth)
    statistics = LayerStatistics(model, method, range(depth) if layers is None else layers, texts)
    chosen = sample_facts(model, seed=seed) if facts is None else with_new_answers(facts, seed=seed)
    trials = Trials(model, method, statistics, None if cache is None else Path(cache), drift=drift)
    cells = [(fact, layer) for fact in chosen for layer in statistics.layers]
    made = iter([trials.of(fact, layer) for fact, layer in bar(cells, "edits swept", show=progress)])
    rows = [(fact, [next(made) for _ in statistics.layers]) for fact in chosen]
    edited = [row for _, row in rows if not all(one.refused for one in row)]
    if not edited:
        raise SurgeryError(f"no fact could be edited at any layer: {rows[0][1][0].refused}")
    values = [[one.values(neighbour_shift) for one in row] for row in edited]
    unedited = [row[0].unedited() for row in edited]
    return Sweep(
        layers=statistics.layers,
        facts=tuple(_label(row[0].fact) for row in edited),
        values={name: np.array([[one[name] for one in row] for row in values]).T for name in MEASURES},
        unedited={name: np.array([one[name] for one in unedited]) for name in RATED},
        trace=profile,
        left_out=statistics.left_out,
        failed=tuple(one for fact, row in rows for one in _failed(fact, statistics.layers, row)),
        method=method.name,
        settings={**settings(method), "neighbour_shift": neighbour_shift},
        model=model.source,
        depth=depth,
        fingerprints=(model.fingerprint,),
    )


def _check(facts: Sequence[Fact] | None, method: Method, neighbour_shift: float) -> None:
    """Whether a sweep can be asked for like this."""
    if not 0 < neighbour_shift <= 1:
        raise SurgeryError(
            f"a neighbour's probability moves by 0 to 1; neighbour_shift={neighbour_shift} tells nothing"
        )
    if facts is not None and not facts:
        raise SurgeryError("there is no fact to sweep with; give some, or None for shipped ones")
    if (objective := getattr(method, "objective", None)) is not None and objective.claim != "rewritten":
        raise SurgeryError(f"a sweep rewrites, but the objective {objective.name!r} removes; leave it to the default")


def _profile(trace: AverageTrace, depth: int) -> TraceProfile:
    """A trace by layer, of a model of so many."""
    profile = TraceProfile.of(trace)
    if len(profile.effect) != depth:
        raise SurgeryError(f"the trace has {len(profile.effect)} layers, the model {depth}; trace this model")
    return profile


def _failed(fact: Fact, layers: Sequence[int], row: Sequence[Trial]) -> list[tuple[int | None, str, str]]:
    found = [(layer, _label(fact), one.refused) for layer, one in zip(layers, row, strict=True) if one.refused]
    return [(None, *found[0][1:])] if len(found) == len(row) else [*found]


def _label(fact: Fact) -> str:
    return f"{fact.label} -> {fact.new_target}"
