"""What the edited model should say: objectives for the value, as losses over log-probabilities.

An objective is asked once a fact for the text the model is led through (the answer to install, or the one to forget)
and for a loss. The loss sees log-probabilities [contexts, answer, vocab] at the positions that predict that text, and
the ids of the text [contexts, answer]. `met` tells by how the bare prompt is answered whether it worked.

- Replace: mean negative log-likelihood of the new answer (Meng et al. 2022, https://arxiv.org/abs/2202.05262, eq. 4).
- Suppress: -w log(1 - p(old answer)). Removes it, but says nothing of what comes instead: often nonsense.
- MaximumEntropy: the next token is anything at all (Patil et al. 2024, https://arxiv.org/abs/2309.17410, take it
  over several layers: `layers`, read by the logit lens; on the output alone by default).
- Refuse: a text that says that one cannot say, by the loss of Replace.
- Neutral: what the model says of a subject it knows nothing about. Its own next-token distribution for generic
  subjects ("It", "This") in the same template, averaged, with the old answer taken out, is the target of a KL
  divergence; a hinge holds the old answer below a floor. The subject's prompts then read as language. Within a
  tolerance of the target nothing more is asked: what is gained there costs other subjects more than it is worth.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from surgery.errors import SurgeryError, check_choice
from surgery.fact import SLOT, Fact
from surgery.model import Model
from surgery.predict import Answer, answer_logits
from surgery.site import Site
from surgery.tokens import ask
from surgery.verification.verdicts import Thresholds

Loss = Callable[[Float[Tensor, "contexts answer vocab"], Int[Tensor, "contexts answer"]], Float[Tensor, ""]]


@runtime_checkable
class Objective(Protocol):
    """What the model should say of a fact."""

    name: ClassVar[str]
    claim: ClassVar[Literal["removed", "rewritten"]]

    def continuation(self, fact: Fact) -> str:
        """The text the prompt is continued with."""
        ...

    def loss(self, model: Model, fact: Fact) -> Loss:
        """The loss of one fact; the model may be asked what it says now."""
        ...

    def met(self, answer: Answer) -> bool:
        """Whether a model that rates the continuation so after the bare prompt says what it should."""
        ...


class _Saying:
    """What objectives share that want a text said."""

    def loss(self, model: Model, fact: Fact) -> Loss:
        """Mean over contexts and tokens."""
        return lambda log_probs, ids: -_of_answer(log_probs, ids).mean() / ids.shape[1]

    def met(self, answer: Answer) -> bool:
        """Whether it is what the model says greedily."""
        return answer.rank == 1


class _Silent:
    """What objectives share that want the old answer gone."""

    def continuation(self, fact: Fact) -> str:
        """The old answer."""
        return fact.target

    def met(self, answer: Answer) -> bool:
        """Whether the old answer is as unlikely as a verdict asks."""
        return answer.probability <= Thresholds().removed_probability


@dataclass(frozen=True, kw_only=True)
class Replace(_Saying):
    """Say the fact's `new_target`."""

    name: ClassVar[str] = "replace"
    claim: ClassVar[Literal["removed", "rewritten"]] = "rewritten"

    def continuation(self, fact: Fact) -> str:
        """The new answer.

        Raises:
            SurgeryError: the fact has none.
        """
        if fact.new_target is None:
            raise SurgeryError(
                f"{fact.label!r} has no new_target to replace {fact.target!r} with; give one or remove it"
            )
        return fact.new_target


@dataclass(frozen=True, kw_only=True)
class Refuse(_Saying):
    """Say that one cannot say: mean negative log-likelihood of a refusal.

    Attributes:
        text: what follows the prompt, whatever was asked.
    """

    name: ClassVar[str] = "refusal"
    claim: ClassVar[Literal["removed", "rewritten"]] = "removed"
    text: str = "... I cannot say."

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise SurgeryError("the text of a refusal is empty; write what the model should say, such as 'unknown'")

    def continuation(self, fact: Fact) -> str:
        """The refusal, after a fact that is there to be removed."""
        return self.text


@dataclass(frozen=True, kw_only=True)
class Suppress(_Silent):
    """Do not say the old answer, whatever else.

    Attributes:
        layers: besides the output, the layers whose states, read as the output is, should not say it either.
        weight: w. A search ends once its loss is small, 0.02 or 0.05; times 20, that is p of 0.001 or 0.0025. With 1
            it would end where an answer still counts as known.
    """

    name: ClassVar[str] = "suppress"
    claim: ClassVar[Literal["removed", "rewritten"]] = "removed"
    layers: tuple[int, ...] = ()
    weight: float = 20.0

    def __post_init__(self) -> None:
        if self.weight <= 0:
            raise SurgeryError(f"the weight of suppression is above 0, not {self.weight}")

    def loss(self, model: Model, fact: Fact) -> Loss:
        """Mean over contexts."""
        return lambda log_probs, ids: -self.weight * _log_not(_of_answer(log_probs, ids)).mean()


@dataclass(frozen=True, kw_only=True)
class MaximumEntropy(_Silent):
    """Say anything: log(vocab) minus the entropy of the next token.

    Attributes:
        layers: besides the output, the layers whose states, read as the output is, should say anything too.
    """

    name: ClassVar[str] = "maximum-entropy"
    claim: ClassVar[Literal["removed", "rewritten"]] = "removed"
    layers: tuple[int, ...] = ()

    def loss(self, model: Model, fact: Fact) -> Loss:
        """Mean over contexts; 0 where every token is equally likely."""

        def loss(log_probs: Tensor, ids: Tensor) -> Tensor:
            first = log_probs[:, 0]
            return math.log(first.shape[-1]) + (first.exp() * first).sum(-1).mean()

        return loss


