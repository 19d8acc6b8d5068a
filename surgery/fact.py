"""A fact: what is asked of a model, what it answers now, and what it should answer instead."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from surgery.errors import FactError

SLOT = "{}"


@dataclass(frozen=True)
class Neighbour:
    """A related prompt whose answer an edit must leave alone."""

    prompt: str
    target: str

    def __post_init__(self) -> None:
        for field in ("prompt", "target"):
            if not getattr(self, field).strip():
                raise FactError(f"neighbours.{field}", "is empty; write it out or leave the neighbour away")


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One fact as a prompt about a subject and its answer.

    Attributes:
        subject: the words the fact is about, as they stand in the prompt; "" for a fact about nothing in particular,
            which is edited at the prompt's last token and cannot be traced.
        template: the prompt with `{}` in the subject's place, ending where the answer begins; without `{}` where there
            is no subject.
        target: the answer the model gives (or should have given) so far.
        new_target: the answer it should give instead; None for a fact to be removed.
        paraphrases: other full prompts with the same answer. An edit does not see them: they judge it.
        neighbours: prompts about other subjects whose answers must stay.
        aliases: other ways to write the target, which count as the target where words are compared.
        id: the user's own name for the fact.

    Raises:
        FactError: a field is empty, or the template does not hold `{}` exactly once, or at all without a subject.
    """

    subject: str
    template: str
    target: str
    new_target: str | None = None
    paraphrases: Sequence[str] = ()
    neighbours: Sequence[Neighbour] = ()
    aliases: Sequence[str] = ()
    id: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "paraphrases", tuple(self.paraphrases))
        object.__setattr__(self, "neighbours", tuple(self.neighbours))
        if isinstance(self.aliases, str):
            raise FactError("aliases", f"{self.aliases!r} is one text; write a list, as ({self.aliases!r},)")
        object.__setattr__(self, "aliases", tuple(self.aliases))
        for field in ("template", "target"):
            if not getattr(self, field).strip():
                raise FactError(field, "is empty; a fact needs some words there")
        if self.subject and not self.subject.strip():
            raise FactError("subject", "is blank; write the words the fact is about, or '' for none")
        if self.new_target is not None and not self.new_target.strip():
            raise FactError("new_target", "is empty; write the new answer, or leave the field away to remove the fact")
        if any(not text.strip() for text in self.paraphrases):
            raise FactError("paraphrases", "one of them is empty; write it out or leave it away")
        if any(not text.strip() for text in self.aliases):
            raise FactError("aliases", "one of them is empty; write it out or leave it away")
        slots = self.template.count(SLOT)
        if not self.subject and slots:
            raise FactError(
                "subject",
                f"is empty, but {self.template!r} has {{}} for it; write the subject, or the prompt without {{}}",
            )
        if self.subject and slots == 0:
            raise FactError(
                "template", f"{self.template!r} has no {{}} for the subject; write it like '{{}} is located in'"
            )
        if slots > 1:
            raise FactError("template", f"{self.template!r} has {slots} times {{}}; keep the one the fact is about")

    @property
    def prompt(self) -> str:
        """The template with the subject in its place."""
        before, _, after = self.template.partition(SLOT)
        return before + self.subject + after

    @property
    def subject_start(self) -> int:
        """Character at which the subject begins in `prompt`, also where the same words occur twice."""
        return self.template.index(SLOT) if self.subject else len(self.template)

    @property
    def label(self) -> str:
        """A short name for tables and messages: the id, or prompt and answer."""
        return self.id if self.id is not None else f"{self.prompt} {self.target}"

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Fact:
        """The fact of one line of a facts file, as `as_record` gives it."""
        neighbours = [Neighbour(one["prompt"], one["target"]) for one in record.get("neighbours", ())]
        return cls(**{**record, "neighbours": neighbours})

    def replace(self, **changes: Any) -> Fact:
        """A copy with other values, such as `fact.replace(new_target="Rome")`."""
        return dataclasses.replace(self, **changes)

    def as_record(self) -> dict[str, Any]:
        """The fact as one line of a facts file holds it; absent fields are left away."""
        record = dataclasses.asdict(self)
        return {key: value for key, value in record.items() if value not in (None, ())}


def check_characters(fact: Fact) -> Fact:
    """The fact, if all of its texts can be written down; no tokenizer reads a lone surrogate, half of a character.

    Raises:
        FactError: one cannot.
    """
    texts = {
        "subject": [fact.subject],
        "template": [fact.template],
        "target": [fact.target],
        "new_target": [fact.new_target or ""],
        "paraphrases": fact.paraphrases,
        "neighbours": [text for one in fact.neighbours for text in (one.prompt, one.target)],
        "aliases": fact.aliases,
        "id": [fact.id or ""],
    }
    for field, held in texts.items():
        for half in (half for text in held if (half := half_character(text))):
            raise FactError(field, f"holds {half!r}, which is half of a character; write the whole one")
    return fact


def half_character(text: str) -> str:
    """The first lone surrogate of a text, or nothing."""
    return next((one for one in text if "\ud800" <= one <= "\udfff"), "")


def derive_neighbours(
    pairs: list[tuple[str, str]], index: int, template: str, *, limit: int = 6
) -> tuple[Neighbour, ...]:
    """Other subjects of one relation as neighbours of the fact at `index`.

    Subjects that share its answer come first, for an edit that moves the answer rather than the subject shows there;
    at most half of the list are such. The rest follow in the relation's order, starting after the fact.
    """
    subject, target = pairs[index]
    others = [pair for pair in pairs[index + 1 :] + pairs[:index] if pair[0] != subject]
    same = [pair for pair in others if pair[1] == target][: limit // 2]
    rest = [pair for pair in others if pair[1] != target][: limit - len(same)]
    return tuple(Neighbour(template.replace(SLOT, name), answer) for name, answer in same + rest)
