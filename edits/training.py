"""What training on facts shares: how they are read, what is minimised, and how one descends.

1. A fact's prompt is encoded together with the whole text its objective leads through, every token of that text given
   the ones before it. The objective's loss is asked at the positions that predict the text and nowhere else. A known
   mistake asks for all tokens of an answer at the prompt's last position, which trains its later tokens to come first.
2. Adam minimises the mean over facts, until every fact's own loss is below a threshold or the steps are used up.
3. A change that is trained is added to what its map puts out. The weights themselves are not written to, so they are
   the same whatever ends the training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from edits.limits import Limits, within
from edits.method import default_objective
from edits.objectives import Loss, Objective, described
from edits.room import room_for_tokens
from surgery.edit import Delta, Edit
from surgery.errors import SurgeryError
from surgery.fact import SLOT, Fact
from surgery.model import Model
from surgery.predict import answer_logits
from surgery.progress import counter
from surgery.site import Site
from surgery.tokens import Question, ask_fact, in_context


@dataclass(frozen=True, eq=False)
class Lesson:
    """A fact with what the model should say of it.

    Attributes:
        fact: the fact.
        questions: its prompt with the objective's text, one a context.
        ids: tokens of that text [contexts, answer].
        loss: the objective's.
    """

    fact: Fact
    questions: tuple[Question, ...]
    ids: Int[Tensor, "contexts answer"]
    loss: Loss


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What methods that follow a gradient have in common.

    Attributes:
        objective: what the model should say; None replaces where the facts name a new answer, else removes neutrally.
        contexts: texts that end with `{}` to read prompts in.
        limits: how far the model may be moved.
        progress: show a bar where somebody is looking.
    """

    name: ClassVar[str]
    uses_statistics: ClassVar[bool] = False
    objective: Objective | None = None
    contexts: tuple[str, ...] = (SLOT,)
    limits: Limits = field(default_factory=Limits)
    progress: bool = True

    def __post_init__(self) -> None:
        if not self.contexts:
            raise SurgeryError("give at least one context to read the prompt in; '{}' is the bare prompt")

    def wanted(self, facts: Sequence[Fact]) -> Objective:
        """What the model should say of these facts.

        Raises:
            SurgeryError: the objective cannot be had of one of them, or is asked for at layers inside the model.
        """
        objective = default_objective(facts, self.objective)
        if getattr(objective, "layers", ()):
            raise SurgeryError(
                f"{self.name} looks at the output alone; leave the layers of {objective.name!r} away, or take rank-one"
            )
        return objective

    def _edit(
        self,
        model: Model,
        base: str,
        facts: Sequence[Fact],
        objective: Objective,
        sites: Sequence[Site],
        deltas: Sequence[Delta],
        log: Sequence[Mapping[str, Any]],
        settings: Mapping[str, Any],
    ) -> Edit:
        edit = Edit(
            deltas=tuple(deltas),
            base=base,
            method=self.name,
            claim=objective.claim,
            facts=tuple(facts),
            settings={
                "sites": [site.name for site in sites],
                **described(objective),
                "contexts": list(self.contexts),
                "dtype": str(model.dtype),
                **settings,
            },
            log=tuple({"fact": fact.label, **entry} for fact, entry in zip(facts, log, strict=True)),
            prompts=tuple(
                dict.fromkeys(
                    in_context(model.tokenizer, fact.prompt, text) for fact in facts for text in self.contexts
                )
            ),
        )
        return within(model, edit, self.limits)


def lessons_of(model: Model, facts: Sequence[Fact], objective: Objective, contexts: Sequence[str]) -> list[Lesson]:
    """One lesson a fact, on the model as it is.

    Raises:
        SurgeryError: the objective cannot be had of a fact, or its text is cut into other tokens in some context.
    """
    made = []
    for fact in facts:
        text = objective.continuation(fact)
        asked = tuple(ask_fact(model.tokenizer, fact, text, context)[0] for context in contexts)
        if len({len(question.answer_ids) for question in asked}) > 1:
            raise SurgeryError(f"{text!r} is cut into different tokens in different contexts; use other contexts")
        ids = torch.tensor([question.answer_ids for question in asked], device=model.device)
        made.append(Lesson(fact, asked, ids, objective.loss(model, fact)))
    return made


