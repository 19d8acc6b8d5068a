"""Keys: what the edited matrix sees when the model has just read a subject.

Meng et al. 2022, eq. 3: the key k* is the input of a down-projection at the subject's last token, averaged over
contexts in front of the prompt, so that the edit belongs to the subject and not to one sentence. The same k* is used in
the direction, the denominator and the old value: the published code mixes two keys there, which collapses models
(Gupta et al. 2024, https://arxiv.org/abs/2403.07175).

The plain mean is the key of no context. A bare prompt's key, where the subject is the first word, can be so far from it
that it gets a third of the change, and the edit does nothing to the very prompt it is about. `one_key` weighs contexts
so that all get more nearly the same: of all weighted means k of their keys k_i, weights adding to 1, the one with the
smallest k^T C^-1 k. There k_i^T C^-1 k is the same for all i, and so the response (k_i^T C^-1 k) / (k^T C^-1 k) is 1. A
slack on the diagonal of K^T C^-1 K goes back part of the way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from edits.statistics import SecondMoment
from surgery.batching import by_length
from surgery.fact import SLOT, Fact
from surgery.hooks import Trace, hidden
from surgery.model import Model
from surgery.predict import generate
from surgery.products import fast_products
from surgery.site import Site
from surgery.tokens import ask_fact, pad

ROWS, GPU_ROWS = 64, 512
SHORT = 0.25
"""A subject's key elsewhere that is shorter than so much of its mean length in the prompt is left out."""
STARTS = ("The", "Therefore", "Because", "I", "You")
KeyOf = Literal["balanced", "mean"]
KEYS: tuple[KeyOf, ...] = ("balanced", "mean")
Scope = Literal["prompt", "subject"]
SCOPES: tuple[Scope, ...] = ("prompt", "subject")
SLACK = 0.1
"""Of the balance, in units of the mean k_i^T C^-1 k_i.

With none, weights go far apart for keys that are nearly the same. With this much, the bare prompts of 50 facts of the
default model get 0.96 of a change or more, and with ten times as much 0.63; by the mean, one gets 0.37.
"""


def sample_contexts(model: Model, *, count: int = 10, length: int = 8, seed: int = 1) -> tuple[str, ...]:
    """Contexts to read a prompt in: the bare prompt, and `count` beginnings the model makes up itself.

    Args:
        model: who makes them up.
        count: how many besides the bare prompt.
        length: tokens each, after its first word.
        seed: of the draws, which are among the five likeliest tokens.

    Returns:
        texts that end with `{}`, the bare `{}` first.
    """
    random = np.random.RandomState(seed)
    made: list[str] = [SLOT]
    starts = [STARTS[i % len(STARTS)] for i in range(count)]
    said = generate(model, starts, length, random=random, top_k=5) if count else []
    for start, text in zip(starts, said, strict=True):
        line = " ".join((start + text).replace(SLOT, "").split())
        made.append(f"{line}. {SLOT}")
    return tuple(made)


def one_key(
    keys: Float[Tensor, "contexts d_ff"],
    moment: SecondMoment | None,
    slack: float = SLACK,
    *,
    near: Float[Tensor, "names d_ff"] | None = None,
) -> Float[Tensor, " d_ff"]:
    """One key for all contexts.

    Args:
        keys: one a context.
        moment: C; without it, the key is their mean.
        slack: added to the diagonal of K^T C^-1 K, in units of its mean.
        near: keys of nearly the same names, whose outer products C is joined by (`edits.namesakes`).
    """
    return one_key_each([keys], moment, slack, near=None if near is None else [near])[0]


def one_key_each(
    keys: Sequence[Float[Tensor, "_ d_ff"]],
    moment: SecondMoment | None,
    slack: float = SLACK,
    *,
    near: Sequence[Float[Tensor, "_ d_ff"]] | None = None,
) -> Float[Tensor, "subjects d_ff"]:
    """One key for all contexts of each of several subjects, as `one_key`; the keys of all are multiplied at once."""
    if moment is None:
        return torch.stack([own.mean(0) for own in keys])
    names = [own[:0] for own in keys] if near is None else near
    made = []
    for (k, white), (others, white_others) in zip(_whitened(keys, moment), _whitened(names, moment), strict=True):
        gram = k @ white.T
        if len(others):  # Woodbury's identity once more, for C + N^T N
            cross = white @ others.T
            inner = torch.eye(len(others), dtype=torch.float64) + others @ white_others.T
            gram = gram - cross @ torch.linalg.solve(inner, cross.T)
        gram = gram + slack * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
        weights = torch.linalg.solve(gram, torch.ones(len(gram), dtype=torch.float64))
        made.append((weights / weights.sum()) @ k)
    return torch.stack(made).to(keys[0])


