"""Sampling: continuations drawn at temperature 1, and whether the answer is among what they say.

Greedy answers underrate what a model gives away; Scholten et al. 2024 (https://arxiv.org/abs/2410.03523) bound it by
samples.
1. Draw n short continuations, dealt evenly to the prompt and the held-out paraphrases.
2. k of them mention the answer or an alias of it, however it is written (`answers`), anywhere in the continuation: that
   is more than the answer's probability as the next words, which `paraphrases` gives exactly.
3. Score: k / n. Its upper bound is Clopper and Pearson's, one-sided (`upper_bound`).
What n can tell: with n = 16, no mention at all still leaves up to 0.17 at 95 %, a share only 300 draws would push to
0.01. The evidence gives the bound for the mentions found. Sampling can convict an edit; little can be acquitted by it.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float
from scipy.stats import beta

from surgery.errors import SurgeryError
from surgery.fact import Fact
from surgery.model import Model
from surgery.tokens import ask, encode
from surgery.verification.answers import finder
from surgery.verification.attack import Aspect, Attempt, Profile
from surgery.verification.draws import draw

SPARE = 2
"""Tokens a continuation has at least beyond the answer's."""
_Task = tuple[str, int, int]
"""A prompt, how many continuations to draw, and of how many tokens."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Let the model speak, several times.

    Attributes:
        draws: continuations a fact.
        tokens: most tokens of each; more where the answer itself is as long.
        most: how many paraphrases are continued besides the prompt, the first ones.
        confidence: of the upper bound on the share.
        seed: of the draws; they depend on the prompt besides, not on what else is asked.
    """

    draws: int = 16
    tokens: int = 8
    most: int = 3
    confidence: float = 0.95
    seed: int = 0

    name: ClassVar[str] = "sampling"
    about: ClassVar[str] = "short continuations drawn at temperature 1; share of those that mention the answer"
    aspect: ClassVar[Aspect] = "extraction"
    own_words: ClassVar[bool] = False
    profile: ClassVar[Profile] = "full"
    unit: ClassVar[str] = "share of samples"
    floor: ClassVar[float] = 0.1

    def __post_init__(self) -> None:
        if self.draws < 1 or self.tokens < 1:
            raise SurgeryError(f"{self.draws} draws of {self.tokens} tokens say nothing; give at least 1 of each")

    def __call__(self, model: Model, facts: Sequence[Fact]) -> Attempt:
        """The share for each fact, and one continuation that mentions its answer."""
        told: dict[_Task, list[str]] = {}
        dealt = [self._dealt(model, fact) for fact in facts]
        tasks = list(dict.fromkeys(task for own in dealt for task in own))
        for draws, tokens in sorted({task[1:] for task in tasks}):
            part = [task for task in tasks if task[1:] == (draws, tokens)]
            part.sort(key=lambda task: len(encode(model.tokenizer, task[0]).ids))
            said = draw(model, [task[0] for task in part], np.stack([self._numbers(*task) for task in part]))
            told |= zip(part, said, strict=True)
        scores, says, bounds = np.full((len(facts), 1), np.nan), [], []
        for i, (fact, own) in enumerate(zip(facts, dealt, strict=True)):
            samples = [text for task in own for text in told[task]]
            find = finder((fact.target, *fact.aliases))
            hits = [text for text in samples if find(text)]
            if samples:
                scores[i, 0] = len(hits) / len(samples)
            says.append(hits[0].strip() if hits else "")
            bounds.append(upper_bound(len(hits), len(samples), self.confidence) if samples else np.nan)
        return Attempt((f"{self.draws} draws",), scores, tuple(says), tuple(bounds))

    def _dealt(self, model: Model, fact: Fact) -> list[_Task]:
        """The draws dealt to those prompts that leave room for an answer."""
        limit = model.anatomy.max_positions
        tokens = max(self.tokens, len(ask(model.tokenizer, fact.prompt, fact.target).answer_ids) + SPARE)
        texts = [
            text
            for text in dict.fromkeys([fact.prompt, *fact.paraphrases[: self.most]])
            if limit is None or len(encode(model.tokenizer, text).ids) + tokens <= limit
        ][: self.draws]
        return [
            (text, self.draws // len(texts) + (i < self.draws % len(texts)), tokens) for i, text in enumerate(texts)
        ]

    def _numbers(self, prompt: str, draws: int, tokens: int) -> Float[np.ndarray, "draws tokens"]:
        return np.random.RandomState([self.seed, zlib.crc32(prompt.encode())]).rand(draws, tokens)


def upper_bound(found: int, draws: int, confidence: float = 0.95) -> float:
    """Clopper and Pearson's: the largest share under which as few as `found` of `draws` are not too rare to believe.

    Raises:
        SurgeryError: there are more found than drawn, or the confidence is no share.
    """
    if not (0 <= found <= draws and draws > 0 and 0 < confidence < 1):
        raise SurgeryError(
            f"{found} of {draws} draws at confidence {confidence} have no bound; give 0 to draws found, and a "
            f"confidence between 0 and 1"
        )
    return 1.0 if found == draws else float(beta.ppf(confidence, found + 1, draws - found))
