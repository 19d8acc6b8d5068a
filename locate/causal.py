"""Causal tracing: which hidden states carry a fact through a transformer.

Meng et al. 2022, section 2 (https://arxiv.org/abs/2202.05262):

1. The clean run answers the prompt; every state h_i^(l) of it is kept.
2. The corrupted run answers with the subject's embeddings changed, the same changes for every cell.
3. The corrupted-with-restoration run does the same with one state put back to its clean value, and the answer's
   probability is that cell's score: p_*,clean(h_i^(l))[o], the mean over the samples.
4. Of mlp and attention outputs, a window of layers is restored at once, for one alone moves little.
5. Severed (section 2.2): with a state restored, that position's mlp (or attention) outputs are held at what they are in
   the corrupted run; what the state still restores does not pass through them.

Noising is the other way round: one corrupted state in the clean run, which asks what is necessary rather than what is
sufficient (Zhang & Nanda 2024, https://arxiv.org/abs/2309.16042).

Two methods give the same numbers: `locate.plain` runs the whole model once for every cell, as the published code does;
`locate.fast` replays only what a patched cell can change.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Literal, get_args

import torch

from locate.corrupt import Corruption, Gaussian
from locate.experiment import Direction, Experiment, Grids
from locate.fast import fast_grids
from locate.metrics import Metric, Probability
from locate.pair import Pair
from locate.plain import plain_grids
from locate.trace import Cost, Trace
from surgery.errors import SurgeryError, check_choice
from surgery.fact import Fact
from surgery.model import Model
from surgery.numbers import mean_and_error
from surgery.predict import rate
from surgery.replay import CannotReplay, Replay
from surgery.site import KINDS, Kind
from surgery.tokens import Question, Span

logger = logging.getLogger(__name__)

Positions = Literal["all", "subject", "last-subject"]


def causal_trace(model: Model, fact: Fact, *, kind: Kind = "state", **options: object) -> Trace:
    """Trace one fact through every position and layer, for one kind of site.

    Args:
        model: the model.
        fact: the fact; its `target` is the answer traced.
        kind: patch block outputs ("state"), or what "mlp" or "attention" add.
        options: those of `causal_traces`.

    Raises:
        SurgeryError: an option is out of range, or prompt and subject cannot be tokenised.
    """
    return causal_traces(model, fact, kinds=(kind,), **options)[0]  # type: ignore[arg-type]


def causal_traces(
    model: Model,
    fact: Fact,
    *,
    kinds: Sequence[Kind] = KINDS,
    window: int = 10,
    corruption: Corruption | None = None,
    samples: int = 10,
    seed: int = 1,
    metric: Metric | None = None,
    direction: Direction = "restore",
    severed: Literal["mlp", "attention"] | None = None,
    positions: Positions = "all",
    method: Literal["fast", "plain"] = "fast",
    dtype: str | torch.dtype | None = None,
    tokens: int | None = None,
    progress: bool = True,
) -> tuple[Trace, ...]:
    """Trace one fact for several kinds of site, in the same passes.

    Args:
        model: the model.
        fact: the fact; its `target` is the answer traced.
        kinds: what to patch, each in a grid of its own.
        window: layers patched at once for mlp and attention.
        corruption: how the subject is hidden; Gaussian noise of 3 times the embeddings' deviation by default.
        samples: draws of the noise; the standard error falls with their root.
        seed: of the draws.
        metric: what is read off; the probability of the answer's first token by default.
        direction: "restore" clean states in the corrupted runs, or "noise": corrupted states in the clean run.
        severed: hold the mlp or attention outputs of the patched position above a patched state; kind "state" only.
        positions: which to patch: "all", those of the "subject", or its last token alone ("last-subject").
        method: "fast" replays only what a patched cell can change (`locate.fast`); "plain" runs the whole model for
            every cell, as published. Their numbers are the same to rounding. A model whose blocks cannot be replayed is
            traced plainly, with a warning that says why.
        dtype: trace a copy of the model in another type: "bfloat16" is quicker where the processor has products of it,
            and the scores are then right to about 0.02 only. None: the model itself.
        tokens: most tokens computed at a time, for the fast method; None for what memory and caches allow.
        progress: show a bar where somebody is looking.

    Raises:
        SurgeryError: an option is out of range, or prompt and subject cannot be tokenised.
    """
    check_options(kinds, window, samples, direction, severed, positions, method, tokens)
    started = time.perf_counter()
    if dtype is not None:
        model = model.astype(dtype)
    corruption = Gaussian() if corruption is None else corruption
    metric = Probability() if metric is None else metric
    pair = Pair.of(model, fact, corruption, metric, samples, seed)
    experiment = Experiment(
        pair=pair,
        kinds=tuple(kinds),
        width=window,
        positions=_positions(positions, pair.question, pair.span),
        direction=direction,
        severed=severed,
    )
    with torch.no_grad():
        grids = _grids(method, experiment, tokens, progress)
    rank = rate(model, [(fact.prompt, fact.target)])[0].rank
    cost = Cost(grids.passes, grids.token_layers, time.perf_counter() - started, len(kinds))
    return tuple(_trace(kind, grids, experiment, metric, fact, rank, cost) for kind in kinds)


def check_options(
    kinds: Sequence[str],
    window: int,
    samples: int,
    direction: str,
    severed: str | None,
    positions: str = "all",
    method: str = "fast",
    tokens: int | None = None,
) -> None:
    """Whether a trace can be asked for like this, to be known before a model is loaded.

    Raises:
        SurgeryError: an option is out of range.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise SurgeryError(f"there is no kind {kind!r} to patch; choose one of {', '.join(KINDS)}")
    if not kinds or len(set(kinds)) < len(kinds):
        raise SurgeryError(f"give each kind to trace once, not {list(kinds)}")
    check_choice("tracing method", method, ("fast", "plain"))
    check_choice("direction", direction, get_args(Direction))
    check_choice("choice of positions", positions, get_args(Positions))
    check_choice("path to sever", severed, (None, "mlp", "attention"))
    if severed and tuple(kinds) != ("state",):
        raise SurgeryError(f"a path is severed above a patched state; trace kind 'state' alone, not {list(kinds)}")
    if samples < 1 or window < 1 or (tokens is not None and tokens < 1):
        raise SurgeryError(f"samples, window and tokens are at least 1, not {samples}, {window} and {tokens}")


