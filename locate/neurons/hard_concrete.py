"""A learned sparse mask over all neurons: the few a text's answer can be told with.

Chang et al. 2024, "Hard Concrete" (https://arxiv.org/abs/2311.09060, section 4), with the gates of Louizos et al. 2018
(https://arxiv.org/abs/1712.01312). Neurons that keep the answer are sought, not such that destroy it:

1. Every neuron i has a gate with one parameter, log alpha_i, the same at every position. A draw of it:
   s_i = sigmoid((log u - log(1 - u) + log alpha_i) / beta), u uniform; z_i = clip(s_i (zeta - gamma) + gamma, 0, 1).
2. The model runs on prompt and answer with every activation times its z. The loss is the mean negative log probability
   of the tokens to keep, plus lambda R, where R is the expected share of gates that are not shut,
   P(z_i > 0) = sigmoid(log alpha_i - beta log(-gamma / zeta)), averaged over all neurons.
3. Adam takes `steps` steps, a new draw each, or stops when R falls below `stop`; weights stay frozen.
4. Score = sigmoid(log alpha_i), between 0 and 1.

gamma, zeta, beta, lambda and stop are those of the authors' code. Its gates begin half open; here they begin at 0.9,
where the model still tells the text, which finds more of what was planted in few steps (`locate.selftest`). Its loss
is over all tokens of a memorised text, `told="all"`; for a fact, whose prompt is given, the default is the answer's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from locate.neurons.activations import Change, changed_neurons
from locate.neurons.method import Scores
from locate.neurons.text import Told, check_told, telling_loss
from surgery.errors import SurgeryError
from surgery.fact import Fact
from surgery.hooks import frozen
from surgery.model import Model
from surgery.progress import bar
from surgery.tokens import ask

LOW, HIGH = -0.1, 1.1
"""gamma and zeta, the interval gates are stretched to before they are clipped."""


@dataclass(frozen=True, kw_only=True)
class HardConcrete:
    """Score neurons by how open a learned sparse mask that keeps the answer leaves them, 0 to 1.

    Attributes:
        told: the tokens to keep: the answer's, or all of prompt and answer as published.
        penalty: lambda, the weight of the expected share of open gates.
        learning_rate: of Adam.
        steps: most steps.
        stop: the share of open gates below which learning ends.
        initial: how open gates are at the start, 0 to 1.
        temperature: beta; lower makes draws closer to 0 or 1.
        seed: of the draws.

    Raises:
        SurgeryError: an option is out of range.
    """

    told: Told = "answer"
    penalty: float = 1000.0
    learning_rate: float = 0.1
    steps: int = 100
    stop: float = 0.1
    initial: float = 0.9
    temperature: float = 2 / 3
    seed: int = 0

    def __post_init__(self) -> None:
        check_told(self.told)
        if self.penalty < 0 or self.learning_rate <= 0 or self.temperature <= 0 or self.steps < 1:
            raise SurgeryError(
                f"penalty {self.penalty}, learning_rate {self.learning_rate}, temperature {self.temperature} and steps "
                f"{self.steps} are above 0"
            )
        if not 0 <= self.stop < 1 or not 0 < self.initial < 1:
            raise SurgeryError(
                f"stop {self.stop} and initial {self.initial} are shares of open gates, at least 0 and below 1"
            )

    def __str__(self) -> str:
        return f"hard concrete mask, {self.told}, {self.steps} steps"

    def __call__(self, model: Model, fact: Fact, *, progress: bool = True) -> Scores:
        """Scores between 0 and 1.

        Raises:
            SurgeryError: the prompt or its answer has no tokens.
        """
        question = ask(model.tokenizer, fact.prompt, fact.target)
        generator = torch.Generator().manual_seed(self.seed)
        start = (self.initial - LOW) / (HIGH - LOW)
        shape = len(model.anatomy.layers), model.anatomy.d_ff
        gates = torch.full(shape, math.log(start / (1 - start)), requires_grad=True)
        optimizer = torch.optim.Adam([gates], lr=self.learning_rate)
        with torch.enable_grad(), frozen(model.hf):
            for _ in bar(range(self.steps), "learning a mask", show=progress):
                open_share = self.open_probability(gates).mean()
                if float(open_share.detach()) < self.stop:
                    break
                noise = torch.rand(gates.shape, generator=generator).clamp(1e-4, 1 - 1e-4)
                mask = self.draw(gates, noise).to(model.device)
                with changed_neurons(model, _masked_by(mask)):
                    loss = telling_loss(model, question, self.told)[0] + self.penalty * open_share.to(model.device)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return Scores(gates.detach().double().sigmoid().numpy(), "openness of the learned gate")

    def draw(
        self, gates: Float[Tensor, "layers d_ff"], noise: Float[Tensor, "layers d_ff"]
    ) -> Float[Tensor, "layers d_ff"]:
        """Gates z from uniform noise (step 1)."""
        soft = torch.sigmoid((noise.log() - (1 - noise).log() + gates) / self.temperature)
        return (soft * (HIGH - LOW) + LOW).clamp(0, 1)

    def open_probability(self, gates: Float[Tensor, "layers d_ff"]) -> Float[Tensor, "layers d_ff"]:
        """Probability that a gate is not shut (step 2)."""
        return torch.sigmoid(gates - self.temperature * math.log(-LOW / HIGH))


def _masked_by(mask: Float[Tensor, "layers d_ff"]) -> Change:
    return lambda layer, given: given * mask[layer].to(given)
