"""Six ways to look at a removal (Shi et al. 2024, "MUSE", https://arxiv.org/abs/2407.06460, section 3).

C1 VerbMem: mean ROUGE-L F1 of the greedy continuation of a forgotten text's first half against its second half.
C2 KnowMem: mean ROUGE-L F1 of greedy answers about the forget set, with a few questions and answers in front.
C3 PrivLeak: whether texts of the forget set can be told from texts no model has seen (`membership`).
C4 Utility: KnowMem on the retain set.
C5 Scalability: utility after ever more facts are removed at once.
C6 Sustainability: utility after each of several removals on top of one another, and KnowMem of what was removed before.

The published code cuts answers at a line break or at the next question; here also at a full stop, since a model taught
sentences goes on with the next one. It cuts continuations at 128 tokens; here at as many words as they should have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from surgery.batching import by_length
from surgery.corpus.invented import Corpus, Person, Query
from surgery.corpus.membership import min_k
from surgery.corpus.rouge import rouge_l
from surgery.edit import Edit
from surgery.errors import SurgeryError
from surgery.fact import Fact
from surgery.likelihood import text_likelihoods
from surgery.model import Model
from surgery.predict import generate
from surgery.tokens import encode

Remover = Callable[[Model, Sequence[Fact]], Edit]
"""Anything that gives the edit that removes facts from a model as it is."""

ROWS = 16
ANSWER_TOKENS = 10
ENDS = ("\n", ".")


@dataclass(frozen=True)
class AfterRemoval:
    """What is known after some facts were removed.

    Attributes:
        facts: how many were removed so far.
        left: KnowMem of these; of those removed earlier where there were several removals.
        utility: KnowMem on the retain set.
    """

    facts: int
    left: float
    utility: float

    def __post_init__(self) -> None:
        if self.facts < 1 or not all(np.isnan(one) or 0 <= one <= 1 for one in (self.left, self.utility)):
            raise SurgeryError(f"{self} does not tell of at least one removed fact by scores from 0 to 1")


def verbatim(model: Model, people: Sequence[Person]) -> Float[np.ndarray, " people"]:
    """ROUGE-L F1 of each text's continuation from its middle, on the model as it is.

    Raises:
        SurgeryError: a text has a single word.
    """
    halves = [_halves(person.text) for person in people]
    longest = max(len(encode(model.tokenizer, rest).ids) for _, rest in halves)
    said = _said(model, [begin for begin, _ in halves], longest)
    pairs = [(one.split()[: len(rest.split())], rest) for one, (_, rest) in zip(said, halves, strict=True)]
    return np.array([rouge_l(" ".join(one), rest) for one, rest in pairs])


def knowledge(model: Model, corpus: Corpus, queries: Sequence[Query]) -> Float[np.ndarray, " queries"]:
    """ROUGE-L F1 of each answer, on the model as it is."""
    said = _said(model, [corpus.asked(query) for query in queries], ANSWER_TOKENS)
    return np.array([rouge_l(cut_answer(one), query.answer) for one, query in zip(said, queries, strict=True)])


def surprise(model: Model, people: Sequence[Person]) -> Float[np.ndarray, " sentences"]:
    """Min-40 % log-probability of each sentence told of some people, read in its text, on the model as it is.

    Read alone, the least likely tokens of a sentence are those of the name, the same for all sentences of a person: the
    AUC of a model that was taught nothing then spreads twice as far from 0.5.
    """
    found = []
    for person, told in zip(people, text_likelihoods(model, [person.text for person in people]), strict=True):
        ends = np.array([end for _, end in encode(model.tokenizer, person.text).offsets][1:])
        start = 0
        for sentence in person.sentences:
            stop = start + len(sentence)
            found.append(min_k(told.log_probs[(ends > start) & (ends <= stop)]))
            start = stop + 1
    return np.array(found)


def scalability(model: Model, corpus: Corpus, remove: Remover, counts: Sequence[int]) -> tuple[AfterRemoval, ...]:
    """Remove the first so many facts at once, from the model as it is each time.

    Raises:
        SurgeryError: a count is none, or more than there are facts.
    """
    queries = queries_of(corpus.forget)
    if wrong := [count for count in counts if not 0 < count <= len(queries)]:
        raise SurgeryError(f"{wrong[0]} facts cannot be removed at once: the forget set has {len(queries)}")
    found = []
    for count in counts:
        with remove(model, corpus.facts[:count]).applied(model):
            found.append(_after(model, corpus, count, queries[:count]))
    return tuple(found)


def sustainability(model: Model, corpus: Corpus, remove: Remover, removals: int) -> tuple[AfterRemoval, ...]:
    """Remove all facts in so many removals of about the same size, each from what the ones before it left.

    After each, `left` tells of the facts of the ones before it; nan after the first, which has none.

    Raises:
        SurgeryError: there are more removals than facts, or none.
    """
    facts, queries = corpus.facts, queries_of(corpus.forget)
    if not 0 < removals <= len(facts):
        raise SurgeryError(f"{len(facts)} facts do not make {removals} removals; give 1 to {len(facts)}")
    ends = [round(len(facts) * (i + 1) / removals) for i in range(removals)]
    found = []
    with ExitStack() as undone:
        for start, stop in zip([0, *ends], ends, strict=False):
            undone.enter_context(remove(model, facts[start:stop]).applied(model))
            found.append(_after(model, corpus, stop, queries[:start]))
    return tuple(found)


def queries_of(people: Sequence[Person]) -> tuple[Query, ...]:
    """All queries about some people, in the order of their facts."""
    return tuple(query for person in people for query in person.queries)


def cut_answer(said: str) -> str:
    """An answer up to where it ends: the first line break or full stop after its beginning."""
    said = said.lstrip()
    stops = [said.find(end) for end in ENDS if end in said]
    return said[: min(stops)] if stops else said


def _after(model: Model, corpus: Corpus, count: int, removed: Sequence[Query]) -> AfterRemoval:
    retained = queries_of(corpus.retain)
    scores = knowledge(model, corpus, [*retained, *removed])
    left = float(scores[len(retained) :].mean()) if removed else float("nan")
    return AfterRemoval(count, left, float(scores[: len(retained)].mean()))


def _halves(text: str) -> tuple[str, str]:
    words = text.split(" ")
    if len(words) < 2:
        raise SurgeryError(f"{text!r} has no second half to be continued with; give longer texts")
    middle = len(words) // 2
    return " ".join(words[:middle]), " ".join(words[middle:])


@torch.no_grad()
def _said(model: Model, prompts: Sequence[str], tokens: int) -> list[str]:
    """Greedy continuations, prompts of like length side by side."""
    said: dict[int, str] = {}
    for part in by_length([encode(model.tokenizer, prompt).ids for prompt in prompts], ROWS, runs=tokens):
        said.update(zip(part, generate(model, [prompts[i] for i in part], tokens), strict=True))
    return [said[i] for i in range(len(prompts))]
