"""Corpus-level measures of removals, on invented people that a model is taught for the purpose.

1. The model learns the retain set, then the forget set on top, with the retain set once more (`plant`). The weights
   between the two are those of a model that never saw the forget set, and otherwise the same: the reference.
2. A removal is any callable (model, facts) -> Edit. It is given the model that knows both and the forget set's facts.
3. What it leaves is measured by MUSE's six measures (`muse`) and TOFU's forget quality (`tofu`), beside the reference,
   the model with nothing removed, and the removal that restores the reference.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from surgery.corpus.invented import Corpus, Person
from surgery.corpus.membership import forget_auc, priv_leak
from surgery.corpus.muse import (
    AfterRemoval,
    Remover,
    knowledge,
    queries_of,
    scalability,
    surprise,
    sustainability,
    verbatim,
)
from surgery.corpus.plant import Planted, Planting, planted_corpus
from surgery.corpus.results import CorpusReport, Judged
from surgery.corpus.tofu import forget_quality, log_truth_ratios
from surgery.delta import Delta
from surgery.edit import Edit
from surgery.fact import Fact
from surgery.hooks import get_module
from surgery.linear_map import oriented
from surgery.model import Model

COUNTS = (1, 4, 16)
REMOVALS = 4


@dataclass(frozen=True, eq=False)
class Measured:
    """What one state of a model makes of a corpus.

    Attributes:
        verbatim: ROUGE-L of each forgotten text's continuation.
        forget: ROUGE-L of each answer about the forget set.
        retain: ROUGE-L of each answer about the retain set.
        forget_surprise: Min-40 % log-probability of each sentence about the forget set, read in its text.
        holdout_surprise: the same about the holdout.
        log_ratios: log truth ratio of each query about the forget set.
    """

    verbatim: Float[np.ndarray, " people"]
    forget: Float[np.ndarray, " forget"]
    retain: Float[np.ndarray, " retain"]
    forget_surprise: Float[np.ndarray, " told"]
    holdout_surprise: Float[np.ndarray, " untold"]
    log_ratios: Float[np.ndarray, " forget"]

    @property
    def auc(self) -> float:
        """The chance that a sentence of the holdout surprises the model less than one of the forget set."""
        return forget_auc(self.forget_surprise, self.holdout_surprise)


@dataclass(frozen=True, eq=False)
class Taught:
    """A model that knows a corpus, for the length of a `with` block.

    Attributes:
        model: the model.
        corpus: what it knows.
        planted: how it came to know the forget set.
        reference: what the model that never saw the forget set makes of the corpus.
        seconds: what the teaching took.
    """

    model: Model
    corpus: Corpus
    planted: Planted
    reference: Measured
    seconds: float

    @property
    def restore(self) -> Remover:
        """The removal that brings the reference's weights back."""
        return self.planted.restore


@contextmanager
def taught(model: Model, corpus: Corpus, planting: Planting | None = None) -> Iterator[Taught]:
    """Inside the block, the model knows the retain and forget sets; afterwards it is as it was, bit for bit.

    Args:
        model: the model.
        corpus: what it is taught.
        planting: how; None for the usual way.

    Raises:
        SurgeryError: the texts cannot be planted.
    """
    clock = time.perf_counter()
    retained = lessons(corpus.retain)
    with planted_corpus(model, retained, planting):
        seconds = time.perf_counter() - clock
        reference = measured(model, corpus)
        clock = time.perf_counter()
        with planted_corpus(model, [*lessons(corpus.forget), *retained], planting) as planted:
            yield Taught(model, corpus, planted, reference, seconds + time.perf_counter() - clock)


def lessons(people: Sequence[Person]) -> list[str]:
    """What is taught of some people: each one's text, and their facts once more in the words they are asked in."""
    retold = [" ".join(f"{fact.prompt} {fact.target}." for fact in reversed(person.facts)) for person in people]
    return [*(person.text for person in people), *retold]


