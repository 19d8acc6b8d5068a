"""From text to token ids and back to positions.

1. A text is encoded once, with the character offsets of every token; special tokens the tokenizer appends are dropped.
2. The tokens of a subject are those whose characters overlap the subject's: no decoding, so multi-byte characters,
   merged spaces and a BOS in front cannot shift a position.
3. Prompt and answer are encoded together; the answer begins with the first token that reaches past the prompt.
4. Rows are padded here, on an explicit side, with explicit position ids; the tokenizer's own padding is not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from surgery.errors import FactError, SurgeryError
from surgery.fact import SLOT, Fact, half_character


@dataclass(frozen=True)
class Span:
    """Token positions start, ..., stop - 1."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise SurgeryError(f"a span from {self.start} to {self.stop} holds no token")

    @property
    def last(self) -> int:
        """The last position, where the subject has been read as a whole."""
        return self.stop - 1

    def __len__(self) -> int:
        return self.stop - self.start

    def __contains__(self, position: int) -> bool:
        return self.start <= position < self.stop


@dataclass(frozen=True)
class Encoded:
    """A text's token ids and, for each, the characters it covers (an empty range for a BOS)."""

    text: str
    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]

    @property
    def token_texts(self) -> tuple[str, ...]:
        """The characters each token covers; a token that covers none (a BOS) shows as <>."""
        return tuple(self.text[a:b] or "<>" for a, b in self.offsets)

    def span(self, start: int, stop: int) -> Span:
        """The tokens that overlap characters start, ..., stop - 1.

        Raises:
            SurgeryError: no token does.
        """
        hit = [i for i, (a, b) in enumerate(self.offsets) if a < b and a < stop and b > start]
        if not hit:
            raise SurgeryError(f"no token of {self.text!r} covers its characters {start} to {stop}")
        return Span(hit[0], hit[-1] + 1)


@dataclass(frozen=True)
class Question(Encoded):
    """A prompt with its answer, encoded together: `ids` up to `answer_start` ask, the rest answer."""

    answer_start: int

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """Tokens that ask."""
        return self.ids[: self.answer_start]

    @property
    def answer_ids(self) -> tuple[int, ...]:
        """Tokens that answer."""
        return self.ids[self.answer_start :]


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> Encoded:
    """Encode a text with its offsets.

    Raises:
        SurgeryError: the text has no tokens or is none, or the tokenizer cannot give offsets.
    """
    if half := half_character(text):
        raise SurgeryError(f"{text!r} holds {half!r}, which is half of a character; write the whole one")
    if not tokenizer.is_fast:
        raise SurgeryError(
            f"{type(tokenizer).__name__} gives no character offsets; load the model with its fast tokenizer"
        )
    # a chat template writes the BOS itself
    bos = str(tokenizer.bos_token or "")
    out = tokenizer(
        text,
        add_special_tokens=not (bos and text.startswith(bos)),
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        verbose=False,
    )
    ids, offsets, special = out["input_ids"], out["offset_mapping"], out["special_tokens_mask"]
    stop = len(ids)
    while stop and special[stop - 1] and offsets[stop - 1][0] == offsets[stop - 1][1]:
        stop -= 1
    if not stop or all(a == b for a, b in offsets[:stop]):
        raise SurgeryError(f"{text!r} holds no token; give some words")
    return Encoded(text, tuple(ids[:stop]), tuple((a, b) for a, b in offsets[:stop]))


def find_subject(text: str, subject: str, occurrence: int = 0) -> tuple[int, int]:
    """Characters of an occurrence of the subject in a text; negative occurrences count from the end.

    Raises:
        FactError: the subject does not occur that often.
    """
    starts = [i for i in range(len(text)) if text.startswith(subject, i)] if subject else []
    try:
        start = starts[occurrence]
    except IndexError:
        found = f"{len(starts)} times" if starts else "not"
        raise FactError(
            "subject", f"{subject!r} is {found} in the prompt {text!r}; write it as it stands there"
        ) from None
    return start, start + len(subject)


def ask(tokenizer: PreTrainedTokenizerBase, prompt: str, target: str) -> Question:
    """Encode prompt and answer together, with one space between them unless either brings its own.

    Raises:
        SurgeryError: the answer has no token of its own.
    """
    space = "" if not prompt or prompt[-1].isspace() or target[:1].isspace() else " "
    encoded = encode(tokenizer, prompt + space + target)
    own = [i for i, (_, b) in enumerate(encoded.offsets) if b > len(prompt.rstrip())]
    if not target.strip() or not own:
        raise SurgeryError(f"the answer {target!r} has no token of its own after {prompt!r}; give another answer")
    if own[0] == 0:
        raise SurgeryError(f"the prompt {prompt!r} holds no token before its answer; give some words")
    return Question(encoded.text, encoded.ids, encoded.offsets, own[0])


