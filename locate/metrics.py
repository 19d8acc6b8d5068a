"""How an answer is read off the logits of a traced run.

- Probability of the answer's first token: the published metric (Meng et al. 2022, https://arxiv.org/abs/2202.05262).
  It cannot fall where it is near 0 already, and so hides states that hold the answer down.
- LogitDifference between the answer's first token and a foil's, normalised so that 0 is the corrupted run and 1 the
  clean one (Zhang & Nanda 2024, https://arxiv.org/abs/2309.16042): it shows negative effects.
- LogProbability of the whole answer, each token given the ones before it, in nats: for answers of several tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from surgery.errors import SurgeryError, check_choice
from surgery.fact import Fact
from surgery.model import Model
from surgery.tokens import Question, ask


@dataclass(frozen=True, eq=False)
class Readout:
    """A metric made ready for one answer.

    Attributes:
        tokens: how many of the answer's tokens it reads.
        value: the metric from logits [rows, tokens, vocab].
    """

    tokens: int
    value: Callable[[Float[Tensor, "rows tokens vocab"]], Float[Tensor, " rows"]]

    def __call__(self, logits: Float[Tensor, "rows tokens vocab"]) -> Float[Tensor, " rows"]:
        """The metric, one number a row."""
        return self.value(logits)


@runtime_checkable
class Metric(Protocol):
    """What is traced."""

    name: ClassVar[str]
    normalised: ClassVar[bool]

    def __call__(self, model: Model, fact: Fact, question: Question) -> Readout:
        """The metric for one question."""
        ...


@dataclass(frozen=True, kw_only=True)
class Probability:
    """Probability of the answer's first token, 0 to 1."""

    name: ClassVar[str] = "probability"
    normalised: ClassVar[bool] = False

    def __str__(self) -> str:
        return "p"

    def __call__(self, model: Model, fact: Fact, question: Question) -> Readout:
        """Reads one token."""
        answer = question.answer_ids[0]
        return Readout(1, lambda logits: logits[:, 0].log_softmax(-1)[:, answer].exp())


@dataclass(frozen=True, kw_only=True)
class LogProbability:
    """Log-probability of the whole answer, in nats."""

    name: ClassVar[str] = "log-probability"
    normalised: ClassVar[bool] = False

    def __str__(self) -> str:
        return "log p"

    def __call__(self, model: Model, fact: Fact, question: Question) -> Readout:
        """Reads all tokens of the answer."""
        ids = torch.tensor(question.answer_ids, device=model.device)

        def value(logits: Tensor) -> Tensor:
            own = ids.expand(len(logits), -1)[..., None]
            return logits.log_softmax(-1).gather(-1, own).sum((-2, -1))

        return Readout(len(ids), value)


@dataclass(frozen=True, kw_only=True)
class LogitDifference:
    """Logit of the answer's first token minus that of a foil's, from 0 (corrupted run) to 1 (clean run).

    Attributes:
        foil: another answer; None for the fact's `new_target`, or, with a swapped subject, that subject's answer.
    """

    name: ClassVar[str] = "logit-difference"
    normalised: ClassVar[bool] = True
    foil: str | None = None

    def __str__(self) -> str:
        return "normalised logit difference" + (f" to {self.foil}" if self.foil else "")

    def __call__(self, model: Model, fact: Fact, question: Question) -> Readout:
        """Reads one token.

        Raises:
            SurgeryError: there is no foil, or it begins with the answer's own token.
        """
        foil = self.foil or fact.new_target
        if foil is None:
            raise SurgeryError(
                f"a logit difference needs another answer to {fact.prompt!r} than {fact.target!r}; "
                "give LogitDifference(foil=...) or a fact with a new_target"
            )
        answer, other = question.answer_ids[0], ask(model.tokenizer, fact.prompt, foil).answer_ids[0]
        if answer == other:
            raise SurgeryError(f"{foil!r} begins with the same token as {fact.target!r}; give another foil")
        return Readout(1, lambda logits: logits[:, 0, answer] - logits[:, 0, other])


@dataclass(frozen=True, kw_only=True)
class Logit:
    """Logit of the answer's first token, whatever other answers gain."""

    name: ClassVar[str] = "logit"
    normalised: ClassVar[bool] = False

    def __str__(self) -> str:
        return "logit"

    def __call__(self, model: Model, fact: Fact, question: Question) -> Readout:
        """Reads one token."""
        answer = question.answer_ids[0]
        return Readout(1, lambda logits: logits[:, 0, answer])


METRICS: dict[str, type[Metric]] = {one.name: one for one in (Probability, LogProbability, LogitDifference, Logit)}


def metric_named(name: str) -> Metric:
    """A metric by its name on the command line.

    Raises:
        SurgeryError: there is none of that name.
    """
    check_choice("metric", name, METRICS)
    return METRICS[name]()
