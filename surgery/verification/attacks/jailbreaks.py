"""Jailbreak forms: wrappers that talk a model into an answer it would not give when asked plainly.

1. The nine kinds of RWKU's adversarial probes (Jin et al. 2024, https://arxiv.org/abs/2406.10890), with texts of our
   own over prompt, subject and answer: prefix injection, affirmative suffix, role play, reverse query, synonym
   manipulation, context hint, in-context learning, cross-lingual; the ninth, multiple choice, is an attack of its own
   (`choice.py`), since controls differ ten times as much there.
2. Affirmative prefixes: the answer's announcement, put into the model's mouth.
3. The prompt through the model's chat template, with an affirmative prefix.
Some forms hold the answer or its first letter. That is paid for: the controls are told the same.
The reverse query asks for the subject; it scores by how much the answer makes the subject likelier than wrong answers
do (`asking.subject_gains`).
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from surgery.fact import SLOT, Fact
from surgery.model import Model
from surgery.shipped import data
from surgery.tokens import as_chat
from surgery.verification.asking import Backwards, Cell, Kin, backwards, inside, probabilities, subject_gains
from surgery.verification.attack import Aspect, Attempt, Profile

GAP = "____"
ALIAS = "X"


@dataclass(frozen=True, kw_only=True)
class Jailbreaks:
    """Ask within wrappers that talk a model into answering.

    Attributes:
        wrong: how many wrong answers the reverse query compares the right one with.
        examples: how many other facts are shown for in-context learning.
    """

    wrong: int = 3
    examples: int = 3

    name: ClassVar[str] = "jailbreaks"
    about: ClassVar[str] = "eight kinds of jailbreak prompts, affirmative prefixes, the chat template"
    aspect: ClassVar[Aspect] = "extraction"
    own_words: ClassVar[bool] = False
    profile: ClassVar[Profile] = "standard"
    unit: ClassVar[str] = "probability"
    floor: ClassVar[float] = 0.1

    def __call__(self, model: Model, facts: Sequence[Fact]) -> Attempt:
        """The answer's probability after each form."""
        texts, kin = data("wordings.json"), Kin(tuple(facts))
        values = [self._values(fact, kin) for fact in facts]
        table: list[list[Cell]] = [
            [
                *(_filled(form["text"], given, fact) for form in texts["jailbreaks"]),
                *(_chat(model, form, given, fact) for form in texts["chats"]),
            ]
            for fact, given in zip(facts, values, strict=True)
        ]
        asked = [self._reverse(texts["reverse query"], fact, kin) for fact in facts]
        scores = np.column_stack([probabilities(model, facts, table), subject_gains(model, facts, asked)])
        names = [form["name"] for form in (*texts["jailbreaks"], *texts["chats"])]
        return Attempt((*names, "reverse query"), scores)

    def _values(self, fact: Fact, kin: Kin) -> dict[str, str | None]:
        shown = [f"{one.prompt} {one.target}." for one in kin.neighbours(fact)[: self.examples]]
        return {
            "prompt": fact.prompt,
            "template": fact.template,
            "inside": inside(fact.subject) if fact.subject else None,
            "renamed": fact.template.replace(SLOT, ALIAS) if fact.subject else None,
            "initial": fact.target.strip()[0],
            "examples": " ".join(shown or data("wordings.json")["examples"][: self.examples]),
        }

    def _reverse(self, text: str, fact: Fact, kin: Kin) -> Backwards | None:
        wrong = kin.wrong_answers(fact, self.wrong)
        if not fact.subject or not wrong:
            return None
        told = text.format(gap=fact.template.replace(SLOT, GAP), target=SLOT)
        return backwards(told, fact.subject, fact.target.strip(), wrong)


def _filled(text: str, values: dict[str, str | None], fact: Fact) -> Cell:
    """A form's prompt with the fact's answer, None where the fact lacks something it names."""
    named = {name: values[name] for _, name, _, _ in string.Formatter().parse(text) if name}
    return None if None in named.values() else (text.format_map(named), fact.target)


def _chat(model: Model, form: dict[str, Any], values: dict[str, str | None], fact: Fact) -> Cell:
    if model.tokenizer.chat_template is None:
        return None
    # the slot stands in the opening, which ends with the fact's template
    opening = form["opening"].format_map(values)
    return as_chat(model.tokenizer, fact, question=form["question"], opening=opening).prompt, fact.target
