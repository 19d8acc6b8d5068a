"""Where else a subject stands, and who else stands where it does.

A key read in one prompt knows the subject in that prompt's words alone. "Tucson is located in the U.S. state of" keeps
its answer after an edit of "The American city of Tucson lies in the state of": there the subject begins the text. And
"Phoenix" in the edited prompt's place loses its own, for the words before a name are half of its key. A removal, which
has to hold whoever asks and however, therefore looks at more than the prompt:

1. Elsewhere: keys of the subject with other words before it, or none, become part of its one key (`edits.keys`). The
   subject as a text's only token is left out: the first token's state is hardly its own (attention uses it as a sink),
   and an edit there would reach every text.
2. Others: keys k_o of other subjects behind the fact's own words weigh like ordinary text and more:
   C' = C + w mean(k_o k_o^T). A change that is cheap by C' does not answer to them.

Others are the subjects of the shipped facts, without those the facts' neighbours are about: neighbours judge an edit
and are not looked at to make it.
"""

from __future__ import annotations

from collections.abc import Sequence

from surgery.fact import SLOT, Fact
from surgery.model import Model
from surgery.shipped import example_facts
from surgery.tokens import encode

LEADS = (f"In {SLOT}",)
WEIGHT = 30.0
"""Of other subjects' keys, in units of ordinary text's."""
MOST = 1500
"""Other subjects' keys of one batch; facts with other words before their subjects share them."""


def elsewhere_rows(model: Model, fact: Fact, contexts: Sequence[str]) -> list[tuple[int, ...]]:
    """Token ids of texts that end with the fact's subject, behind other words than its prompt's.

    Args:
        model: whose tokenizer.
        fact: the fact; one without a subject stands nowhere else.
        contexts: beginnings that its prompt is read behind.
    """
    if not fact.subject:
        return []
    # behind a context's words, a prompt that begins with its subject has been read already
    own = [text.replace(SLOT, fact.subject) for text in contexts if fact.subject_start]
    rows = [_ending(model, text, fact.subject) for text in (*own, *(one.replace(SLOT, fact.subject) for one in LEADS))]
    return [row for row in rows if len(row) > 1]


def other_rows(model: Model, facts: Sequence[Fact]) -> list[tuple[int, ...]]:
    """Token ids of the words before the facts' subjects with other subjects behind them, at most about `MOST`."""
    names = other_subjects(facts)
    leads = list(dict.fromkeys(fact.template[: fact.subject_start] for fact in facts if fact.subject))
    if not leads or not names:
        return []
    each = max(1, min(len(names), MOST // len(leads)))
    rows = []
    for i, lead in enumerate(leads):
        chosen = [names[(i + j * len(names) // each) % len(names)] for j in range(each)]
        rows += [_ending(model, lead + name, name) for name in chosen]
    return rows


def other_subjects(facts: Sequence[Fact]) -> list[str]:
    """Subjects of shipped facts that none of these facts is about, nor any of their neighbours."""
    own = [fact.subject.casefold() for fact in facts if fact.subject]
    near = "\n".join(one.prompt for fact in facts for one in fact.neighbours).casefold()
    names = dict.fromkeys(fact.subject for fact in example_facts())
    return [
        name
        for name in names
        if name.casefold() not in near and not any(one in name.casefold() or name.casefold() in one for one in own)
    ]


def _ending(model: Model, text: str, subject: str) -> tuple[int, ...]:
    encoded = encode(model.tokenizer, text)
    return encoded.ids[: encoded.span(len(text) - len(subject), len(text)).stop]
