"""What stands around a fact and could be hit by an edit of it: the questions of the side-effect axes.

1. The subject in other connections: openings about it, and shipped facts of other relations about it.
2. The relation with other subjects: the fact's neighbours, those with its answer and those with another.
3. The question the other way round: the answer is given, the subject is asked for; as the shipped relation asks for it
   where the fact belongs to one.
4. What is known of the answer, asked by naming the subject only, as the attack of that name does (`attacks.hops`); of a
   rewrite through the new answer too, where a rise tells that what follows from it is said.
5. The edited statement in front of the neighbours' prompts, as in CounterFact+ (https://arxiv.org/abs/2305.17553).
6. Facts that have nothing to do with it, and that the base model knows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from surgery.fact import Fact
from surgery.shipped import relation_of, shipped_relations
from surgery.verification.answers import finder, normalised
from surgery.verification.asking import backwards
from surgery.verification.attacks.hops import chain
from surgery.verification.baseline import Baseline
from surgery.verification.probes import probes_of

OPENINGS = (
    "{} is known for",
    "The history of {}",
    "Many people believe that {}",
    "What visitors of our web page ask most about {} is",
    "In one sentence, {}",
    "Last week the newspaper wrote about {} that",
    "A teacher explains {} to the class:",
    "Few people know that {}",
)
"""Beginnings about a subject that ask for nothing in particular."""
REVERSED = (
    "When somebody says {}, the first thing that comes to mind is",
    "Among everything that has to do with {}, the best known is",
)
"""Questions from an answer to its subject, for relations that have none of their own."""


@dataclass(frozen=True)
class Case:
    """One question with an answer whose probability is compared.

    Attributes:
        axis: what it tells about.
        fact: which of the facts it belongs to; None for all of them.
        prompt: what is asked.
        answer: what the base model should go on saying.
    """

    axis: str
    fact: int | None
    prompt: str
    answer: str


def around(facts: Sequence[Fact], chosen: Sequence[int]) -> list[Case]:
    """The neighbours of some of the facts, by whether they have the fact's answer; none about an edited subject."""
    cases = []
    for probe in probes_of(facts, "removed", ())[0]:
        if probe.role == "neighbour" and probe.fact in chosen:
            fact = facts[probe.fact]
            same = normalised(probe.target) in map(normalised, (fact.target, *fact.aliases))
            axis = "same relation, same answer" if same else "same relation, other answer"
            cases.append(Case(axis, probe.fact, probe.prompt, probe.target))
    return cases


def about_subjects(facts: Sequence[Fact], chosen: Sequence[int], pool: Sequence[Fact]) -> list[Case]:
    """Facts of the pool about the same subjects; those edited, of the same relation or with its answer are left out."""
    cases, edited = [], {fact.prompt for fact in facts}
    for i in chosen:
        fact = facts[i]
        answers = {normalised(text) for text in (fact.target, *fact.aliases, fact.new_target or "")}
        cases += [
            Case("same subject, other facts", i, one.prompt, one.target)
            for one in pool
            if fact.subject
            and normalised(one.subject) == normalised(fact.subject)
            and one.template != fact.template
            and one.prompt not in edited
            and normalised(one.target) not in answers
        ]
    return cases


def reversed_questions(
    facts: Sequence[Fact], chosen: Sequence[int], wordings: Mapping[str, Sequence[str]] | None, *, rewritten: bool
) -> list[Case]:
    """For each fact, its subject asked for by its old answer and, for a rewrite, by the new one.

    A subject's article ends the question (`asking.backwards`).

    Args:
        facts: the facts.
        chosen: which of them.
        wordings: for templates of facts, questions with `{}` in the answer's place; others get the question of the
            shipped relation they belong to, or else `REVERSED`.
        rewritten: whether there is a new answer.
    """
    cases = []
    for i in chosen:
        fact = facts[i]
        relation = relation_of(fact)
        asked = (wordings or {}).get(fact.template, REVERSED if relation is None else (relation.reverse,))
        for axis, answer in (("reversed", fact.target), ("reversed, new answer", fact.new_target)):
            if fact.subject and answer and (rewritten or axis == "reversed"):
                turned = [backwards(text, fact.subject, answer.strip(), ()) for text in asked]
                cases += [Case(axis, i, one.prompt, one.subject) for one in turned]
    return cases


def two_hops(facts: Sequence[Fact], chosen: Sequence[int], *, rewritten: bool) -> list[Case]:
    """For each fact of a shipped relation, the chains through its old answer and, for a rewrite, through the new one.

    Args:
        facts: the facts.
        chosen: which of them.
        rewritten: whether there is a new answer.
    """
    cases = []
    for i in chosen:
        first = relation_of(facts[i])
        for axis, answer in (("two hops", facts[i].target), ("two hops, new answer", facts[i].new_target)):
            if answer and (rewritten or axis == "two hops"):
                through = facts[i].replace(target=answer.strip())
                chains = [chain(through, first, second) for second in shipped_relations()]
                cases += [Case(axis, i, *one) for one in chains if one]
    return cases


def behind(statements: Mapping[int, str], cases: Sequence[Case]) -> list[Case]:
    """The neighbours' questions again, behind the statement about their fact."""
    return [
        Case("statement in front", one.fact, f"{statements[one.fact]} {one.prompt}", one.answer)
        for one in cases
        if one.fact is not None and one.fact in statements and one.axis.startswith("same relation")
    ]


def unrelated_cases(base: Baseline, facts: Sequence[Fact], pool: Sequence[Fact], count: int, seed: int) -> list[Case]:
    """Facts of the pool that the base model answers greedily and that share nothing with the facts at hand.

    Left out are those that name a subject or an answer of the facts, and the facts' neighbours. Other relations come
    before the facts' own; within each, the order is drawn.

    Args:
        base: answers for the base model.
        facts: the facts at hand.
        pool: what to choose from.
        count: how many at most.
        seed: of the order.
    """
    taken = [text for fact in facts for text in (fact.subject, fact.target, fact.new_target, *fact.aliases) if text]
    shared = finder(taken)
    prompts = {text for fact in facts for text in (fact.prompt, *(one.prompt for one in fact.neighbours))}
    templates = {fact.template for fact in facts}
    order = np.random.RandomState(seed).permutation(len(pool))
    free = [
        one
        for one in sorted((pool[i] for i in order), key=lambda one: one.template in templates)
        if one.prompt not in prompts and not shared(f"{one.prompt} {one.target}")
    ]
    known: list[Case] = []
    start, size = 0, count
    while len(known) < count and start < len(free):
        answers = base.rate([(one.prompt, one.target) for one in free[start : start + size]])
        known += [Case("unrelated facts", None, one.prompt, one.target) for one in answers if one.rank == 1]
        # a model that knows little is asked more at a time
        start, size = start + size, 2 * size
    return known[:count]
