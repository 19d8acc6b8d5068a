"""Words an edit has not seen: what it was made from, and a fact asked in other words.

A prompt that an edit was made from shows how well it was fitted, not what the model still knows. So whatever puts one
question only puts it in words the edit has not seen:
1. Candidates are the paraphrases that the edit has not looked at and that name the subject once.
2. The one after which the base model finds the answer likeliest is asked: the edit is judged where most was known.
3. Neighbours of the old template are asked in the new one too, so that what a fact is compared with keeps its wording.
A fact without such a paraphrase keeps its own prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

from surgery.edit import Edit
from surgery.fact import SLOT, Fact, Neighbour
from surgery.privacy import Hidden
from surgery.verification.askable import fits
from surgery.verification.baseline import Baseline
from surgery.verification.intervention import Intervention
from surgery.verification.naming import names, renamed


def hidden_of(edit: Edit | Intervention | None) -> Hidden | None:
    """What is left of an edit's facts where its file keeps them hidden."""
    return edit.hidden if isinstance(edit, Edit) else None


def prompts_seen(edit: Edit | Intervention | None, facts: Sequence[Fact]) -> tuple[str, ...]:
    """Prompts the edit was made from; where its file keeps their hashes, those among the facts' own.

    Where it keeps nothing, the facts' own prompts, which every method looks at.
    """
    hidden = hidden_of(edit)
    if hidden is None:
        return edit.prompts if edit else ()
    if hidden.keep == "none":
        return tuple(fact.prompt for fact in facts)
    asked = [(fact.prompt, *fact.paraphrases, *(one.prompt for one in fact.neighbours)) for fact in facts]
    return hidden.seen([text for texts in asked for text in texts])


def held_out(fact: Fact, seen: Sequence[str]) -> Fact:
    """The fact without paraphrases that the edit has looked at."""
    return fact.replace(paraphrases=tuple(text for text in fact.paraphrases if text not in seen))


def in_unseen_words(base: Baseline, fact: Fact, seen: Sequence[str]) -> Fact:
    """The fact as what puts one question asks it: itself, or, where the edit has seen its prompt, in other words.

    Args:
        base: the base model, which tells in which words it knows the answer best.
        fact: the fact.
        seen: prompts the edit was made from; such paraphrases are left away.
    """
    fact = held_out(fact, seen)
    if fact.prompt not in seen:
        return fact
    chosen = [text for text in fact.paraphrases if _template(fact, text) and fits(base.model, text, fact.target)]
    if not chosen:
        return fact
    chances = [one.probability for one in base.rate([(text, fact.target) for text in chosen])]
    best = chosen[chances.index(max(chances))]
    template = _template(fact, best)
    return fact.replace(
        template=template,
        paraphrases=tuple(text for text in fact.paraphrases if text != best),
        neighbours=tuple(_moved(one, fact.template, template) for one in fact.neighbours),
    )


def _template(fact: Fact, text: str) -> str:
    """A paraphrase with the slot in its subject's place; "" where the subject does not stand there once."""
    if not fact.subject:
        return "" if SLOT in text else text
    made = renamed(text, fact.subject, SLOT) if names(text, fact.subject) else ""
    return made if made.count(SLOT) == 1 else ""


def _moved(near: Neighbour, template: str, other: str) -> Neighbour:
    """A neighbour asked by another template; as it is where it does not have the old one."""
    before, slot, after = template.partition(SLOT)
    name = near.prompt[len(before) : len(near.prompt) - len(after)]
    if not slot or not name.strip() or near.prompt != before + name + after or SLOT in name:
        return near
    return Neighbour(other.replace(SLOT, name), near.target)
