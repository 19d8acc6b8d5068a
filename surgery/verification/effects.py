"""What else an edit changed: one number an axis, each with its 95 % interval and which direction would be harm.

1. The questions around the facts (`surroundings`) are put to the base model and to the edited one.
2. Of answers, the change of probability counts; of a subject asked for by its answer, of its log-probability a token;
   of openings about a subject, KL(before || after) of the next token.
3. Greedy continuations of neutral openings: the share of their n-grams that were there before (repetition).
4. Drift on neutral text is measured elsewhere (`drift`) and taken over.
5. An interval is Student's t over the cases; where there are at least five facts, over the facts' means instead, as the
   cases of one fact are not independent.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from torch import Tensor

from surgery.edit import Edit
from surgery.errors import SurgeryError, check_choice
from surgery.fact import SLOT, Fact
from surgery.model import Model
from surgery.numbers import Interval, student
from surgery.predict import generate, next_log_probs, rate
from surgery.shipped import example_facts, neutral_texts
from surgery.tokens import ask, encode
from surgery.verification.askable import TOO_LONG, fits, leaves_room
from surgery.verification.attack import PROFILES
from surgery.verification.baseline import Baseline
from surgery.verification.drift import Drift
from surgery.verification.effect import AXES, QUICK, Effect, Effects
from surgery.verification.speech import speak
from surgery.verification.surroundings import (
    OPENINGS,
    Case,
    about_subjects,
    around,
    behind,
    reversed_questions,
    two_hops,
    unrelated_cases,
)

FEWEST_FACTS = 5
UNRELATED = {"quick": 10, "standard": 20, "full": 20}
OPENING_WORDS, OPENING_TEXTS, CONTINUED = 6, 6, 40
SAID_TOKENS = 12


def effects(
    model: Model,
    edit: Edit,
    facts: Sequence[Fact],
    *,
    profile: str = "standard",
    drift: Drift | None = None,
    baseline: Baseline | None = None,
    pool: Sequence[Fact] | None = None,
    reverse: Mapping[str, Sequence[str]] | None = None,
    texts: Sequence[str] | None = None,
    most_facts: int = 20,
    seed: int = 0,
) -> Effects:
    """Measure what else an edit changed.

    Args:
        model: the base model; it is the same afterwards.
        edit: the edit.
        facts: what it was made from.
        profile: "quick" asks neighbours and ten unrelated facts only.
        drift: what `drift` found; without it, its axes are left out.
        baseline: what the base model answers, where the caller keeps it.
        pool: facts among which to look for unrelated ones and for others about the same subjects; None for the shipped.
        reverse: for templates of facts, questions with `{}` in the answer's place that ask for the subject; None for
            those of the shipped relations, and general ones for other facts.
        texts: whose first words are continued; None for the shipped sentences.
        most_facts: of more facts than these, so many are drawn.
        seed: of everything drawn.

    Raises:
        SurgeryError: there are no facts, no such profile, or the baseline is another model's.
    """
    check_choice("verification profile", profile, PROFILES)
    if not facts:
        raise SurgeryError("there are no facts whose surroundings could be asked; give at least one")
    started = time.perf_counter()
    base = Baseline(model) if baseline is None else baseline
    base.check(model)
    known = example_facts() if pool is None else pool
    drawn = np.random.RandomState(seed).permutation(len(facts))[:most_facts]
    chosen, whole = sorted(int(i) for i in drawn), profile != "quick"
    rewritten = edit.claim == "rewritten" and all(fact.new_target for fact in facts)
    near = around(facts, chosen)
    cases = near + unrelated_cases(base, facts, known, UNRELATED[profile], seed)
    too_long: Counter[str] = Counter()
    openings: list[tuple[int, str]] = []
    starts: list[str] = []
    if whole:
        cases += about_subjects(facts, chosen, known)
        cases += reversed_questions(facts, chosen, reverse, rewritten=rewritten)
        cases += two_hops(facts, chosen, rewritten=rewritten)
        openings = _openings(model, facts, chosen, too_long)
        starts = _starts(neutral_texts() if texts is None else texts)
    cases = _readable(model, cases, too_long)
    said_before = base.continued(starts, CONTINUED)
    with edit.applied(model):
        if whole:
            told = behind(_statements(model, facts, chosen, rewritten=rewritten), near)
            cases += _readable(model, told, too_long)
        after = _rated(model, cases)
        next_after = next_log_probs(model, [text for _, text in openings]) if openings else None
        said_after = generate(model, starts, CONTINUED, drafts=said_before) if starts else []
    before = [one.probability for one in base.rate([(case.prompt, case.answer) for case in cases])]
    found = {name: _of_answers(model, name, cases, before, after) for name in AXES}
    if next_after is not None:
        found["same subject"] = _of_openings(base, openings, next_after)
    if starts:
        found |= _of_continuations(model, starts, said_before, said_after)
    found |= _of_drift(drift)
    made = {name: one for name, one in found.items() if one is not None}
    return Effects(
        tuple(made[name] for name in AXES if name in made),
        {name: _why(name, whole, drift, rewritten, too_long[name]) for name in AXES if name not in made},
        (len(chosen), len(facts)),
        seed,
        time.perf_counter() - started,
        {name: too_long[name] for name in AXES if too_long[name]},
    )


def repeated(ids: Sequence[int], n: int) -> float:
    """Share of a text's n-grams that stand in it earlier already; 0 where it has none."""
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _ids(model: Model, text: str) -> tuple[int, ...]:
    return encode(model.tokenizer, text).ids if text.strip() else ()


