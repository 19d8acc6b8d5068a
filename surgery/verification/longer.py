"""Longer texts about facts, before an edit and after it, and texts that a rewrite should come to resemble."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

from surgery.edit import Edit
from surgery.fact import Fact
from surgery.model import Model
from surgery.verification.answers import normalised
from surgery.verification.baseline import Baseline
from surgery.verification.classic import told_on
from surgery.verification.verdicts import Row


def longer_texts(
    model: Model, edit: Edit | None, facts: Sequence[Fact], baseline: Baseline
) -> dict[str, list[list[str]]]:
    """Each fact's prompts with their long continuations, "before" and "after"; without an edit only after."""
    prompts = [[fact.prompt, *fact.paraphrases] for fact in facts]
    flat = [text for own in prompts for text in own]
    with edit.applied(model) if edit else nullcontext():
        told = {"after": told_on(model, flat)}
    if edit:
        told = {"before": baseline.told_on(flat), **told}
    found = {}
    for when, texts in told.items():
        rest = iter(texts)
        found[when] = [[next(rest) for _ in own] for own in prompts]
    return found


def references(facts: Sequence[Fact], rows: Sequence[Row], baseline: Baseline) -> dict[int, list[str]]:
    """What the base model says of the probed neighbours that have a fact's new answer; by fact, of those with any."""
    near: dict[int, list[str]] = {}
    for probe, _, _ in rows:
        new = facts[probe.fact].new_target
        if probe.role == "neighbour" and new and normalised(probe.target) == normalised(new):
            near.setdefault(probe.fact, []).append(probe.prompt)
    return {i: baseline.told_on(prompts) for i, prompts in near.items()}
