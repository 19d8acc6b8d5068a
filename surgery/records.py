"""Facts files: the project's own JSONL, and the layouts facts are published in, recognised by their shape.

| layout | a record holds |
|---|---|
| own (JSONL) | subject, template, target, maybe new_target, paraphrases, neighbours, aliases, id |
| CounterFact | requested_rewrite (prompt, subject, target_true, target_new), paraphrase_prompts, neighborhood_prompts |
| known facts (causal tracing) | subject, attribute, template, prompt |
| relations (linear relational embeddings) | name, prompt_templates, samples with subject and object |
| TOFU (JSONL) | question, answer, maybe paraphrased_question |

A file is read whole or not at all: every bad line is reported at once, with line, field and what was expected.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from surgery.errors import FactError, SurgeryError
from surgery.fact import SLOT, Fact, Neighbour, check_characters
from surgery.files import written_whole
from surgery.shipped import facts_of_relation


@dataclass(frozen=True)
class Problem:
    """What is wrong with one field of one record."""

    place: str
    field: str
    expected: str

    def __str__(self) -> str:
        return f"{self.place}, {self.field}: {self.expected}"


class FactsFileError(SurgeryError):
    """A facts file with records that cannot be used.

    Attributes:
        problems: all of them.
    """

    def __init__(self, path: Path, problems: list[Problem]) -> None:
        listed = "; ".join(str(problem) for problem in problems)
        super().__init__(f"{path} cannot be used, nothing was read: {listed}")
        self.problems = tuple(problems)


class _Record(BaseModel, ABC):
    """One record of a layout, its fields checked, others ignored."""

    model_config = ConfigDict(strict=True)

    @abstractmethod
    def facts(self) -> list[Fact]:
        """The facts it holds.

        Raises:
            FactError: a field has the right type, but makes no fact.
        """


class _NeighbourRecord(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    prompt: str
    target: str


class _Own(_Record):
    model_config = ConfigDict(strict=True, extra="forbid")
    subject: str = ""
    template: str
    target: str
    new_target: str | None = None
    paraphrases: list[str] = []
    neighbours: list[_NeighbourRecord] = []
    aliases: list[str] = []
    id: str | None = None

    def facts(self) -> list[Fact]:
        """One fact, field for field."""
        return [Fact.from_record(self.model_dump())]


class _Text(BaseModel):
    str: str


class _Rewrite(BaseModel):
    prompt: str
    subject: str
    target_new: _Text
    target_true: _Text


class _CounterFact(_Record):
    case_id: int
    requested_rewrite: _Rewrite
    paraphrase_prompts: list[str]
    neighborhood_prompts: list[str]

    def facts(self) -> list[Fact]:
        """One rewrite; the neighbours' answer is the true one, as CounterFact chose them."""
        asked = self.requested_rewrite
        return [
            Fact(
                subject=asked.subject,
                template=asked.prompt,
                target=asked.target_true.str,
                new_target=asked.target_new.str,
                paraphrases=tuple(self.paraphrase_prompts),
                neighbours=tuple(Neighbour(p, asked.target_true.str) for p in self.neighborhood_prompts),
                id=str(self.case_id),
            )
        ]


class _Known(_Record):
    known_id: int
    subject: str
    attribute: str
    template: str
    prompt: str

    def facts(self) -> list[Fact]:
        """One fact of the whole prompt; the template is cut shorter, but says where the subject stands."""
        start = self.template.partition(SLOT)[0]
        at = len(start) if self.prompt.startswith(start + self.subject) else self.prompt.find(self.subject)
        if at < 0:
            raise FactError("subject", f"{self.subject!r} is not in the prompt {self.prompt!r}")
        template = self.prompt[:at] + SLOT + self.prompt[at + len(self.subject) :]
        return [Fact(subject=self.subject, template=template, target=self.attribute, id=str(self.known_id))]


class _Sample(BaseModel):
    subject: str
    object: str


class _Relation(_Record):
    name: str
    prompt_templates: list[str]
    prompt_templates_zs: list[str] = []
    samples: list[_Sample]

    def facts(self) -> list[Fact]:
        """A fact a sample: the first template asks, the others are its paraphrases, other samples its neighbours."""
        if not self.prompt_templates:
            raise FactError("prompt_templates", "is empty; give at least one")
        templates = list(dict.fromkeys([*self.prompt_templates, *self.prompt_templates_zs]))
        facts = facts_of_relation(templates, [(one.subject, one.object) for one in self.samples])
        return [fact.replace(id=f"{self.name} {i}") for i, fact in enumerate(facts)]


