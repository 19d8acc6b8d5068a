"""What an editing method is, and the list of them.

A method is its configuration: a frozen keyword-only dataclass whose call returns an `Edit`. One decorator line puts it
on the command line, in `operate`, in the invariant tests and in the benchmark.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

from edits.objectives import Neutral, Objective, Replace
from surgery.edit import Edit
from surgery.errors import SurgeryError, check_choice
from surgery.fact import Fact
from surgery.model import Model
from surgery.site import Site


@runtime_checkable
class Method(Protocol):
    """Computes an edit; the model's weights are the same before and after.

    Attributes:
        name: on the command line and in files.
        uses_statistics: whether it needs key statistics; a method that does takes them as `statistics`.
    """

    name: ClassVar[str]
    uses_statistics: ClassVar[bool]

    def __init__(self, *, objective: Objective | None = None) -> None: ...

    def __call__(self, model: Model, facts: Sequence[Fact] | Fact, sites: Sequence[Site] | None = None) -> Edit:
        """The edit for some facts, at some sites or those the method recommends for the model."""
        ...

    def sites(self, model: Model, sites: Sequence[Site] | None = None) -> list[Site]:
        """The sites it would edit: those given, checked, or those it recommends for the model."""
        ...

    def wanted(self, facts: Sequence[Fact]) -> Objective:
        """What the model should say of the facts; refuses what the method cannot make it say."""
        ...


M = TypeVar("M", bound=type)
METHODS: dict[str, Callable[..., Any]] = {}


def register(method: M) -> M:
    """Put a method on the list under its `name`.

    Raises:
        ValueError: the name is taken.
    """
    name: str = getattr(method, "name")  # noqa: B009 (declared by the protocol, not by `type`)
    if name in METHODS:
        raise ValueError(f"there is a method {name!r} already: {METHODS[name]}")
    METHODS[name] = method
    return method


def method_named(name: str, **settings: Any) -> Method:
    """A method of that name with these settings.

    Raises:
        SurgeryError: there is none of that name.
    """
    check_choice("method", name, METHODS)
    made: Method = METHODS[name](**settings)
    return made


def default_objective(facts: Sequence[Fact], chosen: Objective | None = None) -> Objective:
    """The objective a method was given, else Replace where all facts name a new answer, and Neutral where none does.

    Raises:
        SurgeryError: there are no facts, some name a new answer and some do not, two name different ones for one
            prompt, or the objective cannot be had of one.
    """
    if not facts:
        raise SurgeryError("there is no fact to edit; give at least one")
    if chosen is None:
        named = sum(fact.new_target is not None for fact in facts)
        if named not in (0, len(facts)):
            raise SurgeryError(f"{named} of {len(facts)} facts name a new_target; rewrite and remove in two edits")
        chosen = Replace() if named else Neutral()
    _check_answers(facts, chosen)
    return chosen


def _check_answers(facts: Sequence[Fact], objective: Objective) -> None:
    said: dict[str, str] = {}
    for fact in facts:
        new = objective.continuation(fact)
        if objective.claim == "rewritten" and said.setdefault(fact.prompt, new) != new:
            raise SurgeryError(
                f"{fact.prompt!r} cannot be answered by both {said[fact.prompt]!r} and {new!r}; leave one of them away"
            )
