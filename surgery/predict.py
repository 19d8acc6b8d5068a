"""What a model says: probabilities and ranks of whole answers, likely next tokens, continuations.

An answer of several tokens has as its probability the product over its tokens, each given the ones before it, and as
its rank the worst rank of any of them: within the top k by this rank means that every step of the answer is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from surgery.batching import by_length
from surgery.model import Model
from surgery.packing import packed_products
from surgery.products import fast_products
from surgery.tokens import Question, ask, encode, pad

ROWS = 32


@dataclass(frozen=True)
class Answer:
    """How a model rates one answer to one prompt.

    Attributes:
        probability: of the whole answer, 0 to 1.
        rank: worst rank of its tokens, from 1.
        top: the most likely first token instead, as text.
    """

    prompt: str
    target: str
    probability: float
    rank: int
    top: str

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1 + 1e-6 or self.rank < 1:
            raise ValueError(f"probability {self.probability} and rank {self.rank} are out of range")


@dataclass(frozen=True)
class Likely:
    """One likely next token."""

    token: str
    probability: float


@torch.no_grad()
def rate(model: Model, asked: Sequence[tuple[str, str]], *, rows: int = ROWS) -> list[Answer]:
    """Rate (prompt, answer) pairs.

    Args:
        model: the model asked.
        asked: prompts, each with its answer.
        rows: how many go through the model at a time.

    Raises:
        SurgeryError: a prompt or an answer has no tokens.
    """
    questions = [ask(model.tokenizer, prompt, target) for prompt, target in asked]
    answers: dict[int, Answer] = {}
    for part in by_length([question.ids for question in questions], rows):
        with fast_products(model.hf):
            found = answer_logits(model, [questions[i] for i in part])
        for i, logits in zip(part, found, strict=True):
            ids = torch.tensor(questions[i].answer_ids, device=logits.device)
            own = logits.gather(1, ids[:, None])
            rank = int((logits > own).sum(1).max()) + 1
            probability = logits.double().log_softmax(-1).gather(1, ids[:, None]).sum().exp().item()
            top = text_of(model, [int(logits[0].argmax())])
            answers[i] = Answer(*asked[i], min(probability, 1.0), rank, top)
    return [answers[i] for i in range(len(asked))]


def answer_logits(model: Model, questions: Sequence[Question]) -> list[Float[Tensor, "answer vocab"]]:
    """For each question, the logits at the positions that predict its answer's tokens."""
    batch = pad([question.ids for question in questions], device=model.device)
    most = max(len(question.answer_ids) for question in questions)
    picked = [
        [min(question.answer_start - 1 + i, len(question.ids) - 1) for i in range(most)] for question in questions
    ]
    columns = torch.tensor(picked, device=model.device) + batch.starts[:, None]
    logits = model.logits_at(batch, columns)
    return [rows[: len(question.answer_ids)] for rows, question in zip(logits, questions, strict=True)]


@torch.no_grad()
def next_log_probs(model: Model, prompts: Sequence[str], *, rows: int = ROWS) -> Float[Tensor, "prompts vocab"]:
    """Log-probabilities of the token after each prompt, in float32."""
    ids = [encode(model.tokenizer, prompt).ids for prompt in prompts]
    batches = [pad(ids[start : start + rows], device=model.device) for start in range(0, len(ids), rows)]
    found = [model.logits_at(batch, batch.columns([-1] * len(batch.ids))) for batch in batches]
    return torch.cat(found).log_softmax(-1)


@torch.no_grad()
def next_tokens(model: Model, prompt: str, k: int = 10) -> list[Likely]:
    """The k likeliest next tokens after a prompt, best first."""
    batch = pad([encode(model.tokenizer, prompt).ids], device=model.device)
    best = model.logits_at(batch, batch.columns([-1]))[0].softmax(-1).topk(k)
    return [
        Likely(text_of(model, [int(i)]), float(p))
        for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]


@torch.no_grad()
def generate(
    model: Model,
    prompts: Sequence[str],
    max_new_tokens: int,
    *,
    random: np.random.RandomState | None = None,
    top_k: int | None = None,
    until: Callable[[str], bool] | None = None,
    drafts: Sequence[str] = (),
) -> list[str]:
    """Continue prompts, to the model's end token or last position: greedily, or by draws if given a source of them.

    Found token by token, a continuation takes a run for each. A draft of what may be said greedily is checked in one
    run, and spares those it gets right (https://arxiv.org/abs/2211.17192, with a text for the smaller model).

    Args:
        model: the model that speaks.
        prompts: what it continues; rows are padded on the left, with explicit positions.
        max_new_tokens: most tokens a continuation may have.
        random: source of draws for sampling at temperature 1; None takes the likeliest token each time.
        top_k: with `random`, draw among the k likeliest only.
        until: a continuation for which this holds has come to its end.
        drafts: a greedy continuation of each prompt to begin with, such as another model's; changes no token.

    Returns:
        the continuations alone, without special tokens.
    """
    if drafts and random is not None:
        raise ValueError("draws cannot be drafted")
    asked = [encode(model.tokenizer, prompt).ids for prompt in prompts]
    if (limit := model.anatomy.max_positions) is not None:
        # a prompt that is too long itself is refused when it is read
        max_new_tokens = min(max_new_tokens, max(1, limit - max(map(len, asked)) + 1))
    said = _Said(model, len(prompts), max_new_tokens, until)
    if drafts and said.going:
        for i, tokens in enumerate(_as_drafted(model, asked, prompts, drafts, max_new_tokens)):
            for token in tokens:
                said.add(i, token)
    if said.going:
        _go_on(model, asked, said, random, top_k)
    return [text_of(model, ids) for ids in said.tokens]


