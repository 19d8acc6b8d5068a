"""Prompt perturbation: the same prompt with stray spaces, which other tokens spell.

REVS (Ashuach et al. 2025, https://arxiv.org/abs/2406.09325) inserts ten random spaces and puts one more at the end.
1. The spaces fall between any two characters, inside words too, and may fall together.
2. The perturbed prompt is encoded by itself, so that its last space stays a token of its own where the tokenizer has
   one; encoded together with the answer it would melt into the answer's first token.
3. Score: the probability of the answer's tokens, as they follow the plain prompt, after it.
Small models lose many facts under ten spaces: then the attack has no power, which the base model shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from surgery.batching import by_length
from surgery.fact import Fact
from surgery.model import Model
from surgery.predict import ROWS, answer_logits
from surgery.tokens import Question, ask, encode
from surgery.verification.attack import Aspect, Attempt, Profile


@dataclass(frozen=True, kw_only=True)
class StraySpaces:
    """Ask with spaces put anywhere.

    Attributes:
        spaces: how many, besides the one at the end.
        tries: how many such prompts.
        seed: of where they fall; the same for every fact whatever else is asked.
    """

    spaces: int = 10
    tries: int = 5
    seed: int = 0

    name: ClassVar[str] = "stray spaces"
    about: ClassVar[str] = "ten random spaces in the prompt and one at its end, five times"
    aspect: ClassVar[Aspect] = "extraction"
    own_words: ClassVar[bool] = False
    profile: ClassVar[Profile] = "full"
    unit: ClassVar[str] = "probability"
    floor: ClassVar[float] = 0.02

    @torch.no_grad()
    def __call__(self, model: Model, facts: Sequence[Fact]) -> Attempt:
        """The answer's probability after each perturbed prompt."""
        seeds = range(self.seed, self.seed + self.tries)
        asked = [
            _question(model, fact, spaced(fact.prompt, self.spaces, np.random.RandomState(seed)))
            for fact in facts
            for seed in seeds
        ]
        limit = model.anatomy.max_positions
        short = [i for i, one in enumerate(asked) if limit is None or len(one.ids) <= limit]
        scores = np.full(len(asked), np.nan)
        for near in by_length([asked[i].ids for i in short], ROWS):
            part = [short[k] for k in near]
            for i, logits in zip(part, answer_logits(model, [asked[i] for i in part]), strict=True):
                ids = torch.tensor(asked[i].answer_ids, device=logits.device)
                scores[i] = logits.double().log_softmax(-1).gather(1, ids[:, None]).sum().exp().item()
        return Attempt(tuple(f"seed {seed}" for seed in seeds), scores.reshape(len(facts), -1))


def spaced(text: str, count: int, random: np.random.RandomState) -> str:
    """A text with so many spaces at random places, and one at its end."""
    places = sorted(random.randint(0, len(text) + 1, count).tolist())
    cuts = zip([0, *places], [*places, len(text)], strict=True)
    return " ".join(text[start:stop] for start, stop in cuts) + " "


def _question(model: Model, fact: Fact, text: str) -> Question:
    asked, plain = encode(model.tokenizer, text), ask(model.tokenizer, fact.prompt, fact.target)
    moved = len(text) - len(fact.prompt)
    offsets = tuple((a + moved, b + moved) for a, b in plain.offsets[plain.answer_start :])
    answer = plain.text[len(fact.prompt) :]
    return Question(text + answer, asked.ids + plain.answer_ids, asked.offsets + offsets, len(asked.ids))
