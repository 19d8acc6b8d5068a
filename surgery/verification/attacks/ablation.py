"""A fact asked without the direction in which its states differ from those of other subjects.

Methods that hide a fact behind a direction of the residual stream give it back where that direction is taken out
(https://arxiv.org/abs/2409.18025; https://arxiv.org/abs/2406.11717 for the ablation). Of the model as it is:
1. h(s, w): the state after layer l at the last token of wording w (prompt and paraphrases) with subject s.
2. d = mean_w [h(own subject, w) - mean_s h(s, w)], over other subjects s in the very same wordings, so that it tells of
   the subject and not of the words; brought to length 1. Other subjects are those of the neighbours, where a fact of
   the same wordings has any that fit its template; otherwise the other facts with these wordings.
3. h <- h - (h . d) d in the output of every layer, at every position, and the prompt is asked again.
Facts and controls of the same wordings have the same other subjects, none of them one of theirs. Directions of the last
third are left alone: what differs there is what is said, and without it others' answers come up by themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from surgery.errors import SurgeryError
from surgery.fact import SLOT, Fact
from surgery.hooks import TraceDict, hidden, with_hidden
from surgery.model import Model
from surgery.predict import answer_logits
from surgery.tokens import Question, ask, encode
from surgery.verification.askable import leaves_room
from surgery.verification.attack import Aspect, Attempt, Profile
from surgery.verification.attacks.wordings import wordings
from surgery.verification.naming import renamed
from surgery.verification.states import last_states

ROWS = 32


@dataclass(frozen=True, kw_only=True)
class DirectionAblation:
    """Take a direction out of the residual stream and ask.

    Attributes:
        depths: at which layers the direction is taken, as shares of the depth: 0 for the first, 1 for the last.
        most: how many other subjects there are at most.
    """

    depths: tuple[float, ...] = (0.15, 0.35, 0.5, 0.65)
    most: int = 6

    name: ClassVar[str] = "direction ablation"
    about: ClassVar[str] = "asked without the direction in which the fact's states differ from other subjects'"
    aspect: ClassVar[Aspect] = "traces"
    own_words: ClassVar[bool] = False
    profile: ClassVar[Profile] = "standard"
    unit: ClassVar[str] = "probability"
    floor: ClassVar[float] = 0.1

    def __post_init__(self) -> None:
        if not self.depths or any(not 0 <= one <= 1 for one in self.depths):
            raise SurgeryError(f"depths are shares of the model's depth, 0 to 1, not {self.depths}")
        if self.most < 1:
            raise SurgeryError("a direction needs at least one other subject to differ from; give most=1 or more")

    def __call__(self, model: Model, facts: Sequence[Fact]) -> Attempt:
        """The answer's probability without the direction of each layer; nan for a fact with nothing to differ from."""
        last = len(model.anatomy.layers) - 1
        layers = sorted({round(one * last) for one in self.depths})
        found = self.directions(model, facts, layers)
        asked = [
            (i, j, ask(model.tokenizer, facts[i].prompt, facts[i].target), one)
            for i, row in enumerate(found)
            if row is not None
            for j, one in enumerate(row)
        ]
        asked.sort(key=lambda one: len(one[2].ids))
        scores = np.full((len(facts), len(layers)), np.nan)
        for start in range(0, len(asked), ROWS):
            part = asked[start : start + ROWS]
            chances = without(model, [one[2] for one in part], torch.stack([one[3] for one in part]))
            for (i, j, *_), chance in zip(part, chances, strict=True):
                scores[i, j] = chance
        return Attempt(tuple(f"layer {layer}" for layer in layers), scores)

    def directions(
        self, model: Model, facts: Sequence[Fact], layers: Sequence[int]
    ) -> list[Float[Tensor, "layers d_model"] | None]:
        """Each fact's direction at each layer; None for a fact with no others to differ from."""
        frames = [_frames(fact) for fact in facts]
        rows: dict[tuple[str, ...], list[int]] = {}
        for i, one in enumerate(frames):
            rows.setdefault(one, []).append(i)
        others = {frame: self._others(model, facts, frame, own) for frame, own in rows.items()}
        texts = [text for fact in facts for text in wordings(fact)]
        texts += [one.replace(SLOT, name) for frame, names in others.items() for name in names for one in frame]
        states = _last_states(model, list(dict.fromkeys(texts)), layers)

        def mean(frame: tuple[str, ...], name: str) -> Float[Tensor, "layers d_model"]:
            return torch.stack([states[one.replace(SLOT, name)] for one in frame]).mean(0)

        found: list[Tensor | None] = [None] * len(facts)
        for frame, own in rows.items():
            means = {i: mean(frame, facts[i].subject) for i in own}
            contrast = [mean(frame, name) for name in others[frame]]
            for i in own:
                against = contrast or [means[j] for j in own if facts[j].subject != facts[i].subject]
                if against:
                    apart = means[i] - torch.stack(against).mean(0)
                    found[i] = apart / apart.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        return found

    def _others(self, model: Model, facts: Sequence[Fact], frame: Sequence[str], own: Sequence[int]) -> list[str]:
        """Subjects of the neighbours of some facts of one template, none of which is attacked or too long for it."""
        before, _, after = facts[own[0]].template.partition(SLOT)
        names: dict[str, None] = {}
        for prompt in (one.prompt for i in own if facts[i].subject for one in facts[i].neighbours):
            name = prompt[len(before) : len(prompt) - len(after)]
            if name.strip() and prompt == before + name + after:
                names[name] = None
        attacked = {fact.subject.casefold() for fact in facts}
        free = (name for name in names if name.casefold() not in attacked)
        short = (name for name in free if all(leaves_room(model, one.replace(SLOT, name)) for one in frame))
        return list(islice(short, self.most))


@torch.no_grad()
def without(model: Model, questions: Sequence[Question], directions: Float[Tensor, "rows d_model"]) -> list[float]:
    """The probability of each answer with a direction a row taken out of every layer's output."""
    names, count = model.anatomy.names("state"), len(questions)

    def project(output: Any, name: str) -> Any:
        states = hidden(output, count)
        along = directions.to(states)[:, None]
        return with_hidden(output, states - (states * along).sum(-1, keepdim=True) * along)

    with TraceDict(model.hf, names, retain_output=False, edit_output=project):
        rows = answer_logits(model, questions)
    chances = []
    for question, logits in zip(questions, rows, strict=True):
        ids = torch.tensor(question.answer_ids, device=logits.device)
        chance = logits.double().log_softmax(-1).gather(1, ids[:, None]).sum().exp()
        chances.append(min(float(chance), 1.0))
    return chances


def _frames(fact: Fact) -> tuple[str, ...]:
    """A fact's wordings with the slot in its subject's place; as they are where it has none."""
    if not fact.subject:
        return wordings(fact)
    return (fact.template, *(renamed(text, fact.subject, SLOT) for text in wordings(fact)[1:]))


@torch.no_grad()
def _last_states(
    model: Model, texts: Sequence[str], layers: Sequence[int]
) -> dict[str, Float[Tensor, "layers d_model"]]:
    """The states after some layers at each text's last token, in float32."""
    encoded = sorted(
        ((text, encode(model.tokenizer, text.rstrip()).ids) for text in texts), key=lambda one: len(one[1])
    )
    found: dict[str, Tensor] = {}
    for start in range(0, len(encoded), ROWS):
        part = encoded[start : start + ROWS]
        states = last_states(model, [ids for _, ids in part], layers).float()
        found |= {text: row for (text, _), row in zip(part, states, strict=True)}
    return found