def ask_fact(tokenizer: PreTrainedTokenizerBase, fact: Fact, target: str, context: str = SLOT) -> tuple[Question, Span]:
    """The fact's prompt within a context such as `"It rained. {}"`, encoded with an answer, and its subject's tokens.

    Of a fact without a subject, the prompt's last token stands for it.

    Raises:
        FactError: the context cannot be used with the prompt (`in_context`).
    """
    prompt = in_context(tokenizer, fact.prompt, context)
    question = ask(tokenizer, prompt, target)
    if not fact.subject:
        return question, Span(question.answer_start - 1, question.answer_start)
    start = len(prompt) - len(fact.prompt) + fact.subject_start
    return question, question.span(start, start + len(fact.subject))


def in_context(tokenizer: PreTrainedTokenizerBase, prompt: str, context: str) -> str:
    """A prompt within a context such as `"It rained. {}"`; in a chat, the context begins what the user says.

    Raises:
        FactError: the context does not end with its slot, or the prompt is a chat by another template than the
            tokenizer's, so that nobody can tell where the user begins.
    """
    before, _, after = context.partition(SLOT)
    if after or SLOT not in context:
        raise FactError(
            "contexts", f"{context!r} does not end with {{}}, where the prompt goes; write 'It rained. {{}}'"
        )
    head = _chat_head(tokenizer, prompt) if before else ""
    return head + before + prompt[len(head) :]


def _chat_head(tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    """What stands before the user's first word in a chat; nothing in an ordinary prompt."""
    special = [token for token in tokenizer.all_special_tokens if str(token) in prompt]
    if not special:
        return ""
    heads = [str(tokenizer.bos_token)] if special == [tokenizer.bos_token] else []
    if tokenizer.chat_template is not None:
        said = "what-the-user-says"
        chat = tokenizer.apply_chat_template([{"role": "user", "content": said}], tokenize=False)
        heads.insert(0, str(chat).partition(said)[0])
    for head in heads:
        if prompt.startswith(head):
            return head
    raise FactError(
        "template",
        f"{prompt!r} holds the special token {special[0]!r}, but does not begin as the tokenizer's chat template does, "
        "so contexts cannot be put into it; make it by surgery.as_chat, or give contexts=('{}',)",
    )


def as_chat(tokenizer: PreTrainedTokenizerBase, fact: Fact, *, question: str, opening: str = "") -> Fact:
    """The fact asked in a chat: the user's question, and the beginning of the assistant's turn.

    Args:
        tokenizer: whose chat template is used.
        fact: the fact; answers, neighbours and paraphrases stay as they are.
        question: what the user says, with `{}` in the subject's place, such as `"Where is {}?"`.
        opening: what the assistant has said already, such as `"It is in the city of"`.

    Raises:
        FactError: the question has no `{}`, or more than one.
        SurgeryError: the tokenizer has no chat template.
    """
    if tokenizer.chat_template is None:
        raise SurgeryError(f"{type(tokenizer).__name__} has no chat template; use an instruction-tuned model's")
    message = [{"role": "user", "content": question}]
    asked = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    return fact.replace(template=str(asked) + opening)


@dataclass(frozen=True)
class Batch:
    """Rows of tokens padded to one width, with explicit positions.

    Attributes:
        ids: token ids, 0 in the padding.
        mask: 1 where a token is, 0 in the padding.
        positions: each token's own position in its row.
        starts: the column of each row's first token.
    """

    ids: Int[Tensor, "batch width"]
    mask: Int[Tensor, "batch width"]
    positions: Int[Tensor, "batch width"]
    starts: Int[Tensor, " batch"]

    def columns(self, positions: Sequence[int]) -> Int[Tensor, " batch"]:
        """The column of one position a row; a negative one counts from the row's end."""
        at = torch.tensor(positions, device=self.ids.device)
        return self.starts + torch.where(at < 0, at + self.mask.sum(1), at)


def pad(
    rows: Sequence[Sequence[int]], *, side: Literal["left", "right"] = "right", device: torch.device | str = "cpu"
) -> Batch:
    """Pad rows of token ids to one width."""
    width = max(len(row) for row in rows)
    return _placed(rows, [width - len(row) if side == "left" else 0 for row in rows], width, device)


def align(rows: Sequence[Sequence[int]], at: Sequence[int], *, device: torch.device | str = "cpu") -> Batch:
    """Pad rows of token ids on both sides so that one position a row, `at`, stands in the same column of all."""
    column = max(at)
    width = column + max(len(row) - one for row, one in zip(rows, at, strict=True))
    return _placed(rows, [column - one for one in at], width, device)


def _placed(rows: Sequence[Sequence[int]], starts: Sequence[int], width: int, device: torch.device | str) -> Batch:
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask, positions = torch.zeros_like(ids), torch.zeros_like(ids)
    for i, row in enumerate(rows):
        part = slice(starts[i], starts[i] + len(row))
        ids[i, part] = torch.tensor(row)
        mask[i, part] = 1
        positions[i, part] = torch.arange(len(row))
    return Batch(ids.to(device), mask.to(device), positions.to(device), torch.tensor(list(starts)).to(device))