def losses(model: Model, lessons: Sequence[Lesson]) -> Float[Tensor, " lessons"]:
    """Each lesson's loss by the model as it is, all of them in one run."""
    logits = iter(answer_logits(model, [question for lesson in lessons for question in lesson.questions]))
    each = []
    for lesson in lessons:
        said = torch.stack([next(logits).log_softmax(-1) for _ in lesson.questions])
        each.append(lesson.loss(said, lesson.ids))
    return torch.stack(each)


def together(model: Model, lessons: Sequence[Lesson]) -> list[list[Lesson]]:
    """The lessons in parts that go through the model at a time."""
    room, parts = room_for_tokens(model), [[lessons[0]]]
    for lesson in lessons[1:]:
        asked = [question for one in [*parts[-1], lesson] for question in one.questions]
        if len(asked) * max(len(question.ids) for question in asked) > room:
            parts.append([])
        parts[-1].append(lesson)
    return parts


@torch.enable_grad()
def descend(
    model: Model,
    lessons: Sequence[Lesson],
    groups: Sequence[Mapping[str, Any]],
    *,
    steps: int,
    stop: float,
    after: Callable[[], None] = lambda: None,
    progress: bool = False,
    label: str = "training steps",
) -> list[list[float]]:
    """Train parameters in place by Adam.

    Args:
        model: who is trained; only what `groups` hold has gradients.
        lessons: what on.
        groups: parameter groups of the optimiser, each with its own `lr`.
        steps: most steps.
        stop: every loss below it is enough.
        after: called after each step, to bring parameters back to where they may be.
        progress: show a bar where somebody is looking.
        label: of the bar.

    Returns:
        each lesson's loss before every step and at the end [lessons][steps + 1].

    Raises:
        SurgeryError: a loss is not finite.
    """
    optimiser = torch.optim.Adam([dict(group) for group in groups])
    parts = together(model, lessons)
    told: list[list[float]] = [[] for _ in lessons]
    with counter(steps, label, show=progress) as shown:
        for step in range(steps + 1):
            optimiser.zero_grad()
            now: list[float] = []
            for part in parts:
                each = losses(model, part)
                (each.sum() / len(lessons)).backward()
                now += each.detach().tolist()
            for row, loss in zip(told, now, strict=True):
                row.append(loss)
            if not all(loss < float("inf") for loss in now):
                raise SurgeryError(f"the loss is not finite after {step} steps; take a smaller step")
            if step == steps or max(now) < stop:
                break
            optimiser.step()
            after()
            shown.update(1)
    return told


def log_of(told: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
    """What there is to tell of each lesson's losses."""
    return [{"steps": len(row) - 1, "loss_before": row[0], "loss": row[-1]} for row in told]


def root_mean_square(matrix: Float[Tensor, "out in"]) -> float:
    """Of a matrix's entries; steps are measured in it, as the weights of one model are ten times those of another."""
    return float(matrix.detach().float().square().mean().sqrt())


@contextmanager
def added(model: Model, changes: Mapping[str, Float[Tensor, "out in"]]) -> Iterator[None]:
    """Inside the block, linear maps put out (W + dW) x: dW x is added in float32 to what they give.

    Args:
        model: the model; its weights are not touched.
        changes: dW by dotted name of the map; a gradient goes through to it.
    """

    def adding(change: Tensor) -> Callable[[Any, tuple[Tensor, ...], Tensor], Tensor]:
        def hook(module: Any, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
            more = torch.nn.functional.linear(given[0].float(), change)
            return (output.float() + more).to(output.dtype)

        return hook

    handles = []
    try:
        for name, change in changes.items():
            handles.append(model.hf.get_submodule(name).register_forward_hook(adding(change)))
        yield
    finally:
        for handle in handles:
            handle.remove()
