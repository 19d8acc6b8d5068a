"""Ways to make a model lose sight of a subject: change the embeddings of its tokens.

Each corruption is its own configuration and gives, for one fact, corrupted embeddings [samples, subject, d_model].
Noise draws are `numpy.random.RandomState(seed).randn(samples, subject, d_model)`, one set for a whole trace, so that
a trace compares number for number with the published code (Meng et al. 2022, https://arxiv.org/abs/2202.05262).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from surgery.errors import SurgeryError
from surgery.fact import SLOT, Fact
from surgery.model import Model
from surgery.shipped import example_facts
from surgery.tokens import Question, Span, ask_fact, encode


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
        replace: put the noise in the embeddings' place instead of adding it.

    Raises:
        SurgeryError: both or neither are given, or one is negative.
    """

    multiple: float | None = None
    std: float | None = None
    replace: bool = False

    def __post_init__(self) -> None:
        if self.multiple is None and self.std is None:
            object.__setattr__(self, "multiple", 3.0)
        if self.multiple is not None and self.std is not None:
            raise SurgeryError("give the noise as a multiple or as a std, not both")
        _not_negative(self.multiple, self.std)

    def __str__(self) -> str:
        size = f"of std {self.std:g}" if self.std is not None else f"of {self.multiple:g} x std"
        return f"Gaussian noise {size}" + _instead(self.replace)

    def __call__(
        self, model: Model, fact: Fact, clean: Float[Tensor, "subject d_model"], samples: int, seed: int
    ) -> Float[Tensor, "samples subject d_model"]:
        """Clean embeddings plus the draws."""
        std = self.std if self.std is not None else (self.multiple or 0.0) * subject_embedding_std(model)
        return _noised(clean, np.random.RandomState(seed).randn(samples, *clean.shape) * std, self.replace)


@dataclass(frozen=True)
class Uniform:
    """Add uniform noise between -bound and +bound to every entry.

    Attributes:
        multiple: the bound in units of the embeddings' own standard deviation, as for `Gaussian`.
        replace: put the noise in the embeddings' place instead of adding it.
    """

    multiple: float = 3.0
    replace: bool = False

    def __post_init__(self) -> None:
        _not_negative(self.multiple)

    def __str__(self) -> str:
        return f"uniform noise of {self.multiple:g} x std" + _instead(self.replace)

    def __call__(
        self, model: Model, fact: Fact, clean: Float[Tensor, "subject d_model"], samples: int, seed: int
    ) -> Float[Tensor, "samples subject d_model"]:
        """Clean embeddings plus the draws."""
        draws = np.random.RandomState(seed).uniform(-1, 1, (samples, *clean.shape))
        return _noised(clean, draws * self.multiple * subject_embedding_std(model), self.replace)


@dataclass(frozen=True)
class MultivariateGaussian:
    """Add noise distributed as embeddings are: with their mean and their covariance over the shipped facts' prompts.

    Attributes:
        multiple: of the deviations from the mean.
        replace: put the noise in the embeddings' place instead of adding it: then it looks like some other token.
    """

    multiple: float = 1.0
    replace: bool = False

    def __post_init__(self) -> None:
        _not_negative(self.multiple)

    def __str__(self) -> str:
        return f"multivariate Gaussian noise, {self.multiple:g} x" + _instead(self.replace)

    def __call__(
        self, model: Model, fact: Fact, clean: Float[Tensor, "subject d_model"], samples: int, seed: int
    ) -> Float[Tensor, "samples subject d_model"]:
        """Clean embeddings plus the draws."""
        rows = _prompt_embeddings(model)
        mean = rows.mean(0)
        # singular values of the centred rows give the root of their covariance without building it
        _, spread, axes = np.linalg.svd(rows - mean, full_matrices=False)
        draws = np.random.RandomState(seed).randn(samples, len(clean), len(spread))
        noise = (draws * spread / np.sqrt(len(rows) - 1)) @ axes
        return _noised(clean, mean + self.multiple * noise, self.replace)


