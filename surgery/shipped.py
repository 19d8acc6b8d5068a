"""What the package brings along: true facts the default model mostly knows, invented ones nobody can, neutral text."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from typing import Any

from surgery.errors import SurgeryError
from surgery.fact import SLOT, Fact, derive_neighbours


def _data(name: str) -> str:
    return (files("surgery") / "data" / name).read_text(encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class Relation:
    """A relation of the shipped facts, in both directions, and how it is chained with others.

    Attributes:
        name: its name.
        templates: ways to ask for the answer, with `{}` in the subject's place; the first is that of the facts.
        facts: subjects with their answers.
        reverse: asks for a subject, with `{}` in the answer's place.
        phrase: words for the answer that name the subject only, such as "the author of {}"; None where no other
            relation goes on from there.
        hop: asks for the answer with such words in the subject's place; None where none leads here.
        converse: a relation whose facts, turned round, are facts of this one.
    """

    name: str
    templates: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]
    reverse: str
    phrase: str | None = None
    hop: str | None = None
    converse: str | None = None

    @cached_property
    def answers(self) -> tuple[str, ...]:
        """Its different answers."""
        return tuple(dict.fromkeys(answer for _, answer in self.facts))

    @cached_property
    def examples(self) -> tuple[Fact, ...]:
        """Its facts with paraphrases and neighbours."""
        return tuple(facts_of_relation(list(self.templates), list(self.facts)))


@cache
def shipped_relations() -> tuple[Relation, ...]:
    """The relations with all that is known of them; they come with the package and never change."""
    return tuple(
        Relation(**{**one, "templates": tuple(one["templates"]), "facts": tuple((s, o) for s, o in one["facts"])})
        for one in data("relations.json")["relations"]
    )


def relation_of(fact: Fact, subjects: Collection[str] = ()) -> Relation | None:
    """The shipped relation a fact belongs to: by a template and an answer of it, or a fact of it in other words.

    Args:
        fact: the fact.
        subjects: others asked about in its words and with its answer, as controls are.
    """
    for one in shipped_relations():
        if fact.target in one.answers and fact.template in one.templates:
            return one
    known = {fact.subject, *subjects}
    for one in shipped_relations():
        if any(answer == fact.target and subject in known for subject, answer in one.facts):
            return one
    return None


def data(name: str) -> Any:
    """What a JSON file of the package holds."""
    return json.loads(_data(name))


def relations() -> tuple[str, ...]:
    """Names of the relations of the shipped facts."""
    return tuple(one.name for one in shipped_relations())


def example_facts(relation: str | None = None) -> list[Fact]:
    """True facts, most of which the default model knows; each has paraphrases and neighbours of its relation.

    Args:
        relation: only those of one relation.

    Raises:
        SurgeryError: there is no relation of that name.
    """
    chosen = [one for one in shipped_relations() if relation in (None, one.name)]
    if not chosen:
        raise SurgeryError(f"there is no relation {relation!r}; there are {', '.join(relations())}")
    return [fact for one in chosen for fact in one.examples]


def invented_facts() -> list[Fact]:
    """Facts about invented people, which no model can know: controls, and things to plant."""
    facts: list[Fact] = []
    for one in data("relations.json")["invented"]["facts"]:
        # there are more people than any of these relations has answers
        pairs = list(zip(invented_names()["person"], one["targets"], strict=False))
        facts += facts_of_relation([one["template"], *one["paraphrases"]], pairs)
    return facts


@cache
def invented_names() -> dict[str, tuple[str, ...]]:
    """Names that belong to nobody and nothing, by kind; they come with the package and never change."""
    return {kind: tuple(names) for kind, names in data("names.json").items()}


def facts_of_relation(templates: list[str], pairs: list[tuple[str, str]]) -> list[Fact]:
    """Facts of one relation: the first template asks, the others paraphrase, other subjects are neighbours."""
    return [
        Fact(
            subject=subject,
            template=templates[0],
            target=target,
            paraphrases=tuple(template.replace(SLOT, subject) for template in templates[1:]),
            neighbours=derive_neighbours(pairs, i, templates[0]),
        )
        for i, (subject, target) in enumerate(pairs)
    ]


def neutral_texts() -> list[str]:
    """Everyday sentences about none of the facts, one a line, to see whether an edit moves what it should not."""
    return _data("neutral.txt").splitlines()
