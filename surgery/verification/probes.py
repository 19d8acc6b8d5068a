"""Probes: the prompts an edit is judged by, and how the model rates their answers before and after it.

1. Each fact gives its own prompt, its paraphrases and its neighbours.
2. A prompt the edit looked at while it was made is marked and judges nothing but the fact's own wording.
3. A neighbour that is itself about an edited subject is left out: it is meant to change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from surgery.fact import Fact
from surgery.model import Model
from surgery.predict import Answer, generate, rate
from surgery.verification.naming import names, telling_subjects

Role = Literal["prompt", "paraphrase", "neighbour"]
SAID_TOKENS = 10
GENERATED_ROWS = 32


@dataclass(frozen=True)
class Rating:
    """How likely an answer is.

    Attributes:
        probability: of the whole answer, 0 to 1.
        rank: worst rank of its tokens, from 1.
    """

    probability: float
    rank: int

    @classmethod
    def of(cls, answer: Answer) -> Rating:
        """What a rated answer says, without its words."""
        return cls(answer.probability, answer.rank)


@dataclass(frozen=True)
class Probe:
    """One prompt of one fact.

    Attributes:
        fact: which of the facts, from 0.
        role: the fact's own prompt, a paraphrase, or a neighbour.
        prompt: what is asked.
        target: the old answer, or the neighbour's.
        new_target: the new answer, for a rewrite.
        held_out: the edit did not look at this prompt.
    """

    fact: int
    role: Role
    prompt: str
    target: str
    new_target: str | None
    held_out: bool


@dataclass(frozen=True)
class Measured:
    """A probe with what one state of the model makes of it.

    Attributes:
        target: rating of the old answer, or the neighbour's.
        new_target: rating of the new answer, for a rewrite.
        says: the model's own continuation, greedy (not taken for neighbours).
    """

    target: Rating
    new_target: Rating | None
    says: str | None


def probes_of(facts: Sequence[Fact], claim: str, seen: Sequence[str]) -> tuple[list[Probe], int]:
    """The probes of some facts, and how many neighbours were left out as being edited themselves.

    Args:
        facts: what was edited.
        claim: "rewritten" or "removed".
        seen: prompts the edit looked at.
    """
    looked, probes, left_out = set(seen), [], 0
    edited = telling_subjects(facts)
    for i, fact in enumerate(facts):
        new = fact.new_target if claim == "rewritten" else None
        own: list[tuple[Role, str]] = [("prompt", fact.prompt), *(("paraphrase", text) for text in fact.paraphrases)]
        probes += [Probe(i, role, prompt, fact.target, new, prompt not in looked) for role, prompt in own]
        for neighbour in fact.neighbours:
            if any(names(neighbour.prompt, subject) for subject in edited):
                left_out += 1
            else:
                held_out = neighbour.prompt not in looked
                probes.append(Probe(i, "neighbour", neighbour.prompt, neighbour.target, None, held_out))
    return probes, left_out


def measure(
    model: Model,
    probes: Sequence[Probe],
    rating: Callable[[Sequence[tuple[str, str]]], list[Answer]] | None = None,
) -> list[Measured]:
    """Rate all probes with the model as it is.

    Args:
        model: the model asked.
        probes: what to ask.
        rating: how it rates answers to prompts, where somebody keeps that; None to ask it.
    """
    asked = [(probe.prompt, probe.target) for probe in probes]
    renewed = [(probe.prompt, probe.new_target) for probe in probes if probe.new_target is not None]
    answers = rate(model, asked + renewed) if rating is None else rating(asked + renewed)
    new = iter(answers[len(asked) :])
    speaking = [probe.prompt for probe in probes if probe.role != "neighbour"]
    said: list[str] = []
    for start in range(0, len(speaking), GENERATED_ROWS):
        said += generate(model, speaking[start : start + GENERATED_ROWS], SAID_TOKENS)
    words = iter(said)
    return [
        Measured(
            Rating.of(answer),
            Rating.of(next(new)) if probe.new_target is not None else None,
            next(words) if probe.role != "neighbour" else None,
        )
        for probe, answer in zip(probes, answers[: len(asked)], strict=True)
    ]
