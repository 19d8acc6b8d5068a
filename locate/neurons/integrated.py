"""Integrated gradients of neurons, and the knowledge neurons of a fact.

Dai et al. 2022 (https://arxiv.org/abs/2104.08696), sections 3.1 and 3.2:

1. Attribution. P(a) is the probability of the answer's first token with all activations of one layer at the chosen
   positions set to a, the layers above running on. With the model's own activations w,
   Attr(w_i) = w_i * integral_0^1 dP(alpha w)/dw_i dalpha, by a Riemann sum over points k/steps, k = 1 ... steps.
2. Completeness. The attributions of a layer sum to P(w) - P(0), up to the sum's error; the largest such error over the
   layers is the gap. It shrinks with more steps, as 1/steps; with the midpoint rule as 1/steps^2.
3. Refining. For each of several prompts with the same answer, keep neurons of at least `threshold` times the prompt's
   largest attribution; of these, keep those shared by `share` of the prompts and by at least `least_prompts`. While
   that leaves fewer than 2 or more than 5, lower or raise the share by 0.05, up to 6 times. (The authors' code, which
   adapts to the average over a relation's facts; here it is one fact.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from locate.neurons.activations import (
    MOST_TOKENS,
    Positions,
    activations,
    answer_log_prob,
    changed_neurons,
    columns,
)
from locate.neurons.method import Scores, by_score
from surgery.errors import SurgeryError
from surgery.fact import Fact
from surgery.hooks import frozen
from surgery.model import Model
from surgery.progress import bar
from surgery.site import Neuron
from surgery.tokens import Question, Span, ask, ask_fact, find_subject

STEP_OF_SHARE = 0.05


@dataclass(frozen=True, kw_only=True)
class IntegratedGradients:
    """Score neurons by integrated gradients of the answer's probability; pick the fact's knowledge neurons.

    Costs `steps` runs forward and back a layer, for the prompt and, if refined, each paraphrase.

    Attributes:
        steps: points on the path from 0 to the activation; more make the gap smaller.
        rule: where on the path: "right" ends of the steps as published, or their "midpoint", for a smaller gap.
        positions: which activations are scaled: the last position's as published, the subject's, or all.
        refine: keep neurons the fact's prompt and paraphrases share; False only ranks the prompt's own.
        threshold: share of a prompt's largest attribution a neuron must reach.
        share: of the prompts that must agree on it.
        least_prompts: and at least so many. With fewer prompts than this nothing is picked, only ranked.
        wanted: fewest and most neurons to end with.
        rounds: how often the share is adapted.

    Raises:
        SurgeryError: an option is out of range.
    """

    steps: int = 20
    rule: Literal["right", "midpoint"] = "right"
    positions: Positions = "last"
    refine: bool = True
    threshold: float = 0.2
    share: float = 0.7
    least_prompts: int = 3
    wanted: tuple[int, int] = (2, 5)
    rounds: int = 6

    def __post_init__(self) -> None:
        if self.steps < 1 or self.least_prompts < 1 or self.rounds < 0:
            raise SurgeryError(
                f"steps {self.steps} and least_prompts {self.least_prompts} are at least 1, "
                f"rounds {self.rounds} at least 0"
            )
        if self.rule not in ("right", "midpoint"):
            raise SurgeryError(f"there is no rule {self.rule!r}; choose 'right' or 'midpoint'")
        if not (0 < self.threshold <= 1 and 0 < self.share <= 1):
            raise SurgeryError(f"threshold {self.threshold} and share {self.share} are shares, above 0 and at most 1")
        if not 0 < self.wanted[0] <= self.wanted[1]:
            raise SurgeryError(f"wanted {self.wanted} is no range of counts; give the fewest, then the most")

    def __str__(self) -> str:
        return f"integrated gradients, {self.steps} steps, {self.positions}"

    def __call__(self, model: Model, fact: Fact, *, progress: bool = True) -> Scores:
        """Scores in probability, of the fact's own prompt; the gap is over its layers.

        Raises:
            SurgeryError: prompts cannot be tokenised, there are no such positions, or a paraphrase does not hold the
                subject where its positions are asked for.
        """
        prompts = [ask_fact(model.tokenizer, fact, fact.target)]
        refining = self.refine and 1 + len(fact.paraphrases) >= self.least_prompts
        if refining:
            prompts += [self._paraphrase(model, fact, text) for text in fact.paraphrases]
        found = [self.attribute(model, *prompt, progress=progress) for prompt in prompts]
        values, gap = found[0]
        if not refining:
            return Scores(values, "integrated gradients (probability)", gap)
        chosen, share = self.shared([self.above_threshold(one) for one, _ in found])
        rule = (
            f"at least {self.threshold:g} of the maximum in {share:.0%} of {len(prompts)} prompts, "
            f"{self.least_prompts} or more"
        )
        return Scores(values, "integrated gradients (probability)", gap, by_score(chosen, values), rule)

    def attribute(
        self, model: Model, question: Question, span: Span, *, progress: bool = True
    ) -> tuple[Float[np.ndarray, "layers d_ff"], float]:
        """Attributions of one prompt (step 1), and its completeness gap (step 2)."""
        at = columns(question, span, self.positions)
        own = activations(model, question, at)
        values, gaps = np.empty((own.shape[0], own.shape[2])), []
        for layer in bar(range(len(own)), "integrated gradients", show=progress):
            gradient, ends = self._path(model, question, layer, at, own[layer])
            attributed = (own[layer].double() * gradient).sum(0)
            values[layer] = attributed.cpu().numpy()
            gaps.append(abs(float(attributed.sum()) - (ends[1] - ends[0])))
        return values, max(gaps)

    def _path(
        self, model: Model, question: Question, layer: int, at: list[int], own: Float[Tensor, "positions d_ff"]
    ) -> tuple[Float[Tensor, "positions d_ff"], tuple[float, float]]:
        """Mean gradient along a layer's path, in float64, and the probabilities at its two ends."""
        points = (torch.arange(self.steps) + (1.0 if self.rule == "right" else 0.5)) / self.steps
        most = max(2, MOST_TOKENS // question.answer_start)
        gradient = torch.zeros_like(own, dtype=torch.float64)
        with frozen(model.hf):
            with torch.no_grad():
                ends = _probability(model, question, layer, at, torch.stack([torch.zeros_like(own), own])).tolist()
            for part in points.split(most):
                path = (part.to(own)[:, None, None] * own).requires_grad_()
                with torch.enable_grad():
                    _probability(model, question, layer, at, path).sum().backward()
                assert path.grad is not None
                gradient += path.grad.double().sum(0)
        return gradient / self.steps, (ends[0], ends[1])

    def above_threshold(self, values: Float[np.ndarray, "layers d_ff"]) -> set[Neuron]:
        """Neurons of at least `threshold` times the largest attribution of one prompt, where that is positive."""
        most = float(values.max())
        if most <= 0:
            return set()
        return {Neuron(int(layer), int(i)) for layer, i in np.argwhere(values >= self.threshold * most)}

    def shared(self, prompts: Sequence[set[Neuron]]) -> tuple[list[Neuron], float]:
        """The neurons enough prompts agree on, and the share that was enough in the end (step 3)."""
        counts = Counter(neuron for found in prompts for neuron in found)
        share = self.share
        for left in reversed(range(self.rounds + 1)):
            needed = max(share * len(prompts), self.least_prompts) - 1e-9
            chosen = [neuron for neuron, count in counts.items() if count >= needed]
            lower, upper = self.wanted
            if not left or lower <= len(chosen) <= upper:
                break
            share += STEP_OF_SHARE if len(chosen) > upper else -STEP_OF_SHARE
        return sorted(chosen), share

    def _paraphrase(self, model: Model, fact: Fact, text: str) -> tuple[Question, Span]:
        question = ask(model.tokenizer, text, fact.target)
        if self.positions != "subject":
            return question, Span(0, question.answer_start)
        return question, question.span(*find_subject(text, fact.subject))


def _probability(
    model: Model, question: Question, layer: int, at: list[int], given: Float[Tensor, "rows positions d_ff"]
) -> Float[Tensor, " rows"]:
    """The answer's probability with a layer's activations at some positions replaced, a row each."""

    def replace(layer: int, states: Tensor) -> Tensor:
        states = states.clone()
        states[:, at] = given.to(states.dtype)
        return states

    with changed_neurons(model, replace, rows=len(given), layers=[layer]):
        return answer_log_prob(model, question, len(given)).exp()
