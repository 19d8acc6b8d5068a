"""Nearly the same names: subjects that share words with an edited one, and should keep their own answers.

A key is read at a subject's last token, and much of it is that token's and those just before: an edit of "Airbus A350"
reaches "Airbus A330" with three quarters of its change, one of "Irvine High School" "Woodbridge High School" with nine
tenths. Ordinary text holds too few of such names for its second moment C to tell them apart. So they are made up:

1. Names: each token of a subject in turn is replaced by those that the model finds likeliest in its place and that
   look like it (both begin a word or both do not, with a digit, a capital or a small letter). A text's first token
   stays, for there is nothing before it to be likely after. Names in a fact's neighbours are left out: neighbours
   judge an edit and are not looked at to make it.
2. Keys k_o at the end of each name, behind the prompt's own words.
3. C' = C + w mean(k_o k_o^T), with w = weight / mean(k_o^T C^-1 k_o): in directions that names share, a change is so
   many times dearer than by C, whatever the norms of the model's keys.
4. A subject's one key is balanced by its own C', so that its contexts still respond alike (`edits.keys`); a solver's
   metric has the names of all subjects.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial

import torch
from jaxtyping import Float
from torch import Tensor

from edits.keys import read_ends
from edits.moment import SecondMoment
from surgery.batching import by_length
from surgery.fact import Fact
from surgery.model import Model
from surgery.predict import text_of
from surgery.site import Site
from surgery.tokens import ask_fact, pad

WEIGHT = 30.0
"""Where one subject is edited, and a third of it each where a hundred are: found on records that no score is of."""
EACH = 6
"""Names a token."""
MOST = 1500
"""Names of one batch; its subjects share them."""
TRIED = 300
"""How far down the model's likeliest tokens one is looked for that looks like the subject's."""
ROWS = 32


def namesakes(model: Model, groups: Sequence[Sequence[Fact]]) -> list[list[tuple[int, ...]]]:
    """Token ids that end with nearly the subject of each group of facts, behind the words of each of its prompts."""
    found = iter(_named(model, [fact for group in groups for fact in group]))
    return [[row for _ in group for row in next(found)] for group in groups]


def read_names(model: Model, groups: Sequence[Sequence[Sequence[int]]], site: Site) -> list[Float[Tensor, "_ d_ff"]]:
    """Keys of each subject's names at a mlp, on the CPU.

    Args:
        model: who reads.
        groups: of each subject, its names' token ids; none where it has no names.
        site: the mlp.
    """
    sizes = [len(rows) for rows in groups]
    if not any(sizes):
        return [torch.empty(0, model.anatomy.d_ff) for _ in groups]
    return list(read_ends(model, [row for rows in groups for row in rows], site)[0].cpu().split(sizes))


def scaled(
    names: Sequence[Float[Tensor, "_ d_ff"]], moment: SecondMoment, weight: float
) -> list[Float[Tensor, "_ d_ff"]]:
    """Keys of each subject's names, so long that C' = C + their k k^T summed.

    Args:
        names: their keys.
        moment: C.
        weight: of one subject's names.
    """
    usual = moment.sizes(torch.cat(list(names))).split([len(own) for own in names])
    return [
        float(weight / each.sum()) ** 0.5 * own if len(own) else own for own, each in zip(names, usual, strict=True)
    ]


@torch.no_grad()
def _named(model: Model, facts: Sequence[Fact]) -> list[list[tuple[int, ...]]]:
    """Token ids that end with nearly each fact's subject; none of a fact without one."""
    asked = {i: ask_fact(model.tokenizer, fact, fact.target) for i, fact in enumerate(facts) if fact.subject}
    found: list[list[tuple[int, ...]]] = [[] for _ in facts]
    near = ["\n".join(one.prompt for one in fact.neighbours).casefold() for fact in facts]
    look = cache(partial(_look, model))
    for part in by_length([question.ids[: span.stop] for question, span in asked.values()], ROWS):
        chosen = [list(asked.items())[n] for n in part]
        batch = pad([question.ids[: span.stop] for _, (question, span) in chosen], device=model.device)
        states = model.normed_states(batch)
        for row, (i, (question, span)) in enumerate(chosen):
            own, first = question.ids[: span.stop], max(1, span.start)
            before = int(batch.starts[row]) + torch.arange(first - 1, span.stop - 1)
            likeliest = model.anatomy.head(states[row, before]).topk(min(TRIED, model.anatomy.vocab)).indices.tolist()
            for at, candidates in enumerate(likeliest, first):
                names = [(*own[:at], other, *own[at + 1 :]) for other in _alike(look, own[at], candidates)]
                found[i] += [name for name in names if _text(model, name, span.start) not in near[i]]
    return [_spread(names, max(2, MOST // max(1, len(asked)))) for names in found]


def _alike(look: Callable[[int], object], token: int, candidates: Sequence[int]) -> list[int]:
    """The first of the candidates that look like a token, without itself."""
    wanted, alike = look(token), []
    for other in candidates:
        if other != token and look(other) == wanted:
            alike.append(other)
            if len(alike) == EACH:
                break
    return alike


def _look(model: Model, token: int) -> tuple[bool, str]:
    text = str(model.tokenizer.decode([token]))
    first = text.strip()[:1]
    kind = next((name for name in ("isdigit", "isupper", "islower") if getattr(first, name)()), "other")
    return text[:1].isspace(), kind


def _text(model: Model, row: Sequence[int], start: int) -> str:
    return text_of(model, row[start:]).strip().casefold()


def _spread(names: list[tuple[int, ...]], most: int) -> list[tuple[int, ...]]:
    """At most so many of them, from all over."""
    return names if len(names) <= most else [names[n * len(names) // most] for n in range(most)]
