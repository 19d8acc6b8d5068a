"""Ways to make a model lose sight of a subject: change the embeddings of its tokens.

Each corruption is its own configuration and gives, for one fact, corrupted embeddings [samples, subject, d_model].
Noise draws are `numpy.random.RandomState(seed).randn(samples, subject, d_model)`, one set for a whole trace, so that
a trace compares number for number with the published code (Meng et al. 2022, https://arxiv.org/abs/2202.05262).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from surgery.errors import SurgeryError
from surgery.fact import Fact
from surgery.model import Model
from surgery.shipped import example_facts
from surgery.tokens import Question, Span, ask_fact


@runtime_checkable
class Corruption(Protocol):
    """Gives the corrupted embeddings of a fact's subject."""

    def __call__(
        self, model: Model, fact: Fact, clean: Float[Tensor, "subject d_model"], samples: int, seed: int
    ) -> Float[Tensor, "samples subject d_model"]:
        """Corrupted embeddings, given the clean ones."""
        ...


@dataclass(frozen=True)
class Gaussian:
    """Add normal noise to every entry: of an absolute `std`, or of `multiple` times the embeddings' own.

    Attributes:
        multiple: in units of the standard deviation of all entries of the subject tokens' embeddings over the shipped
            facts. The published 3 makes most models forget; 1 mostly does not.
        std: the absolute value instead, to compare with a published one.

    Raises:
        SurgeryError: both or neither are given, or one is negative.
    """

    multiple: float | None = None
    std: float | None = None

    def __post_init__(self) -> None:
        if self.multiple is None and self.std is None:
            object.__setattr__(self, "multiple", 3.0)
        if self.multiple is not None and self.std is not None:
            raise SurgeryError("give the noise as a multiple or as a std, not both")
        if (self.multiple or 0) < 0 or (self.std or 0) < 0:
            raise SurgeryError("noise cannot be negative; give 0 for none")

    def __str__(self) -> str:
        return (
            f"Gaussian noise of std {self.std}" if self.std is not None else f"Gaussian noise, {self.multiple:g} x std"
        )

    def __call__(
        self, model: Model, fact: Fact, clean: Float[Tensor, "subject d_model"], samples: int, seed: int
    ) -> Float[Tensor, "samples subject d_model"]:
        """Clean embeddings plus the draws."""
        std = self.std if self.std is not None else (self.multiple or 0.0) * subject_embedding_std(model)
        draws = np.random.RandomState(seed).randn(samples, *clean.shape) * std
        return clean + torch.from_numpy(draws).to(clean)


@dataclass(frozen=True)
class Uniform:
    """Add uniform noise between -bound and +bound to every entry.

    Attributes:
        multiple: the bound in units of the embeddings' own standard deviation, as for `Gaussian`.
    """

    multiple: float = 3.0

    def __str__(self) -> str:
        return f"uniform noise, {self.multiple:g} x std"

    def __call__(
        self, model: Model, fact: Fact, clean: Float[Tensor, "subject d_model"], samples: int, seed: int
    ) -> Float[Tensor, "samples subject d_model"]:
        """Clean embeddings plus the draws."""
        draws = np.random.RandomState(seed).uniform(-1, 1, (samples, *clean.shape))
        return clean + torch.from_numpy(draws * self.multiple * subject_embedding_std(model)).to(clean)


@dataclass(frozen=True)
class SwapSubject:
    """Put another subject of as many tokens in the subject's place (symmetric token replacement).

    Stays on natural inputs, where noise does not (Zhang & Nanda 2024, https://arxiv.org/abs/2309.16042). There is
    nothing random in it: one sample.

    Attributes:
        subject: the other subject.
    """

    subject: str

    def __str__(self) -> str:
        return f"swapped for {self.subject}"

    def __call__(
        self, model: Model, fact: Fact, clean: Float[Tensor, "subject d_model"], samples: int, seed: int
    ) -> Float[Tensor, "samples subject d_model"]:
        """The other subject's embeddings.

        Raises:
            SurgeryError: it has another number of tokens in this prompt.
        """
        question, span = ask_fact(model.tokenizer, fact.replace(subject=self.subject), fact.target)
        if len(span) != len(clean):
            raise SurgeryError(
                f"{self.subject!r} has {len(span)} tokens and {fact.subject!r} has {len(clean)}; "
                "a swap needs a subject of as many tokens"
            )
        return embed(model, question, span)[None]


@torch.no_grad()
def embed(model: Model, question: Question, span: Span) -> Float[Tensor, "subject d_model"]:
    """What the token-embedding module gives for the tokens of a span."""
    ids = torch.tensor(question.ids[span.start : span.stop], device=model.device)
    return model.hf.get_input_embeddings()(ids)


def subject_embedding_std(model: Model, facts: Iterable[Fact] | None = None) -> float:
    """Standard deviation of all entries of the subject tokens' embeddings over facts (default: the shipped ones)."""
    chosen = example_facts() if facts is None else facts
    parts = [embed(model, *ask_fact(model.tokenizer, fact, fact.target)) for fact in chosen]
    return float(torch.cat(parts).float().std())
