"""One fact, asked cleanly and with its subject corrupted: what traces and screens both start from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jaxtyping import Float
from torch import Tensor

from locate.corrupt import Corruption, SwapSubject, embed
from locate.metrics import Metric, Readout
from surgery.errors import FactError
from surgery.fact import Fact
from surgery.hooks import Trace, hidden, with_hidden
from surgery.model import Model
from surgery.tokens import Question, Span, ask_fact


@dataclass(frozen=True, eq=False)
class Pair:
    """A clean run and corrupted ones, ready to be made.

    Attributes:
        model: the model.
        question: prompt and answer.
        span: the subject's positions.
        corruption: how the subject is hidden; a swap has found its other subject.
        corrupted: the subject's embeddings in each corrupted run.
        readout: the metric, made ready for this answer.
    """

    model: Model
    question: Question
    span: Span
    corruption: Corruption
    corrupted: Float[Tensor, "samples subject d_model"]
    readout: Readout

    @classmethod
    def of(cls, model: Model, fact: Fact, corruption: Corruption, metric: Metric, samples: int, seed: int) -> Pair:
        """The pair of a fact; where the subject is swapped, the other one's answer is the foil of logit differences.

        Raises:
            FactError: the fact has no subject to corrupt.
            SurgeryError: prompt and subject cannot be tokenised, or corruption or metric do not suit the fact.
        """
        if not fact.subject:
            raise FactError("subject", f"is empty in {fact.label!r}; a trace hides the subject, so it needs one")
        question, span = ask_fact(model.tokenizer, fact, fact.target)
        asked = fact
        if isinstance(corruption, SwapSubject):
            corruption = corruption.chosen(model, fact)
            asked = fact if fact.new_target is not None else fact.replace(new_target=corruption.answer)
        corrupted = corruption(model, fact, embed(model, question, span), samples, seed)
        return cls(model, question, span, corruption, corrupted, metric(model, asked, question))

    @cached_property
    def ids(self) -> tuple[int, ...]:
        """What is read: the prompt, and the answer's tokens but the last where the metric is about all of them."""
        return self.question.ids[: self.question.answer_start + self.readout.tokens - 1]

    @property
    def samples(self) -> int:
        """Corrupted runs; a swap has one."""
        return len(self.corrupted)

    @contextmanager
    def corrupting(self, copies: int = 1) -> Iterator[None]:
        """The subject is corrupted inside the block, whose batches have a row a sample, all samples `copies` times."""
        corrupted = self.corrupted.repeat(copies, 1, 1)

        def corrupt(output: Any, name: str) -> Any:
            states = hidden(output, len(corrupted)).clone()
            states[:, self.span.start : self.span.stop] = corrupted
            return with_hidden(output, states)

        with Trace(self.model.hf, self.model.anatomy.embedding, retain_output=False, edit_output=corrupt):
            yield
