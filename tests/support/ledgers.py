"""Ledgers of a tiny model with small settings, and facts for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiny import tiny_model, tiny_tokenizer

from edits import ClosedForm, Ledger, Limits, Mass, Replace, Statistics, ValueSearch, fit_statistics
from surgery import Fact, Model, Site, load

MakeLedger = Callable[[], Ledger]
SITES = (Site("L0.mlp"), Site("L1.mlp"))
CONTEXTS = ("{}", "The day was long. {}")
# a random model's weights are small beside the values a search finds for it
FAR = Limits(relative_change=100.0, value_norm=100.0, perplexity=100.0, texts=("The river runs by the house.",))
SEARCH = ValueSearch(steps=3, method="plain")
TEXTS = (
    "The old tower stands in the town of Paris, and the river runs by the house of the teacher.",
    "She said that it rained in Rome when the people came to see the mountains.",
    "Because he lived in Berlin he spoke German, and wrote a letter to his mother every morning.",
)
SUBJECTS = ("The old tower", "The river", "The teacher", "Marie Curie", "The market")
ANSWERS = ("Rome", "Berlin", "Paris", "French", "Tokyo")


def facts_about(count: int = 5) -> list[Fact]:
    """So many facts about different subjects."""
    return [
        Fact(
            subject=subject if i < len(SUBJECTS) else f"{subject} of {i}",
            template="People say that {} is in",
            target="London",
            new_target=ANSWERS[i % len(ANSWERS)],
        )
        for i, subject in ((i, SUBJECTS[i % len(SUBJECTS)]) for i in range(count))
    ]


def second(fact: Fact) -> Fact:
    """Another fact about a fact's subject."""
    return fact.replace(template="They wrote about {} in", new_target="German")


def tiny_gpt2() -> tuple[Model, Statistics]:
    """The tiny model, with key statistics."""
    model = load((tiny_model("gpt2"), tiny_tokenizer()))
    return model, fit_statistics(model, TEXTS, [0, 1], rank=8, progress=False)


def small(statistics: Statistics, kind: type[ClosedForm] = Mass, **own: Any) -> ClosedForm:
    """A method with few contexts and steps."""
    given = {"objective": Replace(), "contexts": CONTEXTS, "search": SEARCH, "limits": FAR}
    return kind(statistics=statistics, **given | own)


def small_ledger(folder: Path, model: Model, statistics: Statistics, **own: Any) -> Ledger:
    """A ledger of the tiny model, without facts."""
    return Ledger.create(folder, model, small(statistics, **own), SITES)