def _positions(positions: Positions, question: Question, span: Span) -> range:
    if positions == "all":
        return range(span.start, question.answer_start)
    return range(span.start, span.stop) if positions == "subject" else range(span.last, span.stop)


def _grids(method: str, experiment: Experiment, tokens: int | None, progress: bool) -> Grids:
    if method == "fast":
        try:
            replay = Replay(experiment.pair.model, experiment.pair.ids)
        except CannotReplay as error:
            logger.warning("%s; tracing plainly, which takes several times longer", error)
        else:
            return fast_grids(experiment, replay, tokens=tokens, progress=progress)
    return plain_grids(experiment, progress=progress)


def _trace(
    kind: Kind, grids: Grids, experiment: Experiment, metric: Metric, fact: Fact, rank: int, cost: Cost
) -> Trace:
    """The grid of one kind as a trace: means over the samples, normalised where the metric is."""
    pair = experiment.pair
    offset, scale = _normalising(grids, metric)
    scores = (grids.grids[kind].double().cpu().numpy() - offset) * scale
    mean, error = mean_and_error(scores)
    return Trace(
        scores=mean,
        errors=error,
        clean=(grids.clean - offset) * scale,
        corrupted=(float(grids.corrupted.double().mean()) - offset) * scale,
        rank=rank,
        tokens=pair.question.token_texts[: pair.question.answer_start],
        subject=pair.span,
        kind=kind,
        window=1 if kind == "state" else experiment.width,
        samples=scores.shape[-1],
        corruption=str(pair.corruption),
        metric=metric.name,
        direction=experiment.direction,
        severed=experiment.severed,
        fact=fact,
        model=pair.model.source,
        dtype=str(pair.model.dtype).removeprefix("torch."),
        cost=cost,
    )


def _normalising(grids: Grids, metric: Metric) -> tuple[float, float]:
    """What to subtract from a metric's values and what to multiply them by then; a plain metric stays as it is."""
    if not metric.normalised:
        return 0.0, 1.0
    corrupted = float(grids.corrupted.double().mean())
    if abs(grids.clean - corrupted) < 1e-3:
        raise SurgeryError(
            f"the corruption does not change the {metric.name}, so it cannot be normalised; use a stronger corruption"
        )
    return corrupted, 1 / (grids.clean - corrupted)
