"""The logit lens: what each layer's state would answer if the model stopped there.

nostalgebraist 2020 (https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru/interpreting-gpt-the-logit-lens):

1. One run keeps the state of every position after each block; what enters the first block counts as layer -1, the
   embedding, with position embeddings where the model adds them there.
2. Each state h goes through the model's own final norm and head: softmax(head(norm(h))).
3. Of every such distribution only its likeliest token, the target's probability and rank, and its entropy are kept, a
   few rows at a time, so that memory does not grow with layers times positions times vocabulary.

At the last layer this is the model's own output. Below it nothing has trained the head to read what stands there; early
layers of many models read as noise, which says little about what they hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from surgery.errors import SurgeryError
from surgery.fact import Fact
from surgery.hooks import TraceDict, hidden
from surgery.model import Model
from surgery.predict import text_of
from surgery.tokens import Encoded, Question, Span, ask, ask_fact, encode, pad

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_LOGITS = 1 << 23
"""Numbers held at a time when states are read out: 32 MB in float32."""
EMBEDDING = -1
"""The layer number of what enters the first block."""


@dataclass(frozen=True, eq=False)
class Lens:
    """What the states of one prompt read as.

    Attributes:
        layers: layer numbers, from -1 (the embedding) up.
        positions: token positions read.
        tokens: the prompt's tokens there, as text.
        likeliest: text of the likeliest token, by layer and then position.
        confidence: its probability [layers, positions].
        probability: the target's probability [layers, positions].
        rank: the target's rank, from 1 [layers, positions].
        entropy: of the whole distribution, in nats [layers, positions].
        target: the token looked for, as text.
        prompt: what was asked.
        subject: positions of the fact's subject, or None for a bare prompt.
        vocab: size of the vocabulary.
        model: name of the model.
    """

    layers: tuple[int, ...]
    positions: tuple[int, ...]
    tokens: tuple[str, ...]
    likeliest: tuple[tuple[str, ...], ...]
    confidence: Float[np.ndarray, "layers positions"]
    probability: Float[np.ndarray, "layers positions"]
    rank: Int[np.ndarray, "layers positions"]
    entropy: Float[np.ndarray, "layers positions"]
    target: str
    prompt: str
    subject: Span | None
    vocab: int
    model: str

    def __post_init__(self) -> None:
        shape = (len(self.layers), len(self.positions))
        grids = (self.confidence, self.probability, self.rank, self.entropy)
        if len(self.tokens) != shape[1] or any(grid.shape != shape for grid in grids):
            raise ValueError(f"{shape[0]} layers and {shape[1]} positions do not label {[g.shape for g in grids]}")
        if (len(self.likeliest), *{len(row) for row in self.likeliest}) != shape:
            raise ValueError("every layer and position has one likeliest token")
        if not ((self.probability >= 0) & (self.probability <= self.confidence + 1e-6)).all():
            raise ValueError("the target cannot be more probable than the likeliest token")
        if not ((self.rank >= 1) & (self.rank <= self.vocab)).all():
            raise ValueError(f"ranks go from 1 to {self.vocab}")

    def settles(self, *, rank: int = 1, position: int = -1) -> int | None:
        """The lowest layer from which on the target's rank stays within `rank`; None if the last layer's does not.

        Args:
            rank: 1 asks from where on the target is the likeliest token.
            position: which of the positions read; by default the last of them.
        """
        within = self.rank[:, position] <= rank
        after = len(within) - int(np.argmin(within[::-1])) if not within.all() else 0
        return self.layers[after] if after < len(within) else None

    def as_record(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        return {
            "model": self.model,
            "prompt": self.prompt,
            "target": self.target,
            "subject": None if self.subject is None else [self.subject.start, self.subject.stop],
            "vocab": self.vocab,
            "layers": list(self.layers),
            "positions": list(self.positions),
            "tokens": list(self.tokens),
            "likeliest": [list(row) for row in self.likeliest],
            "confidence": self.confidence.tolist(),
            "probability": self.probability.tolist(),
            "rank": self.rank.tolist(),
            "entropy": self.entropy.tolist(),
        }

    def plot(self, ax: Axes | None = None, **options: Any) -> Axes:
        """Draw the table; see `locate.figures.lens.lens_table` for its options."""
        from locate.figures.lens import lens_table

        return lens_table(self, ax, **options)


@torch.no_grad()
def logit_lens(
    model: Model,
    fact_or_prompt: Fact | str,
    *,
    target: str | None = None,
    positions: Sequence[int] | None = None,
) -> Lens:
    """Read every layer's state as a prediction of the next token.

    Args:
        model: the model.
        fact_or_prompt: a fact, whose prompt is read, or a prompt.
        target: the answer whose first token is looked for; by default the fact's target, and for a bare prompt the
            token the model itself finds likeliest after it.
        positions: token positions to read; negative ones count from the prompt's end. By default all.

    Raises:
        SurgeryError: prompt or target cannot be tokenised, or a position is not in the prompt.
    """
    encoded, subject = _encode(model, fact_or_prompt, target)
    ids = encoded.prompt_ids if isinstance(encoded, Question) else encoded.ids
    chosen = _positions(positions, len(ids))
    states = _states(model, ids)
    if isinstance(encoded, Question):
        wanted = encoded.answer_ids[0]
    else:
        wanted = int(model.anatomy.unembed(states[-1:, -1])[0].argmax())
    layers, rows = len(states), states[:, list(chosen)].flatten(0, 1)
    best, confidence, probability, rank, entropy = _read(model, rows, wanted)
    names = {token: _text(model, token) for token in {*best, wanted}}
    grid = (layers, len(chosen))
    texts = [names[token] for token in best]
    return Lens(
        layers=tuple(range(EMBEDDING, layers - 1)),
        positions=chosen,
        tokens=tuple(encoded.token_texts[position] for position in chosen),
        likeliest=tuple(tuple(texts[start : start + grid[1]]) for start in range(0, len(texts), grid[1])),
        confidence=confidence.double().cpu().numpy().reshape(grid),
        probability=probability.double().cpu().numpy().reshape(grid),
        rank=rank.cpu().numpy().reshape(grid),
        entropy=entropy.double().cpu().numpy().reshape(grid),
        target=names[wanted],
        prompt=fact_or_prompt if isinstance(fact_or_prompt, str) else fact_or_prompt.prompt,
        subject=subject,
        vocab=model.anatomy.vocab,
        model=model.source,
    )


def _encode(model: Model, asked: Fact | str, target: str | None) -> tuple[Encoded, Span | None]:
    if isinstance(asked, Fact):
        return ask_fact(model.tokenizer, asked, asked.target if target is None else target)
    return (encode(model.tokenizer, asked) if target is None else ask(model.tokenizer, asked, target)), None


def _positions(positions: Sequence[int] | None, width: int) -> tuple[int, ...]:
    if positions is None:
        return tuple(range(width))
    outside = [position for position in positions if not -width <= position < width]
    if outside or not len(positions):
        raise SurgeryError(
            f"positions {list(positions)} cannot be read: the prompt has {width} tokens, so give some of "
            f"0 to {width - 1}, or -{width} to -1 from its end"
        )
    return tuple(position % width for position in positions)


def _states(model: Model, ids: tuple[int, ...]) -> Float[Tensor, "layers width d_model"]:
    """What enters the first block, then what leaves each."""
    names = model.anatomy.names("state")
    with TraceDict(model.hf, names, retain_input=True, clone=True) as seen:
        model.normed_states(pad([ids], device=model.device))
    return torch.stack([hidden(one, 1)[0] for one in (seen[names[0]].input, *(seen[name].output for name in names))])


def _read(
    model: Model, states: Float[Tensor, "rows d_model"], wanted: int
) -> tuple[list[int], Float[Tensor, " rows"], Float[Tensor, " rows"], Int[Tensor, " rows"], Float[Tensor, " rows"]]:
    """Likeliest token and its probability, probability and rank of the wanted one, and entropy, of each state."""
    best: list[int] = []
    found: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for part in states.split(max(1, MOST_LOGITS // model.anatomy.vocab)):
        logits = model.anatomy.unembed(part).float()
        rank = (logits > logits[:, wanted, None]).sum(-1) + 1
        p = logits.softmax(-1)
        top = p.max(-1)
        best += top.indices.tolist()
        found.append((top.values, p[:, wanted], rank, torch.special.entr(p).sum(-1)))
    confidence, probability, rank, entropy = (torch.cat(one) for one in zip(*found, strict=True))
    return best, confidence, probability, rank, entropy


def _text(model: Model, token: int) -> str:
    """A token as text; a special one, which reads as nothing, by its name."""
    return text_of(model, [token]) or str(model.tokenizer.convert_ids_to_tokens(token))
