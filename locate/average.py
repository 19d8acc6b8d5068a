"""Causal traces averaged over facts, with honest uncertainty.

Meng et al. 2022, section 2.2 and appendix B (https://arxiv.org/abs/2202.05262), with their averages' mistakes left out:

1. Each fact the model knows (its answer is the likeliest token) is traced; the others are counted.
2. Positions are put into roles: first, middle and last token of the subject, the first token after it, further ones,
   the last. A subject of one token is its last token only. Several positions of one role are averaged within the fact,
   so that every fact counts once.
3. A role's mean effect over facts comes with the interval of Student's t over the facts that have the role.
4. Per fact, the layer with the largest effect is kept: a mean can peak where few facts do.

Every fact's traces are kept in a file named by a hash of weights, fact and settings: an average that was stopped goes
on where it was.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from locate.causal import causal_traces
from locate.profile import AverageTrace, averaged
from locate.trace import Trace
from surgery.errors import SurgeryError
from surgery.fact import Fact
from surgery.model import Model
from surgery.predict import ROWS, rate
from surgery.progress import bar
from surgery.site import KINDS, Kind
from surgery.store import kept

logger = logging.getLogger(__name__)


def average_trace(
    model: Model,
    facts: Sequence[Fact],
    *,
    kinds: Sequence[Kind] = KINDS,
    limit: int | None = None,
    cache: str | Path | None = None,
    progress: bool = True,
    **options: Any,
) -> AverageTrace:
    """Trace facts and average them.

    Args:
        model: the model.
        facts: the facts; those it does not know are left out and counted.
        kinds: what to patch.
        limit: stop after so many known facts.
        cache: a folder that keeps each fact's traces, to go on from; stopping loses only the fact at work.
        progress: show a bar with the remaining time where somebody is looking.
        options: those of `locate.causal_traces`.

    Raises:
        SurgeryError: the model knows none of the facts, or an option is out of range.
    """
    if limit is not None and limit < 1:
        raise SurgeryError(f"a limit of {limit} facts leaves nothing to average; give at least 1")
    known, unknown = _known(model, facts, limit)
    store = _Store(model, kinds, options, None if cache is None else Path(cache))
    rows: list[tuple[Trace, ...]] = []
    failed: list[tuple[str, str]] = []
    for fact in bar(known, "facts traced", show=progress):
        try:
            rows.append(store.traces(fact))
        except SurgeryError as error:
            logger.info("%s is left out: %s", fact.label, error)
            failed.append((fact.label, str(error)))
    if not rows:
        reason = f": {failed[0][1]}" if failed else f"; of {len(unknown)} it knows none"
        raise SurgeryError(f"no fact could be averaged{reason}")
    return averaged(rows, unknown=tuple(unknown), failed=tuple(failed))


def _known(model: Model, facts: Sequence[Fact], limit: int | None) -> tuple[list[Fact], list[tuple[str, int]]]:
    """Facts whose answer is the likeliest, up to the limit, and the others met on the way with its rank."""
    known: list[Fact] = []
    unknown: list[tuple[str, int]] = []
    for start in range(0, len(facts), ROWS):
        part = facts[start : start + ROWS]
        for fact, answer in zip(part, rate(model, [(fact.prompt, fact.target) for fact in part]), strict=True):
            if len(known) == limit:
                return known, unknown
            if answer.rank == 1:
                known.append(fact)
            else:
                unknown.append((fact.label, answer.rank))
    return known, unknown


class _Store:
    """Traces by fact, on disk where there is a folder for them."""

    def __init__(self, model: Model, kinds: Sequence[Kind], options: dict[str, Any], folder: Path | None) -> None:
        self._model, self._kinds, self._options, self._folder = model, tuple(kinds), options, folder
        self._key = f"{model.fingerprint} {self._kinds} {sorted((k, repr(v)) for k, v in options.items())}"

    def traces(self, fact: Fact) -> tuple[Trace, ...]:
        """Of one fact, from its file or anew."""
        key = f"{self._key} {json.dumps(fact.as_record(), sort_keys=True)}"
        records = kept(self._folder, key, lambda: [one.as_record() for one in self._traced(fact)])
        return tuple(Trace.from_record(one) for one in records)

    def _traced(self, fact: Fact) -> tuple[Trace, ...]:
        return causal_traces(self._model, fact, kinds=self._kinds, progress=False, **self._options)