def _whitened(
    keys: Sequence[Float[Tensor, "_ d_ff"]], moment: SecondMoment
) -> Iterator[tuple[Float[Tensor, "_ d_ff"], Float[Tensor, "_ d_ff"]]]:
    """Keys k of each of several subjects with C^-1 k, in float64 on the CPU; those of all are fetched at once."""
    sizes = [len(own) for own in keys]
    joined = torch.cat(list(keys)).cpu().double()
    return zip(joined.split(sizes), moment.solve(joined).split(sizes), strict=True)


def with_elsewhere(
    keys: Float[Tensor, "texts d_ff"], elsewhere: Float[Tensor, "more d_ff"]
) -> Float[Tensor, "kept d_ff"]:
    """A subject's keys in its prompt's contexts, with those of it elsewhere that are long enough.

    Behind some first tokens a subject is hardly read at all: its key is a tenth as long as any other. One key for that
    and the rest would be as short, and the change for it enormous.
    """
    return torch.cat([keys, elsewhere[elsewhere.norm(dim=1) >= SHORT * keys.norm(dim=1).mean()]])


def read_subjects(
    model: Model,
    own: Sequence[Sequence[tuple[int, ...]]],
    elsewhere: Sequence[Sequence[tuple[int, ...]]],
    site: Site,
    upto: int | None = None,
) -> tuple[list[Float[Tensor, "contexts d_ff"]], list[Float[Tensor, "own d_model"]] | None]:
    """The keys of several subjects, in their prompts' contexts and elsewhere, and their states in the contexts.

    Args:
        model: who reads.
        own: token ids of each subject's contexts.
        elsewhere: of each subject's other texts, none where it is not looked at there.
        site: the mlp whose keys are wanted.
        upto: a layer at or above it, whose output is wanted too.
    """
    rows = [row for pair in zip(own, elsewhere, strict=True) for part in pair for row in part]
    sizes = [len(here) + len(there) for here, there in zip(own, elsewhere, strict=True)]
    keys, states = read_ends(model, rows, site, upto)
    counts = [len(here) for here in own]
    joined = [with_elsewhere(part[:n], part[n:]) for part, n in zip(keys.split(sizes), counts, strict=True)]
    if states is None:
        return joined, None
    return joined, [part[:n] for part, n in zip(states.split(sizes), counts, strict=True)]


def by_key(facts: Sequence[Fact]) -> list[list[Fact]]:
    """The facts in groups that share a key: those of one subject, or of one prompt where there is no subject.

    Published methods give each its own value at the one key they share, of which a least-squares fit takes the mean:
    half of such edits fail ("MEMIT-Merge", https://arxiv.org/abs/2502.07322).
    """
    groups: dict[tuple[bool, str], list[Fact]] = {}
    for fact in facts:
        groups.setdefault((bool(fact.subject), fact.subject or fact.prompt), []).append(fact)
    return list(groups.values())


def in_batches(facts: Sequence[Fact], size: int | None) -> list[list[Fact]]:
    """The facts in batches of at most `size`, None for all in one; those of one key always in one."""
    groups = by_key(facts)
    made = [groups[0]]
    for group in groups[1:]:
        if size is None or len(made[-1]) + len(group) <= size:
            made[-1] = made[-1] + group
        else:
            made.append(group)
    return made


def subject_rows(model: Model, facts: Sequence[Fact], contexts: Sequence[str]) -> list[tuple[int, ...]]:
    """Token ids of every fact in every context, up to its subject's last token."""
    rows = []
    for fact in facts:
        for context in contexts:
            question, span = ask_fact(model.tokenizer, fact, fact.target, context)
            rows.append(question.ids[: span.stop])
    return rows


@torch.no_grad()
def read_ends(
    model: Model, rows: Sequence[Sequence[int]], site: Site, upto: int | None = None
) -> tuple[Float[Tensor, "rows d_ff"], Float[Tensor, "rows d_model"] | None]:
    """What the model has at the last token of each row, in float32.

    Args:
        model: who reads.
        rows: token ids.
        site: the mlp whose keys are wanted.
        upto: a layer at or above it, whose output is wanted too.

    Returns:
        the keys, and the output of layer `upto` (None without one).
    """
    module = model.anatomy.name(site)
    keys = torch.empty(len(rows), model.anatomy.d_ff, device=model.device)
    states = None if upto is None else torch.empty(len(rows), model.anatomy.d_model, device=model.device)
    for part in by_length(rows, GPU_ROWS if model.device.type == "cuda" else ROWS):
        batch = pad([rows[i] for i in part], device=model.device)
        each, ends = torch.arange(len(part), device=model.device), batch.columns([-1] * len(part))
        # keys alone need nothing above their own map
        last = model.anatomy.names("state")[upto] if upto is not None else module
        with (
            fast_products(model.hf),
            Trace(model.hf, module, retain_output=False, retain_input=True) as trace,
            Trace(model.hf, last, stop=True) as above,
        ):
            model.hf(**model.inputs(batch))
        keys[part] = hidden(trace.input, len(part))[each, ends].float()
        if states is not None:
            states[part] = hidden(above.output, len(part))[each, ends].float()
    return keys, states
