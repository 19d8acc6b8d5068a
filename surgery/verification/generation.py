"""What users meet: the fact and its neighbours asked in plain, as a question and in a chat, and what is said then.

1. The fact is asked by its prompt, or, where an edit was made from that, in words it has not seen (`unseen`).
2. Plain: the prompt as it is. Question: `QUESTION` around the prompt. Chat: `CHAT` around it as the user's turn of the
   model's own chat template, where there is one; the assistant has said nothing yet.
3. The model speaks greedily up to a natural stop, at most forty tokens (`speech`).
4. What was said is the old answer, the new one or neither (`answers`); aliases of the fact count as its old
   answer. Shares have Wilson's interval.
The protocol, apart from its judge, is that of https://arxiv.org/abs/2502.11177, section 4: no answer is given away by
teacher forcing, and nothing is cut to the answer's length.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from transformers import PreTrainedTokenizerBase

from surgery.edit import Edit
from surgery.errors import SurgeryError, check_choice
from surgery.fact import Fact
from surgery.model import Model
from surgery.numbers import Interval, json_values, wilson
from surgery.verification.answers import Said, said_which
from surgery.verification.askable import leaves_room
from surgery.verification.baseline import Baseline
from surgery.verification.probes import probes_of
from surgery.verification.speech import MOST_TOKENS, speak
from surgery.verification.unseen import in_unseen_words, prompts_seen

Form = Literal["plain", "question", "chat"]
FORMS: tuple[Form, ...] = get_args(Form)
PLACE = "{prompt}"
QUESTION = 'Question: which words are missing at the end of "{prompt} ..."? Answer: {prompt}'
CHAT = 'Complete this sentence in a few words: "{prompt} ..."'


@dataclass(frozen=True)
class Spoken:
    """What was said to one prompt in one form.

    Attributes:
        fact: which of the facts, from 0.
        role: the fact itself, or a neighbour.
        form: how it was asked.
        prompt: the prompt, without what the form puts around it.
        old: the old answer, or the neighbour's.
        new: the new one, of a rewrite's own prompt.
        held_out: the edit was made without this prompt.
        before: what the model said before the edit, None without an edit.
        after: what it says now.
        said_before: which answer that was.
        said_after: which answer that is.
    """

    fact: int
    role: Literal["prompt", "neighbour"]
    form: Form
    prompt: str
    old: str
    new: str | None
    held_out: bool
    before: str | None
    after: str
    said_before: Said | None
    said_after: Said

    def __post_init__(self) -> None:
        if (self.before is None) != (self.said_before is None):
            raise SurgeryError("what was said before the edit comes with which answer it was")


@dataclass(frozen=True)
class Generation:
    """What users meet before and after an edit.

    Attributes:
        spoken: one a prompt and form.
        wordings: what each form puts around a prompt.
        left_out: forms that were not asked, and why.
        too_long: in each form, how many prompts were not asked, as the model cannot read them in it.
        most: most tokens a reply could have.
    """

    spoken: tuple[Spoken, ...]
    wordings: dict[Form, str]
    left_out: dict[str, str]
    most: int
    too_long: dict[Form, int] = field(default_factory=dict)

    def share(
        self, said: Said, *, form: Form | None = None, role: str = "prompt", when: Literal["before", "after"] = "after"
    ) -> Interval:
        """In what share of prompts that answer was said, in one form or all, with Wilson's 95 % interval."""
        chosen = [one for one in self.spoken if one.role == role and form in (None, one.form)]
        found = [one.said_before if when == "before" else one.said_after for one in chosen]
        return wilson([float(one == said) for one in found if one is not None])

    @property
    def told(self) -> str:
        """In words: for each form, which answers the facts' own prompts get, and how many neighbours keep theirs."""
        parts = []
        for form in self.wordings:
            own, near = ([s for s in self.spoken if (s.form, s.role) == (form, r)] for r in ("prompt", "neighbour"))
            counts = [f"{sum(s.said_after == said for s in own)} {said}" for said in ("old", "new", "neither")]
            had = [s for s in near if s.said_before in (None, "old")]
            kept = f", {sum(s.said_after == 'old' for s in had)} of {len(had)} neighbours right" if had else ""
            parts.append(f"{form}: {', '.join(counts)}{kept}")
        return "; ".join(parts)

    def as_record(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        return {**json_values(self), "told": self.told}


def generation(
    model: Model,
    edit: Edit | None,
    facts: Sequence[Fact],
    *,
    claim: Literal["removed", "rewritten"] | None = None,
    forms: Sequence[str] = FORMS,
    question: str = QUESTION,
    chat: str = CHAT,
    most: int = MOST_TOKENS,
    most_neighbours: int = 3,
    baseline: Baseline | None = None,
) -> Generation:
    """Ask as users ask, before and after an edit, or a model as it is.

    Args:
        model: the base model; it is the same afterwards.
        edit: the edit; None for the model at hand.
        facts: what is asked.
        claim: whether there is a new answer to look for; None for the edit's own claim.
        forms: how it is asked; the chat only where the tokenizer has a chat template.
        question: the question's wording, with `{prompt}` in the prompt's place, once or more often.
        chat: the wording of the user's turn.
        most: most tokens a reply may have.
        most_neighbours: of each fact, so many neighbours are asked, the first ones.
        baseline: what the base model answers, where the caller keeps it.

    Raises:
        SurgeryError: there are no facts, the model can read none of them in any form, a form is unknown, a wording has
            no place for the prompt, or the baseline is another model's.
    """
    wordings = _wordings(forms, question, chat)
    left_out: dict[str, str] = {}
    if "chat" in wordings and model.tokenizer.chat_template is None:
        del wordings["chat"]
        left_out["chat"] = "the tokenizer has no chat template"
    if not facts:
        raise SurgeryError("there is no fact to ask about; give at least one")
    base = Baseline(model) if baseline is None else baseline
    base.check(model)
    rewritten = (claim or (edit.claim if edit else "rewritten")) == "rewritten"
    seen = prompts_seen(edit, facts)
    asked = _asked([in_unseen_words(base, fact, seen) for fact in facts], facts, rewritten, most_neighbours)
    put = [(form, one, _put(model.tokenizer, form, wordings[form], one[2])) for form in wordings for one in asked]
    short = [row for row in put if leaves_room(model, row[2])]
    if not short:
        raise SurgeryError("the model can read no prompt in any of these forms; give shorter facts")
    rows, prompts = [row[:2] for row in short], [row[2] for row in short]
    counts = Counter(form for form, _ in rows)
    too_long = {form: len(asked) - counts[form] for form in wordings if counts[form] < len(asked)}
    with edit.applied(model) if edit else nullcontext():
        after = speak(model, prompts, most)
    before: list[str | None] = [*base.speak(prompts, most)] if edit else [None] * len(rows)
    spoken = []
    for (form, (i, role, prompt, old, new)), was, now in zip(rows, before, after, strict=True):
        ways = (old, *facts[i].aliases) if role == "prompt" else (old,)
        which = [None if text is None else said_which(text, ways, (new,) if new else ()) for text in (was, now)]
        assert which[1] is not None
        spoken.append(Spoken(i, role, form, prompt, old, new, prompt not in seen, was, now, which[0], which[1]))
    return Generation(tuple(spoken), wordings, left_out, most, too_long)


def _asked(
    asked: Sequence[Fact], facts: Sequence[Fact], rewritten: bool, most_neighbours: int
) -> list[tuple[int, Literal["prompt", "neighbour"], str, str, str | None]]:
    """Fact, role, prompt, old and new answer; first the fact as it is asked, then its first neighbours."""
    found: list[tuple[int, Literal["prompt", "neighbour"], str, str, str | None]] = []
    near = [probe for probe in probes_of(facts, "removed", ())[0] if probe.role == "neighbour"]
    for i, fact in enumerate(asked):
        found.append((i, "prompt", fact.prompt, fact.target, fact.new_target if rewritten else None))
        own = [probe for probe in near if probe.fact == i][:most_neighbours]
        found += [(i, "neighbour", probe.prompt, probe.target, None) for probe in own]
    return found


def _wordings(forms: Sequence[str], question: str, chat: str) -> dict[Form, str]:
    known: dict[str, str] = {"plain": PLACE, "question": question, "chat": chat}
    if not forms:
        raise SurgeryError(f"there is no form to ask in; give some of {', '.join(known)}")
    for form in forms:
        check_choice("form of asking", form, FORMS)
        if PLACE not in known[form]:
            raise SurgeryError(f"the {form} {known[form]!r} has no {PLACE}; write it where the fact's prompt goes")
    return {form: known[form] for form in FORMS if form in forms}


def _put(tokenizer: PreTrainedTokenizerBase, form: str, wording: str, prompt: str) -> str:
    text = wording.replace(PLACE, prompt)
    if form != "chat":
        return text
    turn = [{"role": "user", "content": text}]
    return str(tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