@dataclass(frozen=True)
class SwapSubject:
    """Put another subject of as many tokens in the subject's place (symmetric token replacement).

    Stays on natural inputs, where noise does not (Zhang & Nanda 2024, https://arxiv.org/abs/2309.16042). There is
    nothing random in it: one sample.

    Attributes:
        subject: the other subject; None to take the first of the same relation that has as many tokens and another
            answer, among the fact's own neighbours, `among`, and the shipped facts.
        answer: its answer, where it is known.
        among: facts to look for it in.
    """

    subject: str | None = None
    answer: str | None = None
    among: tuple[Fact, ...] = ()

    def __str__(self) -> str:
        return f"swapped for {self.subject or 'another subject'}"

    def chosen(self, model: Model, fact: Fact) -> SwapSubject:
        """The same with a subject for this fact.

        Raises:
            SurgeryError: no fact of the relation has a subject of as many tokens and another answer.
        """
        if self.subject is not None:
            return self
        question, span = ask_fact(model.tokenizer, fact, fact.target)
        for subject, answer in self._candidates(fact):
            other, its_span = ask_fact(model.tokenizer, fact.replace(subject=subject), answer)
            same_answer = other.answer_ids[0] == question.answer_ids[0]
            if not same_answer and subject != fact.subject and len(its_span) == len(span):
                return SwapSubject(subject, answer)
        raise SurgeryError(
            f"no other subject of {fact.template!r} has {len(span)} tokens as {fact.subject!r} and another answer; "
            "name one with SwapSubject('...')"
        )

    def _candidates(self, fact: Fact) -> Iterator[tuple[str, str]]:
        before, _, after = fact.template.partition(SLOT)
        for neighbour in fact.neighbours:
            prompt = neighbour.prompt
            if prompt.startswith(before) and prompt.endswith(after) and len(prompt) > len(before) + len(after):
                yield prompt[len(before) : len(prompt) - len(after)], neighbour.target
        for other in (*self.among, *example_facts()):
            if other.template == fact.template:
                yield other.subject, other.target

    def __call__(
        self, model: Model, fact: Fact, clean: Float[Tensor, "subject d_model"], samples: int, seed: int
    ) -> Float[Tensor, "samples subject d_model"]:
        """The other subject's embeddings.

        Raises:
            SurgeryError: it has another number of tokens in this prompt.
        """
        subject = self.chosen(model, fact).subject or ""
        question, span = ask_fact(model.tokenizer, fact.replace(subject=subject), fact.target)
        if len(span) != len(clean):
            raise SurgeryError(
                f"{subject!r} has {len(span)} tokens and {fact.subject!r} has {len(clean)}; "
                "a swap needs a subject of as many tokens"
            )
        return embed(model, question, span)[None]


def corruption_named(text: str, facts: Sequence[Fact] = ()) -> Corruption:
    """A corruption by its name on the command line, such as `gaussian` or `uniform:2`; a swap looks among `facts`.

    Raises:
        SurgeryError: there is none of that name, or its size is no number.
    """
    name, colon, size = text.partition(":")
    sized = {"gaussian": Gaussian, "uniform": Uniform, "multivariate": MultivariateGaussian}
    if name == "swap":
        return SwapSubject(size or None, among=tuple(facts))
    try:
        return sized[name](multiple=float(size)) if colon else sized[name]()
    except (KeyError, ValueError):
        raise SurgeryError(
            f"there is no corruption {text!r}; write gaussian, gaussian:2, uniform, multivariate, swap or swap:Rome"
        ) from None


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


@torch.no_grad()
def _prompt_embeddings(model: Model) -> Float[np.ndarray, "tokens d_model"]:
    """Embeddings of all tokens of the shipped facts' prompts."""
    ids = [i for fact in example_facts() for i in encode(model.tokenizer, fact.prompt).ids]
    table = model.hf.get_input_embeddings()
    return table(torch.tensor(ids, device=model.device)).double().cpu().numpy()


def _noised(
    clean: Float[Tensor, "subject d_model"], noise: Float[np.ndarray, "samples subject d_model"], replace: bool
) -> Float[Tensor, "samples subject d_model"]:
    draws = torch.from_numpy(noise).to(clean)
    return draws if replace else clean + draws


def _instead(replace: bool) -> str:
    return " instead" if replace else ""


def _not_negative(*sizes: float | None) -> None:
    if any(size is not None and size < 0 for size in sizes):
        raise SurgeryError("noise cannot be negative; give 0 for none")