def _statements(model: Model, facts: Sequence[Fact], chosen: Sequence[int], *, rewritten: bool) -> dict[int, str]:
    """What the edit is to make of each fact, or what the model, edited now, says of it, as a sentence."""
    asked = [i for i in chosen if rewritten or leaves_room(model, facts[i].prompt)]
    if rewritten:
        answers = [str(facts[i].new_target).strip() for i in asked]
    else:
        answers = speak(model, [facts[i].prompt for i in asked], SAID_TOKENS)
    return {i: f"{facts[i].prompt} {text.rstrip(' .')}." for i, text in zip(asked, answers, strict=True) if text}


def _openings(
    model: Model, facts: Sequence[Fact], chosen: Sequence[int], too_long: Counter[str]
) -> list[tuple[int, str]]:
    """How texts about each fact's subject begin; those that the model cannot go on with are counted."""
    every = [(i, text.replace(SLOT, facts[i].subject)) for i in chosen if facts[i].subject for text in OPENINGS]
    kept = [one for one in every if leaves_room(model, one[1])]
    too_long["same subject"] += len(every) - len(kept)
    return kept


def _starts(texts: Sequence[str]) -> list[str]:
    """The first words of the first texts."""
    return [" ".join(text.split()[:OPENING_WORDS]) for text in texts[:OPENING_TEXTS]]


def _readable(model: Model, cases: Sequence[Case], too_long: Counter[str]) -> list[Case]:
    """The cases that the model can be asked; the others are counted by their axis."""
    kept = [case for case in cases if fits(model, case.prompt, case.answer)]
    too_long.update(Counter(case.axis for case in cases) - Counter(case.axis for case in kept))
    return kept


def _rated(model: Model, cases: Sequence[Case]) -> list[float]:
    asked = sorted({(case.prompt, case.answer) for case in cases}, key=lambda pair: (len(pair[0]), pair))
    answers = dict(zip(asked, rate(model, asked), strict=True))
    return [answers[case.prompt, case.answer].probability for case in cases]


def _of_answers(
    model: Model, axis: str, cases: Sequence[Case], before: Sequence[float], after: Sequence[float]
) -> Effect | None:
    own = [i for i, case in enumerate(cases) if case.axis == axis]
    was, now = [before[i] for i in own], [after[i] for i in own]
    if axis.startswith("reversed"):
        counts = [len(ask(model.tokenizer, cases[i].prompt, cases[i].answer).answer_ids) for i in own]
        was, now = ([math.log(max(p, 1e-300)) / n for p, n in zip(some, counts, strict=True)] for some in (was, now))
    about = [(cases[i].fact, f"{cases[i].prompt} {cases[i].answer}") for i in own]
    return _effect(axis, [b - a for a, b in zip(was, now, strict=True)], about, was, now)


def _effect(
    axis: str,
    changes: Sequence[float],
    about: Sequence[tuple[int | None, str]],
    before: Sequence[float] | None,
    after: Sequence[float] | None,
) -> Effect | None:
    if not changes:
        return None
    least = 0.0 if before is None else -math.inf
    of_fact: dict[int, list[float]] = {}
    for change, (owner, _) in zip(changes, about, strict=True):
        if owner is not None:
            of_fact.setdefault(owner, []).append(change)
    by_fact = len(of_fact) >= FEWEST_FACTS
    each = [float(np.mean(some)) for some in of_fact.values()] if by_fact else changes
    sign = {"lower": -1.0, "higher": 1.0}.get(AXES[axis].harm)
    worst = max(range(len(changes)), key=lambda i: abs(changes[i]) if sign is None else sign * changes[i])
    was, now = (math.nan if some is None else float(np.mean(some)) for some in (before, after))
    told = f"{changes[worst]:+.3g} in {about[worst][1]!r}"
    return Effect(axis, student(each, least=least), was, now, "facts" if by_fact else "cases", told)


def _of_openings(
    base: Baseline, openings: Sequence[tuple[int, str]], after: Float[Tensor, "prompts vocab"]
) -> Effect | None:
    """KL(before || after) of the token after each opening."""
    before = base.next_log_probs([text for _, text in openings])
    changes = (before.exp() * (before - after)).sum(-1).clamp_min(0).tolist()
    return _effect("same subject", changes, openings, None, None)


def _of_continuations(
    model: Model, starts: Sequence[str], before: Sequence[str], after: Sequence[str]
) -> dict[str, Effect | None]:
    """By how much more the continuations repeat themselves."""
    about = [(None, text) for text in starts]
    found = {}
    for name, n in (("repeated bigrams", 2), ("repeated 4-grams", 4)):
        was, now = ([repeated(_ids(model, one), n) for one in said] for said in (before, after))
        found[name] = _effect(name, [b - a for a, b in zip(was, now, strict=True)], about, was, now)
    return found


def _of_drift(drift: Drift | None) -> dict[str, Effect]:
    if drift is None:
        return {}
    old, new = map(math.log, drift.perplexity)
    moved = Interval.around(drift.divergence, drift.error, drift.texts, least=0.0)
    loss = Interval.around(new - old, drift.loss_error, drift.texts)
    return {
        "neutral text": Effect("neutral text", moved, math.nan, math.nan, "texts"),
        "perplexity": Effect("perplexity", loss, old, new, "texts"),
    }


def _why(axis: str, whole: bool, drift: Drift | None, rewritten: bool, too_long: int) -> str:
    """Why an axis has no cases."""
    if axis in ("neutral text", "perplexity") and drift is None:
        return "no drift was given"
    if not whole and axis not in QUICK:
        return "not in the quick profile"
    if axis.endswith(", new answer") and not rewritten:
        return "there is no new answer"
    return f"what there is to ask is {TOO_LONG}" if too_long else "there is nothing to ask"
