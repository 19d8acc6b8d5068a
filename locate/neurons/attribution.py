"""The neurons of a fact: ranked by a method, named by the words they promote, judged by zeroing them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float

from locate.neurons.ablation import Ablation, ablate
from locate.neurons.activations import activations
from locate.neurons.gradient import GradientActivation
from locate.neurons.method import Method
from surgery.errors import SurgeryError
from surgery.fact import Fact
from surgery.linear_map import oriented
from surgery.model import Model
from surgery.site import Neuron
from surgery.tokens import ask

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Words:
    """What a neuron says, read off its value vector.

    Attributes:
        activation: of the neuron at the prompt's last position.
        promotes: tokens whose logits its value vector, with the activation's sign, raises most; most first.
        suppresses: tokens whose logits it lowers most; most first.
    """

    activation: float
    promotes: tuple[str, ...]
    suppresses: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Attribution:
    """Which neurons a fact's answer comes from.

    Attributes:
        neurons: the chosen neurons with their scores, best first.
        scores: of every neuron [layers, d_ff].
        unit: what a score is.
        rule: how the neurons were chosen.
        promotes: what each chosen neuron says, in the same order.
        gap: completeness gap, in the scores' unit; None where the method promises no sum.
        ablation: what zeroing the chosen neurons does. This decides, not the scores.
        method: its configuration.
        fact: the fact.
        model: name of the model.
        seconds: wall-clock time of the method, without words and ablation.
    """

    neurons: tuple[tuple[Neuron, float], ...]
    scores: Float[np.ndarray, "layers d_ff"]
    unit: str
    rule: str
    promotes: tuple[Words, ...]
    gap: float | None
    ablation: Ablation
    method: str
    fact: Fact
    model: str
    seconds: float

    def __post_init__(self) -> None:
        if len(self.neurons) != len(self.promotes) or len(self.neurons) != self.ablation.neurons:
            raise ValueError(f"{len(self.neurons)} neurons, words for {len(self.promotes)}, not as many ablated")
        for neuron, score in self.neurons:
            if score != self.scores[neuron.layer, neuron.index]:
                raise ValueError(f"the score of {neuron} is not the one in the table")

    def as_record(self) -> dict[str, Any]:
        """Everything but the table of all scores, as JSON values."""
        return {
            "fact": self.fact.as_record(),
            "model": self.model,
            "method": self.method,
            "unit": self.unit,
            "rule": self.rule,
            "neurons": [
                {
                    "layer": neuron.layer,
                    "index": neuron.index,
                    "score": score,
                    "activation": words.activation,
                    "promotes": list(words.promotes),
                    "suppresses": list(words.suppresses),
                }
                for (neuron, score), words in zip(self.neurons, self.promotes, strict=True)
            ],
            "gap": self.gap,
            "ablation": self.ablation.as_record(),
            "seconds": self.seconds,
        }

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the neurons as bars; see `locate.figures.neurons`."""
        from locate.figures.neurons import neuron_bars

        return neuron_bars(self, ax)


def attribute_neurons(
    model: Model,
    fact: Fact,
    *,
    method: Method | None = None,
    top: int = 10,
    words: int = 5,
    random_sets: int = 10,
    seed: int = 0,
    progress: bool = True,
) -> Attribution:
    """Find the neurons a fact's answer comes from, and zero them to see whether that is so.

    Args:
        model: the model; it is not changed.
        fact: the fact; its `target` is the answer, its neighbours (or else shipped facts of the same template) are
            asked beside it. Only `IntegratedGradients` reads its paraphrases.
        method: a configured method, such as `LogProbIncrease()`; `GradientActivation()` by default.
        top: how many neurons to choose, where the method does not choose itself.
        words: how many tokens to name a neuron.
        random_sets: random sets of neurons to compare with; the standard error falls with their root.
        seed: of the random sets.
        progress: show a bar where somebody is looking.

    Raises:
        SurgeryError: an option is out of range, or prompt and subject cannot be tokenised.
        UnsupportedModel: the method cannot read this model.
    """
    if top < 1 or words < 1 or random_sets < 1:
        raise SurgeryError(f"top, words and random_sets are at least 1, not {top}, {words} and {random_sets}")
    method = GradientActivation() if method is None else method
    started = time.perf_counter()
    scores = method(model, fact, progress=progress)
    seconds = time.perf_counter() - started
    chosen = scores.ranked(top) if scores.chosen is None else scores.chosen
    return Attribution(
        neurons=tuple((one, float(scores.values[one.layer, one.index])) for one in chosen),
        scores=scores.values,
        unit=scores.unit,
        rule=f"{len(chosen)} highest scores" if scores.chosen is None else scores.rule,
        promotes=name_neurons(model, fact, chosen, words=words),
        gap=scores.gap,
        ablation=ablate(model, fact, chosen, sets=random_sets, seed=seed),
        method=str(method),
        fact=fact,
        model=model.source,
        seconds=seconds,
    )


@torch.no_grad()
def name_neurons(model: Model, fact: Fact, neurons: tuple[Neuron, ...], *, words: int = 5) -> tuple[Words, ...]:
    """The words each neuron promotes and suppresses where a fact is asked.

    A value vector, times the sign of its activation at the prompt's last position, goes through final norm and head by
    itself (Geva et al. 2022, https://arxiv.org/abs/2203.14680); what these give for no vector at all, which is a norm's
    or a head's bias, is taken off.
    """
    if not neurons:
        return ()
    question = ask(model.tokenizer, fact.prompt, fact.target)
    own = activations(model, question, [question.answer_start - 1])[:, 0]
    named = []
    for neuron in neurons:
        matrix = oriented(model.hf.get_submodule(model.anatomy.names("mlp")[neuron.layer]))
        activation = float(own[neuron.layer, neuron.index])
        value = matrix[:, neuron.index] * (-1.0 if activation < 0 else 1.0)
        logits = model.anatomy.unembed(torch.stack([value, torch.zeros_like(value)])).float()
        change = logits[0] - logits[1]
        named.append(Words(activation, _tokens(model, change, words), _tokens(model, -change, words)))
    return tuple(named)


def _tokens(model: Model, logits: Float[torch.Tensor, " vocab"], count: int) -> tuple[str, ...]:
    """The tokens of the highest logits; entries of a padded vocabulary that no token has are passed over."""
    best = logits[: len(model.tokenizer)].topk(count).indices.tolist()
    return tuple(str(model.tokenizer.decode([int(i)])) for i in best)