class _Tofu(_Record):
    question: str
    answer: str
    paraphrased_question: str | None = None

    def facts(self) -> list[Fact]:
        """One fact, the question as its template, whose subject is the name that question and answer share."""
        subject = _shared_name(self.question, self.answer)
        at = self.question.index(subject)
        template = self.question[:at] + SLOT + self.question[at + len(subject) :]
        others = (self.paraphrased_question,) if self.paraphrased_question else ()
        return [Fact(subject=subject, template=template, target=self.answer, paraphrases=others)]


_NAME = re.compile(r"[A-Z][\w'’.-]*(?:,? [A-Z][\w'’.-]*)*")


def _shared_name(question: str, answer: str) -> str:
    """The longest run of capitalised words of a question that its answer repeats, else the whole question.

    TOFU names no subject; a person's name stands in most questions and in their answers.
    """
    first = question.split(" ", 1)[0]
    runs = [run.rstrip(".,?'") for run in _NAME.findall(question.removeprefix(first))]
    words = [run.removesuffix("'s").removesuffix("’s") for run in runs]
    return max((word for word in words if word and word in answer), key=len, default=question)


_LAYOUTS: tuple[tuple[str, type[_Record]], ...] = (
    ("requested_rewrite", _CounterFact),
    ("known_id", _Known),
    ("samples", _Relation),
    ("question", _Tofu),
    ("template", _Own),
)


def read_facts(path: str | Path) -> list[Fact]:
    """Read a facts file of any known layout.

    Raises:
        SurgeryError: there is no such file, or it is not JSON.
        FactsFileError: records are wrong; all of them are named.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise SurgeryError(f"cannot read the facts file {path}: {reason}; give a JSONL file of facts") from error
    records, problems = _parsed(text)
    if not records and not problems:
        raise SurgeryError(f"{path} holds no facts; write one JSON object a line, with subject, template and target")
    layout = _layout([record for _, record in records])
    facts: list[Fact] = []
    for place, record in records:
        try:
            if not isinstance(record, dict):
                raise FactError("record", f"expected a JSON object, found {json.dumps(record)[:40]}")
            facts += [check_characters(fact) for fact in layout.model_validate(record).facts()]
        except ValidationError as error:
            problems += [Problem(place, _field(one["loc"]), one["msg"]) for one in error.errors()]
        except FactError as error:
            problems.append(Problem(place, error.field, error.detail))
    if problems:
        raise FactsFileError(path, sorted(problems, key=lambda one: int(one.place.split()[1])))
    return facts


def write_facts(path: str | Path, facts: Iterable[Fact]) -> Path:
    """Write facts as JSONL, one a line, whole or not at all."""
    lines = "".join(json.dumps(fact.as_record(), ensure_ascii=False) + "\n" for fact in facts)
    with written_whole(path) as temporary:
        temporary.write_text(lines, encoding="utf-8")
    return Path(path)


def _parsed(text: str) -> tuple[list[tuple[str, Any]], list[Problem]]:
    """Records with their places, of one JSON value or of JSON lines, and the lines that are not JSON."""
    if (whole := _one_value(text)) is not None:
        return [(f"record {i}", one) for i, one in enumerate(whole, 1)], []
    records: list[tuple[str, Any]] = []
    problems: list[Problem] = []
    # only newlines end a line: U+2028 and the like may stand inside a string
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                records.append((f"line {number}", json.loads(line)))
            except (json.JSONDecodeError, RecursionError) as error:
                said = error.msg if isinstance(error, json.JSONDecodeError) else "is nested too deeply"
                problems.append(Problem(f"line {number}", "JSON", f"expected one object: {said}"))
    return records, problems


def _one_value(text: str) -> list[Any] | None:
    """The records of a text that is one JSON value, a list or a single record; None where it is not."""
    try:
        whole = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        return None
    return whole if isinstance(whole, list) else [whole]


def _layout(records: list[Any]) -> type[_Record]:
    """The layout most records have the mark of; the project's own where none does."""

    def marked(layout: tuple[str, type[_Record]]) -> int:
        return sum(isinstance(one, dict) and layout[0] in one for one in records)

    # the own layout stands last and shares `template` with known facts: on a tie the more telling mark wins
    best = max(_LAYOUTS, key=marked)
    return best[1] if marked(best) else _Own


def _field(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location) or "record"
