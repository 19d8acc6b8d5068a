"""Probabilities of many answers to prompts that begin alike, as a form put to a fact and to its controls does.

1. Questions come in groups; a group's tokens up to where they part (before its last prompt token) are its prefix.
2. The prefixes of some groups are read as one batch, padded on the left; the cache is repeated for each group's rows.
3. What is left of every row is read after it, padded on the right, with explicit positions.
Groups with next to nothing in common are read whole. The numbers are those of `predict.rate` but for rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from surgery.batching import in_batches
from surgery.model import Model
from surgery.tokens import Batch, Question, pad

ROWS = 96
"""Rows read at a time, unless one group has more; their caches stand in memory side by side."""

FEWEST = 3
"""A shorter prefix is not worth a run of its own."""


def probabilities_of(model: Model, groups: Sequence[Sequence[Question]]) -> list[list[float]]:
    """The probability of each question's answer, all its tokens; groups must not be empty."""
    return [[min(math.exp(one), 1.0) for one in own] for own in log_probs_of(model, groups)]


@torch.no_grad()
def log_probs_of(model: Model, groups: Sequence[Sequence[Question]]) -> list[list[float]]:
    """The log-probability of each question's answer, all its tokens, in nats; groups must not be empty."""
    parts = [(i, list(group[at : at + ROWS])) for i, group in enumerate(groups) for at in range(0, len(group), ROWS)]
    prefixes = [_prefix(part) for _, part in parts]
    widths = [max(len(one.ids) for one in part) - size for (_, part), size in zip(parts, prefixes, strict=True)]
    found: list[list[float]] = [[] for _ in parts]
    for whole in (True, False):
        alike = [k for k, size in enumerate(prefixes) if (size == 0) == whole]
        for batch in in_batches([widths[k] for k in alike], [len(parts[k][1]) for k in alike], ROWS):
            some = [alike[i] for i in batch]
            numbers = _read(model, [parts[k][1] for k in some], [prefixes[k] for k in some])
            for k in some:
                found[k] = [next(numbers) for _ in parts[k][1]]
    told: list[list[float]] = [[] for _ in groups]
    for (i, _), own in zip(parts, found, strict=True):
        told[i] += own
    return told


def _prefix(group: Sequence[Question]) -> int:
    """How many tokens a group has in common, one of the prompt's left to read from."""
    most = min(one.answer_start - 1 for one in group)
    first = group[0].ids
    size = next((i for i in range(most) if any(one.ids[i] != first[i] for one in group)), most)
    return size if size >= FEWEST else 0


def _read(model: Model, groups: Sequence[Sequence[Question]], prefixes: Sequence[int]) -> Iterator[float]:
    rows = [one for group in groups for one in group]
    shared = [size for group, size in zip(groups, prefixes, strict=True) for _ in group]
    # the last token of an answer need not be read
    batch = pad([one.ids[size:-1] for one, size in zip(rows, shared, strict=True)], device=model.device)
    if all(prefixes):
        starts = [group[0].ids[:size] for group, size in zip(groups, prefixes, strict=True)]
        inputs = inputs_after(model, batch, starts, [i for i, group in enumerate(groups) for _ in group])
    else:
        inputs = model.inputs(batch)
    states = model.hf.base_model(**inputs).last_hidden_state
    picked = torch.cat(
        [
            states[i, one.answer_start - 1 - size : len(one.ids) - 1 - size]
            for i, (one, size) in enumerate(zip(rows, shared, strict=True))
        ]
    )
    ids = torch.tensor([token for one in rows for token in one.answer_ids], device=model.device)
    said = [
        model.anatomy.head(some).float().log_softmax(-1).gather(1, wanted[:, None])[:, 0].double()
        for some, wanted in zip(picked.split(ROWS), ids.split(ROWS), strict=True)
    ]
    logs = torch.cat(said).split([len(one.answer_ids) for one in rows])
    return iter([own.sum().item() for own in logs])


@torch.no_grad()
def inputs_after(model: Model, batch: Batch, starts: Sequence[Sequence[int]], owners: Sequence[int]) -> dict[str, Any]:
    """Keyword arguments that give the model a batch, padded on the right, whose rows go on from texts.

    Args:
        model: the model.
        batch: the rows.
        starts: token ids of the texts, each of which is read once.
        owners: which of them each row goes on from.
    """
    before = pad(starts, side="left", device=model.device)
    cache = model.hf.base_model(**{**model.inputs(before), "use_cache": True}).past_key_values
    picked = torch.tensor(owners, device=model.device)
    cache.batch_select_indices(picked)
    mask = before.mask[picked]
    inputs = model.inputs(batch) | {"past_key_values": cache, "use_cache": True}
    inputs["attention_mask"] = torch.cat([mask, batch.mask], 1)
    if "position_ids" in inputs:
        inputs["position_ids"] = batch.positions + mask.sum(1, keepdim=True)
    return inputs
