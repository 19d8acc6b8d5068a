"""Facts that nobody can know, matched to one that somebody may: the same words and answer, an invented subject.

1. Invented names come in kinds: people, places, landmarks, organisations, works, things.
2. The kind is the one whose names suit the fact's wording best: the largest mean of log p(prompt with the name) -
   log p(the name), both after words that suit anything, by the base model, over a few names of each; what comes
   before the names is the same for all and left out.
3. The fact's own words stay, its paraphrases and its answer too; a paraphrase that does not name the subject goes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from surgery.errors import SurgeryError
from surgery.fact import Fact
from surgery.model import Model
from surgery.shipped import invented_names
from surgery.tokens import Question, encode
from surgery.verification.naming import names, renamed
from surgery.verification.shared import log_probs_of

TRIED = 3
ANYTHING = "I know this: "
COUNT = 20


def never_known(model: Model, fact: Fact, count: int = COUNT) -> tuple[Fact, ...]:
    """Controls of one fact; none for a fact without a subject, whose wording cannot be kept.

    Args:
        model: the base model, which tells which kind of name suits the fact.
        fact: the fact.
        count: how many, at most one fewer than there are invented names of a kind (23).

    Raises:
        SurgeryError: more are wanted than there are names.
    """
    kinds = invented_names()
    most = min(map(len, kinds.values())) - 1
    if not 0 < count <= most:
        raise SurgeryError(f"there are 1 to {most} controls for a fact, not {count}")
    if not fact.subject:
        return ()
    others = [name for name in kinds[suiting_kind(model, fact.template)] if name.casefold() != fact.subject.casefold()]
    return tuple(with_subject(fact, name) for name in others[:count])


def with_subject(fact: Fact, subject: str) -> Fact:
    """The fact asked of another subject, in its paraphrases too; those that do not name the subject are left away."""
    paraphrases = [renamed(text, fact.subject, subject) for text in fact.paraphrases if names(text, fact.subject)]
    return fact.replace(subject=subject, paraphrases=tuple(paraphrases), neighbours=(), id=None)


def in_words_of(fact: Fact, others: Sequence[Fact]) -> tuple[Fact, ...]:
    """The fact asked of the others' subjects: controls that were made for it in other words."""
    return tuple(with_subject(fact, one.subject) for one in others)


def suiting_kind(model: Model, template: str) -> str:
    """The kind of invented name that suits a template best."""
    kinds = invented_names()
    tried = [(kind, name) for kind, own in kinds.items() for name in own[:TRIED]]
    told = [ANYTHING + template.replace("{}", name) for _, name in tried]
    alone = [ANYTHING + name for _, name in tried]
    with_words, bare = log_probs_of(model, [_parted(model, told), _parted(model, alone)])
    gains = [a - b for a, b in zip(with_words, bare, strict=True)]
    suits = {kind: sum(gain for (one, _), gain in zip(tried, gains, strict=True) if one == kind) for kind in kinds}
    return max(suits, key=lambda kind: suits[kind])


def _parted(model: Model, texts: Sequence[str]) -> list[Question]:
    """Texts as questions whose answer begins where they part: what comes before is as likely for one as for another."""
    encoded = [encode(model.tokenizer, text) for text in texts]
    rows = [one.ids[: model.anatomy.max_positions] for one in encoded]
    alike = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False)))
    start = max(1, min(alike, min(map(len, rows)) - 1))
    return [Question(one.text, ids, one.offsets, start) for one, ids in zip(encoded, rows, strict=True)]