@dataclass(frozen=True, kw_only=True)
class Neutral(_Silent):
    """Say what one would say of a subject one does not know.

    Attributes:
        generic: subjects that say nothing, put into the fact's template.
        floor: the old answer's probability at which the hinge lets go.
        weight: of the hinge, per nat above the floor.
        tolerance: divergence from the target that is near enough, in nats.
    """

    name: ClassVar[str] = "neutral"
    claim: ClassVar[Literal["removed", "rewritten"]] = "removed"
    generic: tuple[str, ...] = ("It", "This", "This one", "That", "The other one", "Something", "Someone", "The thing")
    floor: float = 1e-4
    weight: float = 1.0
    tolerance: float = 1.0

    def __post_init__(self) -> None:
        if not self.generic:
            raise SurgeryError("a neutral answer needs at least one generic subject, such as 'It'")
        if not 0 < self.floor < 1 or self.weight <= 0 or self.tolerance < 0:
            raise SurgeryError(
                "a neutral answer's floor is a probability above 0 and below 1, its weight above 0 and its tolerance "
                f"0 or more, not {self.floor}, {self.weight} and {self.tolerance}"
            )

    def loss(self, model: Model, fact: Fact) -> Loss:
        """Mean over contexts of divergence and hinge."""
        wanted = self.distribution(model, fact)
        log_wanted = wanted.clamp_min(1e-12).log()

        def loss(log_probs: Tensor, ids: Tensor) -> Tensor:
            divergence = (wanted * (log_wanted - log_probs[:, 0])).sum(-1)
            above = torch.relu(_of_answer(log_probs, ids) - math.log(self.floor))
            return (torch.relu(divergence - self.tolerance) + self.weight * above).mean()

        return loss

    @torch.no_grad()
    def distribution(self, model: Model, fact: Fact) -> Float[Tensor, " vocab"]:
        """The next token the model expects of a generic subject, given that it is not the old answer.

        Raises:
            SurgeryError: the fact has no subject to put a generic one in the place of.
        """
        if not fact.subject:
            raise SurgeryError(
                f"{fact.label!r} has no subject, so nothing is known of its like; remove it with another objective, "
                "such as suppress or maximum-entropy"
            )
        prompts = [fact.template.replace(SLOT, subject) for subject in self.generic]
        questions = [ask(model.tokenizer, prompt, fact.target) for prompt in prompts]
        total = torch.zeros(model.anatomy.vocab, device=model.device)
        for question, logits in zip(questions, answer_logits(model, questions), strict=True):
            p = logits.softmax(-1)
            ids = torch.tensor(question.answer_ids, device=model.device)
            first = p[0].clone()
            # an answer of several tokens takes away only its own share of its first token's probability
            first[ids[0]] *= 1 - p[1:].gather(1, ids[1:, None]).prod()
            total += first / first.sum()
        return total / total.sum()


OBJECTIVES: dict[str, type[Objective]] = {one.name: one for one in (Replace, Suppress, MaximumEntropy, Neutral, Refuse)}


def objective_named(name: str, **settings: Any) -> Objective:
    """An objective by its name on the command line, with these settings.

    Raises:
        SurgeryError: there is none of that name, or it has no such setting.
    """
    check_choice("objective", name, OBJECTIVES)
    made = OBJECTIVES[name]
    for setting in settings:
        if setting not in {field.name for field in dataclasses.fields(made)}:  # type: ignore[arg-type]
            raise SurgeryError(f"the objective {name!r} has no {setting}; leave it away, or choose another objective")
    return made(**settings)


def described(objective: Objective) -> dict[str, Any]:
    """An objective's name and settings as JSON values, under the names that edits keep them by."""
    found = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in dataclasses.asdict(objective).items()  # type: ignore[call-overload]  # they are dataclasses
    }
    return {"objective": objective.name, "objective_settings": found}


def _of_answer(
    log_probs: Float[Tensor, "contexts answer vocab"], ids: Int[Tensor, "contexts answer"]
) -> Float[Tensor, " contexts"]:
    """Log-probability of the whole answer in each context."""
    return log_probs.gather(-1, ids[..., None]).squeeze(-1).sum(-1)


def _log_not(log_p: Float[Tensor, " contexts"]) -> Float[Tensor, " contexts"]:
    """log(1 - p), finite and with a gradient also where p rounds to 1."""
    return torch.log(-torch.expm1(log_p.clamp(max=-1e-6)))


def depths_of(objective: Objective, model: Model, site: Site) -> tuple[int, ...]:
    """The layers besides the output at which an objective wants its loss, ascending.

    Raises:
        SurgeryError: one is below the edited layer, which cannot change it, or is none of the model's.
    """
    depths = tuple(sorted(set(getattr(objective, "layers", ()))))
    last = len(model.anatomy.layers) - 1
    if depths and not (site.layer <= depths[0] and depths[-1] <= last):
        raise SurgeryError(
            f"the objective looks at layers {', '.join(map(str, depths))}, but an edit of layer {site.layer} changes "
            f"layers {site.layer} to {last}; choose among these"
        )
    return depths