def measured(model: Model, corpus: Corpus) -> Measured:
    """What the model as it is makes of a corpus."""
    return Measured(
        verbatim(model, corpus.forget),
        knowledge(model, corpus, queries_of(corpus.forget)),
        knowledge(model, corpus, queries_of(corpus.retain)),
        surprise(model, corpus.forget),
        surprise(model, corpus.holdout),
        log_truth_ratios(model, corpus, corpus.forget),
    )


def judged(
    name: str,
    found: Measured,
    reference: Measured,
    scalable: Sequence[AfterRemoval] = (),
    sustained: Sequence[AfterRemoval] = (),
    seconds: float = 0.0,
) -> Judged:
    """The measures of one state of a model against one that was never trained on the forget set.

    Raises:
        SurgeryError: the reference has seen the forget set.
    """
    statistic, quality = forget_quality(found.log_ratios, reference.log_ratios)
    return Judged(
        name=name,
        verbatim=float(found.verbatim.mean()),
        knowledge=float(found.forget.mean()),
        leak=priv_leak(found.auc, reference.auc),
        utility=float(found.retain.mean()),
        scalability=tuple(scalable),
        sustainability=tuple(sustained),
        truth_ratio=float(found.log_ratios.mean()),
        distance=statistic,
        quality=quality,
        auc=found.auc,
        seconds=seconds,
    )


def judge_removal(
    known: Taught, name: str, remove: Remover, *, counts: Sequence[int] = COUNTS, removals: int = REMOVALS
) -> Judged:
    """One way of removing, measured on the whole forget set, on ever more facts and in sequence.

    Args:
        known: the model that knows the corpus.
        name: of the removal, for tables.
        remove: gives the edit.
        counts: how many facts are removed at once for scalability; those beyond the forget set are left away.
        removals: how many in sequence for sustainability; 0 leaves it away.

    Raises:
        SurgeryError: more removals than facts, or as the removal does.
    """
    model, corpus = known.model, known.corpus
    clock = time.perf_counter()
    edit = remove(model, corpus.facts)
    seconds = time.perf_counter() - clock
    with edit.applied(model):
        found = measured(model, corpus)
    usable = [count for count in counts if count <= len(corpus.facts)]
    scalable = scalability(model, corpus, remove, usable)
    sustained = sustainability(model, corpus, remove, removals) if removals else ()
    return judged(name, found, known.reference, scalable, sustained, seconds)


def measure_corpus(
    model: Model,
    corpus: Corpus,
    removers: Mapping[str, Remover],
    *,
    planting: Planting | None = None,
    counts: Sequence[int] = COUNTS,
    removals: int = REMOVALS,
) -> CorpusReport:
    """Teach a model a corpus, remove its forget set in several ways, and measure what is left.

    Args:
        model: the model; it is the same afterwards.
        corpus: what it is taught.
        removers: ways of removing, by name.
        planting: how it is taught; None for the usual way.
        counts: how many facts are removed at once for scalability; those beyond the forget set are left away.
        removals: how many in sequence for sustainability; 0 leaves it away.

    Raises:
        SurgeryError: the texts cannot be planted, there are more removals than facts, or as a removal does.
    """
    clock = time.perf_counter()
    with taught(model, corpus, planting) as known:
        rows = [judged("never trained", known.reference, known.reference)]
        for name, remove in {"nothing": nothing, "restored": known.restore, **removers}.items():
            rows.append(judge_removal(known, name, remove, counts=counts, removals=removals))
        losses = known.planted.losses
    return CorpusReport(
        model=model.source,
        people=(len(corpus.forget), len(corpus.retain), len(corpus.holdout)),
        facts=len(corpus.facts),
        losses=tuple(losses),
        rows=tuple(rows),
        seconds=time.perf_counter() - clock,
    )


def nothing(model: Model, facts: Sequence[Fact]) -> Edit:
    """The removal that does nothing: an edit of zeros, to hold others against."""
    name = model.anatomy.names("mlp")[0]
    d_out, d_in = oriented(get_module(model.hf, name)).shape
    delta = Delta(name, torch.zeros(d_out, 1), torch.zeros(d_in, 1))
    return Edit((delta,), model.fingerprint, "nothing", "removed", tuple(facts))
