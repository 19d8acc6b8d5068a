"""Several edits of one model: side by side, as one edit, or one on top of another.

- `merge`: edits made for the same weights, each as if the others were not there. Their changes add up to one edit.
- `stack`: each edit was made on the model with those before it. They are applied in that order, each checked against
  the weights it was made for, and undone in reverse order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal

from surgery.delta import Delta
from surgery.edit import Edit
from surgery.errors import SurgeryError
from surgery.fact import Fact
from surgery.model import Model


def merge(edits: Sequence[Edit], *, claim: Literal["removed", "rewritten"] | None = None) -> Edit:
    """One edit with the changes of all; changes of one weight add up, in as few columns as the sum needs.

    The method's name joins those of the edits; `settings["merged"]` keeps the method and settings of each.

    Args:
        edits: edits made for the same weights, their facts in plain.
        claim: what the whole is meant to achieve; None for what all of them claim.

    Raises:
        SurgeryError: no edits, edits of different weights or claims, two about the same prompt (their changes would
            add up to more than either meant), or one whose facts were taken out.
    """
    edits = tuple(edits)
    _check(edits)
    claims = dict.fromkeys(edit.claim for edit in edits)
    if claim is None and len(claims) > 1:
        raise SurgeryError("some edits claim 'removed' and some 'rewritten'; say which with merge(edits, claim=)")
    deltas: dict[str, Delta] = {}
    for delta in (delta for edit in edits for delta in edit.deltas):
        deltas[delta.module] = deltas[delta.module] + delta if delta.module in deltas else delta
    return Edit(
        deltas=tuple(delta.compressed() for delta in deltas.values()),
        base=edits[0].base,
        method=" + ".join(dict.fromkeys(edit.method for edit in edits)),
        claim=claim or edits[0].claim,
        facts=tuple(fact for edit in edits for fact in edit.facts),
        settings={"merged": [{"method": edit.method, "settings": dict(edit.settings)} for edit in edits]},
        log=tuple(one for edit in edits for one in edit.log),
        prompts=tuple(dict.fromkeys(text for edit in edits for text in edit.prompts)),
    )


def _check(edits: tuple[Edit, ...]) -> None:
    if not edits:
        raise SurgeryError("there is no edit to merge; give at least one")
    other = next((edit for edit in edits if edit.base != edits[0].base), None)
    if other is not None:
        raise SurgeryError(
            f"the edits were made for different weights ({edits[0].base[:12]} and {other.base[:12]}); if each was made "
            f"on top of the one before, use surgery.stack(model, edits)"
        )
    if any(edit.hidden is not None for edit in edits):
        raise SurgeryError("an edit whose facts were taken out cannot be merged; merge first, then redact the result")
    about: dict[str, int] = {}
    for i, edit in enumerate(edits):
        for prompt in dict.fromkeys(fact.prompt for fact in edit.facts):
            if prompt in about:
                raise SurgeryError(f"edits {about[prompt]} and {i} are both about {prompt!r}; leave one of them away")
            about[prompt] = i


@dataclass(frozen=True, eq=False)
class Stack:
    """Edits in the order in which they were made, each on top of those before it.

    Attributes:
        edits: the edits, the one made first in front.
    """

    edits: tuple[Edit, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "edits", tuple(self.edits))
        if not self.edits:
            raise SurgeryError("there is no edit to stack; give at least one")

    def __len__(self) -> int:
        return len(self.edits)

    @property
    def facts(self) -> tuple[Fact, ...]:
        """The facts of all edits."""
        return tuple(fact for edit in self.edits for fact in edit.facts)

    def then(self, edit: Edit) -> Stack:
        """This stack with one more edit on top."""
        return dataclasses.replace(self, edits=(*self.edits, edit))

    @contextmanager
    def applied(self, model: Model) -> Iterator[Model]:
        """The model with all edits, for the length of a `with` block; bit for bit what it was after it.

        Raises:
            WrongWeights: an edit was made for other weights than those it meets; the ones before it are undone.
        """
        with ExitStack() as undone:
            for edit in self.edits:
                undone.enter_context(edit.applied(model))
            yield model


@contextmanager
def stack(model: Model, edits: Sequence[Edit]) -> Iterator[Model]:
    """The model with edits made one on top of another, for the length of a `with` block.

    To take a stack along: `with stack(model, edits[:-1]): to_hf(model, edits[-1], folder)`.

    Raises:
        WrongWeights: an edit was made for other weights than those it meets; the ones before it are undone.
        SurgeryError: there are no edits.
    """
    with Stack(tuple(edits)).applied(model):
        yield model