class _Said:
    """What is said after each prompt so far, and which go on."""

    def __init__(self, model: Model, count: int, most: int, until: Callable[[str], bool] | None) -> None:
        self.tokens: list[list[int]] = [[] for _ in range(count)]
        self.going = set(range(count)) if most > 0 else set()
        self._model, self._most, self._until, self._ends = model, most, until, end_tokens(model)

    def add(self, i: int, token: int) -> None:
        """Take down what comes next after a prompt, if that goes on."""
        if i not in self.going:
            return
        own = self.tokens[i]
        if token not in self._ends:
            own.append(token)
        stopped = self._until is not None and self._until(text_of(self._model, own))
        if token in self._ends or len(own) == self._most or stopped:
            self.going.discard(i)


def _go_on(
    model: Model, asked: Sequence[Sequence[int]], said: _Said, random: np.random.RandomState | None, top_k: int | None
) -> None:
    """Find what is still to be said, a token of every row at a time."""
    rows = sorted(said.going)
    batch = pad([(*asked[i], *said.tokens[i]) for i in rows], side="left", device=model.device)
    inputs: dict[str, Any] = {**model.inputs(batch), "use_cache": True}
    with fast_products(model.hf), packed_products([model.hf.get_output_embeddings()]):
        while True:
            out = model.hf.base_model(**inputs)
            logits = model.anatomy.head(out.last_hidden_state[:, -1]).float()
            chosen = [_choose(row, random, top_k) for row in logits]
            for i, token in zip(rows, chosen, strict=True):
                said.add(i, token)
            if not said.going:
                return
            inputs["input_ids"] = torch.tensor(chosen, device=model.device)[:, None]
            inputs["past_key_values"] = out.past_key_values
            inputs["attention_mask"] = torch.nn.functional.pad(inputs["attention_mask"], (0, 1), value=1)
            if "position_ids" in inputs:
                inputs["position_ids"] = inputs["position_ids"][:, -1:] + 1
            # a draw is made for every row, so that those of one do not depend on where another ends
            if random is None and len(said.going) < len(rows):
                rows = _keep_(inputs, [k for k, i in enumerate(rows) if i in said.going], rows)


def _as_drafted(
    model: Model, asked: Sequence[Sequence[int]], prompts: Sequence[str], drafts: Sequence[str], most: int
) -> list[list[int]]:
    """Each prompt's greedy continuation as far as its draft is that, and the token after it; at most so many."""
    guessed = []
    for own, prompt, draft in zip(asked, prompts, drafts, strict=True):
        # some tokenizers give a text back without the space in front
        tried = [encode(model.tokenizer, prompt + space + draft).ids for space in ("", " ")]
        guessed.append(next((ids[len(own) :] for ids in tried if ids[: len(own)] == own), ())[: most - 1])
    rows = [(*own, *guess) for own, guess in zip(asked, guessed, strict=True)]
    states = model.normed_states(pad(rows, device=model.device))
    found = []
    for own, guess, row in zip(asked, guessed, states, strict=True):
        likeliest = model.anatomy.head(row[len(own) - 1 : len(own) + len(guess)]).argmax(-1).tolist()
        right = next((k for k, token in enumerate(guess) if token != likeliest[k]), len(guess))
        found.append(likeliest[: right + 1])
    return found


def _keep_(inputs: dict[str, Any], left: list[int], rows: Sequence[int]) -> list[int]:
    """Leave only some rows in a batch that is being continued; returns what is left of `rows`."""
    kept = torch.tensor(left, device=inputs["input_ids"].device)
    inputs["past_key_values"].batch_select_indices(kept)
    inputs.update({name: given[kept] for name, given in inputs.items() if isinstance(given, Tensor)})
    return [rows[k] for k in left]


def continued_together(model: Model, rows: Sequence[Sequence[int]], new: int, most: int) -> list[list[int]]:
    """Which prompts to continue as one batch, at most so many: those of like length, as `tokens.by_length` has them.

    A batch has the room of its longest row. Rows with room for less than `new` tokens stand beside those of just their
    length, so that none of them cuts another one short.
    """
    limit = model.anatomy.max_positions
    roomy = [i for i, row in enumerate(rows) if limit is None or len(row) + new <= limit + 1]
    tight: dict[int, list[int]] = {}
    for i in sorted(set(range(len(rows))) - set(roomy), key=lambda i: (len(rows[i]), i)):
        tight.setdefault(len(rows[i]), []).append(i)
    return [
        [group[k] for k in part]
        for group in (roomy, *tight.values())
        for part in by_length([rows[i] for i in group], most, runs=new)
    ]


def text_of(model: Model, ids: Sequence[int]) -> str:
    """Token ids as text, without special tokens."""
    return str(model.tokenizer.decode(list(ids), skip_special_tokens=True))


def _choose(logits: Float[Tensor, " vocab"], random: np.random.RandomState | None, top_k: int | None) -> int:
    if random is None:
        return int(logits.argmax())
    best = logits.topk(top_k or len(logits))
    p = best.values.double().softmax(-1).cpu().numpy()
    return int(best.indices[random.choice(len(p), p=p / p.sum())])


def end_tokens(model: Model) -> set[int]:
    """Tokens after which the model says no more."""
    named = model.hf.generation_config.eos_token_id if model.hf.generation_config else None
    own = model.tokenizer.eos_token_id
    return {int(i) for i in [*(named if isinstance(named, list) else [named]), own] if i is not None}
