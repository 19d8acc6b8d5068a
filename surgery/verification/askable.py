"""Which facts a model can be asked at all: one it cannot read must not keep a file of others from being judged."""

from __future__ import annotations

from collections.abc import Sequence

from surgery.errors import SurgeryError
from surgery.fact import Fact, half_character
from surgery.model import Model
from surgery.tokens import ask, encode
from surgery.verification.probes import SAID_TOKENS, Probe

TOO_LONG = "longer than the model reads"
SHOWN = 60
"""Characters of a text that a reason quotes."""


def unaskable(model: Model, probes: Sequence[Probe]) -> dict[int, str]:
    """Of each fact that has a probe which cannot be asked: why, for the first of these.

    A probe must have tokens, its answer too, and leave room for what the model says.
    """
    found: dict[int, str] = {}
    for probe in probes:
        if probe.fact not in found and (why := _why_not(model, probe)):
            found[probe.fact] = why
    return found


def readable(model: Model, fact: Fact) -> bool:
    """Whether a fact's prompt and paraphrases can be asked with its answer."""
    own = (fact.prompt, *fact.paraphrases)
    return not unaskable(model, [Probe(0, "prompt", text, fact.target, None, True) for text in own])


def fits(model: Model, prompt: str, answer: str) -> bool:
    """Whether a prompt can be asked with an answer: both have tokens, and the model reads so many."""
    limit = model.anatomy.max_positions
    try:
        return limit is None or len(ask(model.tokenizer, prompt, answer).ids) <= limit
    except SurgeryError:
        return False


def leaves_room(model: Model, prompt: str) -> bool:
    """Whether a model can read a prompt and say something after it, at least as much as after a probe."""
    limit = model.anatomy.max_positions
    return limit is None or len(encode(model.tokenizer, prompt).ids) + SAID_TOKENS <= limit


def _why_not(model: Model, probe: Probe) -> str | None:
    limit = model.anatomy.max_positions
    for target in (probe.target, probe.new_target):
        if target is None:
            continue
        if half := half_character(probe.prompt) or half_character(target):
            asked = f"the {probe.role} {_short(probe.prompt)!r} or its answer {_short(target)!r}"
            return f"{asked} holds {half!r}, half of a character"
        try:
            question = ask(model.tokenizer, probe.prompt, target)
        except SurgeryError:
            return f"the {probe.role} {_short(probe.prompt)!r} or its answer {_short(target)!r} holds no token"
        length = len(question.prompt_ids) + max(len(question.answer_ids), SAID_TOKENS)
        if limit is not None and length > limit:
            return (
                f"the {probe.role} {_short(probe.prompt)!r} has {len(question.prompt_ids)} tokens; with an answer that "
                f"is more than the {limit} that {model.source} reads"
            )
    return None


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
