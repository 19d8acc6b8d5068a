"""A closed-form method as JSON values and back: what a ledger solves with, from its first version to its last.

A ledger finds every value on the base weights and solves for all of them in one batch. So settings that say how a call
goes from one batch to the next do not apply: `batch` and `remember` become those of one batch of all, which is what
they approach (`edits.grid`, step 4); `passes` becomes 1, for a further one finds values on the weights as written; and
`anchor`, which holds values to the length they had on the model as it came, is refused, for they are that. So are
`names`, whose weight in a value's key depends on how many facts there are. Rank-one editing becomes one batch in which
every fact gets its value exactly.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from edits.grid import ClosedForm
from edits.keys import sample_contexts
from edits.limits import Limits
from edits.method import METHODS
from edits.objectives import OBJECTIVES
from edits.solve import Constrained, LeastSquares, NullSpace
from edits.statistics import Statistics, find_statistics
from edits.value_files import canonical
from edits.values import ValueSearch
from surgery.errors import SurgeryError
from surgery.model import Model
from surgery.site import Site

PARTS: dict[str, Any] = {
    one.__name__: one for one in (Constrained, LeastSquares, NullSpace, Limits, ValueSearch, *OBJECTIVES.values())
}
LEFT_OUT = ("statistics", "progress")
"""Kept as a file, and no matter of numbers."""


def ledger_method(model: Model, method: object) -> ClosedForm:
    """The method as a ledger uses it: contexts made up once and for all, everything in one batch.

    Raises:
        SurgeryError: as `checked_method`.
    """
    method = checked_method(method)
    contexts = method.contexts or sample_contexts(model, count=method.count, length=method.length, seed=method.seed)
    fixed = dataclasses.replace(
        method, contexts=tuple(contexts), names=0.0, batch=None, remember=False, passes=1, progress=False
    )
    try:
        return method_of(json.loads(canonical(method_record(fixed))), fixed.statistics)
    except TypeError as error:
        raise SurgeryError(f"a ledger cannot write the settings of {method.name} down: {error}") from error


def checked_method(method: object) -> ClosedForm:
    """A method that a ledger can take.

    Raises:
        SurgeryError: it is no closed form of this package, names no objective, brings values to an anchor, or weighs
            nearly the same names.
    """
    name = getattr(method, "name", type(method).__name__)
    kinds = {key: made for key, made in METHODS.items() if isinstance(made, type) and issubclass(made, ClosedForm)}
    if not isinstance(method, ClosedForm) or type(method) not in (ClosedForm, *kinds.values()):
        raise SurgeryError(
            f"a ledger cannot take {name!r} back fact by fact, for it does not solve from values that can be kept; "
            f"choose one of {', '.join(kinds)}"
        )
    if method.objective is None:
        raise SurgeryError("a ledger has one objective for all its facts; give the method one, such as edits.Replace()")
    if method.anchor:
        raise SurgeryError(
            f"{name} anchors values to those of the model as it came, but a ledger finds all of them there; leave the "
            "anchor away, or choose another method"
        )
    if method.names:
        raise SurgeryError(
            "what nearly the same names weigh in a value depends on how many facts there are, which changes in a "
            "ledger; leave names away"
        )
    return method


def method_record(method: ClosedForm) -> dict[str, Any]:
    """All settings but the statistics, as JSON values.

    Raises:
        SurgeryError: a part of it is none of this package's.
    """
    fields = {one.name: getattr(method, one.name) for one in dataclasses.fields(method) if one.name not in LEFT_OUT}
    return {"name": method.name, **{name: _plain(value) for name, value in fields.items()}}


def method_of(record: Mapping[str, Any], statistics: Statistics | None) -> ClosedForm:
    """The method of a record.

    Raises:
        SurgeryError: this version of the package has no such method or settings.
    """
    settings = {name: _made(value) for name, value in record.items() if name != "name"}
    made: Any = ClosedForm if record["name"] == ClosedForm.name else METHODS.get(record["name"])
    try:
        method: ClosedForm = made(statistics=statistics, progress=False, **settings)
    except TypeError as error:
        raise SurgeryError(
            f"the ledger was made with {record['name']!r} of another version of this package ({error}); use that one"
        ) from error
    return method


def statistics_of(model: Model, method: ClosedForm, sites: list[Site], base: str) -> Statistics:
    """The key statistics of these sites alone, as they belong to the base weights.

    Raises:
        SurgeryError: there are none.
        WrongWeights: the method's belong to other weights.
    """
    found = [method.statistics or find_statistics(model, site.layer, base) for site in sites]
    layers = {site.layer: one.of(model, site.layer, base) for site, one in zip(sites, found, strict=True)}
    corpus = "; ".join(dict.fromkeys(one.corpus for one in found))
    return dataclasses.replace(found[0], layers=layers, fingerprints=(base,), corpus=corpus)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind = type(value).__name__
        if PARTS.get(kind) is not type(value):
            raise SurgeryError(f"a ledger cannot write {kind} down; use one of {', '.join(PARTS)}")
        return {"is": kind, **{one.name: _plain(getattr(value, one.name)) for one in dataclasses.fields(value)}}
    return [_plain(one) for one in value] if isinstance(value, (tuple, list)) else value


def _made(value: Any) -> Any:
    if isinstance(value, Mapping):
        return PARTS[value["is"]](**{name: _made(one) for name, one in value.items() if name != "is"})
    return tuple(_made(one) for one in value) if isinstance(value, list) else value
