"""What a base model answers, kept by the caller while many edits of it are judged.

Without one, each verification asks the base model anew; of fifty edits, half of the time goes there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from surgery.errors import SurgeryError
from surgery.fact import Fact
from surgery.fingerprint import fingerprint, stamp
from surgery.model import Model
from surgery.predict import Answer, generate, next_log_probs, rate
from surgery.verification.attack import Attack, Attempt, Attempts, tried
from surgery.verification.classic import LENGTH, Classic, score, told_on
from surgery.verification.drift import log_probs
from surgery.verification.probes import Measured, Probe, measure
from surgery.verification.speech import speak

Controls = Callable[[Model, Fact], Sequence[Fact]]
"""Gives a fact its controls, by the base model."""


class Baseline:
    """Measurements of one base model, made when first asked for.

    Args:
        model: the base model; whenever this is asked, it must be as it was then.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self._base = model.fingerprint
        self._stamp: tuple[tuple[int, int], ...] = ()
        self._measured: dict[Probe, Measured] = {}
        self._log_probs: dict[tuple[str, ...], list[Float[Tensor, "tokens vocab"]]] = {}
        self._rated: dict[tuple[str, str], Answer] = {}
        self._next: dict[str, Float[Tensor, " vocab"]] = {}
        self._texts: dict[tuple[str, int, str], str] = {}
        self._controls: dict[tuple[Controls, Fact], tuple[Fact, ...]] = {}
        self._attempts: Attempts = {}
        self._scores: dict[tuple[Fact, ...], Classic] = {}

    def measure(self, probes: Sequence[Probe]) -> list[Measured]:
        """What the base model makes of some probes.

        Raises:
            SurgeryError: the model's weights are not those of the beginning.
        """
        self._check()
        asked = [probe for probe in dict.fromkeys(probes) if probe not in self._measured]
        self._measured.update(zip(asked, measure(self.model, asked, self.rate), strict=True))
        return [self._measured[probe] for probe in probes]

    def rate(self, asked: Sequence[tuple[str, str]]) -> list[Answer]:
        """How it rates some answers to some prompts.

        Raises:
            SurgeryError: something is asked for the first time, and the weights are not those of the beginning.
        """
        if new := [pair for pair in dict.fromkeys(asked) if pair not in self._rated]:
            self._check()
            new.sort(key=lambda pair: len(pair[0]))
            self._rated.update(zip(new, rate(self.model, new), strict=True))
        return [self._rated[pair] for pair in asked]

    def next_log_probs(self, prompts: Sequence[str]) -> Float[Tensor, "prompts vocab"]:
        """Its log-probabilities of the token after each prompt.

        Raises:
            SurgeryError: something is asked for the first time, and the weights are not those of the beginning.
        """
        if new := [text for text in dict.fromkeys(prompts) if text not in self._next]:
            self._check()
            self._next.update(zip(new, next_log_probs(self.model, new), strict=True))
        return torch.stack([self._next[text] for text in prompts])

    def continued(self, prompts: Sequence[str], most: int) -> list[str]:
        """How it goes on from some prompts, greedily, for at most so many tokens.

        Raises:
            SurgeryError: something is asked for the first time, and the weights are not those of the beginning.
        """
        return self._said(prompts, most, generate)

    def speak(self, prompts: Sequence[str], most: int) -> list[str]:
        """What it says after some prompts up to a natural stop (`speech.speak`).

        Raises:
            SurgeryError: something is asked for the first time, and the weights are not those of the beginning.
        """
        return self._said(prompts, most, speak)

    def told_on(self, prompts: Sequence[str], length: int = LENGTH) -> list[str]:
        """Some prompts with its greedy continuations, so many tokens in all (`classic.told_on`).

        Raises:
            SurgeryError: something is asked for the first time, and the weights are not those of the beginning.
        """
        return self._said(prompts, length, _told_on)

    def score(self, facts: Sequence[Fact]) -> Classic:
        """CounterFact's scores of some facts on it.

        Raises:
            SurgeryError: these are asked for the first time, and the weights are not those of the beginning; or a fact
                has no new answer.
        """
        key = tuple(facts)
        if key not in self._scores:
            self._check()
            self._scores[key] = score(self.model, facts)
        return self._scores[key]

    def _said(
        self, prompts: Sequence[str], most: int, say: Callable[[Model, Sequence[str], int], list[str]]
    ) -> list[str]:
        if new := [text for text in dict.fromkeys(prompts) if (text, most, say.__name__) not in self._texts]:
            self._check()
            told = zip(new, say(self.model, new, most), strict=True)
            self._texts.update({(text, most, say.__name__): said for text, said in told})
        return [self._texts[text, most, say.__name__] for text in prompts]

    def log_probs(self, texts: Sequence[str]) -> list[Float[Tensor, "tokens vocab"]]:
        """Its next-token log-probabilities on some texts, as `drift.log_probs` gives them.

        Raises:
            SurgeryError: the model's weights are not those of the beginning.
        """
        self._check()
        key = tuple(texts)
        if key not in self._log_probs:
            self._log_probs[key] = log_probs(self.model, texts)
        return self._log_probs[key]

    def controls(self, controls: Controls, fact: Fact) -> tuple[Fact, ...]:
        """The controls of a fact, which the base model may have a say in.

        Raises:
            SurgeryError: the model's weights are not those of the beginning.
        """
        self._check()
        key = controls, fact
        if key not in self._controls:
            self._controls[key] = tuple(controls(self.model, fact))
        return self._controls[key]

    def attempt(self, attack: Attack, facts: tuple[Fact, ...]) -> Attempt:
        """What an attack brings up on the base model.

        Raises:
            SurgeryError: the model's weights are not those of the beginning.
        """
        self._check()
        return tried(attack, facts, self.model, self._attempts)

    def check(self, model: Model) -> None:
        """Whether this is a baseline of that model.

        Raises:
            SurgeryError: it is another one's.
        """
        if model is not self.model:
            raise SurgeryError("the baseline was measured on another model; make one with Baseline(model)")

    def check_all(self) -> None:
        """Read every weight, for a change that PyTorch did not see, as by `weight.data`, is none to `_check`.

        Raises:
            SurgeryError: the model's weights are not those of the beginning.
        """
        if fingerprint(self.model.hf) != self._base:
            raise SurgeryError(
                "the model's weights changed while it was attacked and were not put back; load it again, and have "
                "every attack of your own undo what it does (surgery.exchange.exchanged)"
            )

    def _check(self) -> None:
        # hashing takes a while: only where a weight was written to, or has other memory, since the last time
        now = tuple(map(stamp, self.model.hf.parameters()))
        if now == self._stamp:
            return
        if self.model.fingerprint != self._base:
            raise SurgeryError(
                "the model's weights changed since its baseline was made; undo the edit, or make a new Baseline(model)"
            )
        self._stamp = now


def _told_on(model: Model, prompts: Sequence[str], length: int) -> list[str]:
    return told_on(model, prompts, length=length)
