"""What a ledger tells: a version, an entry, the difference of two versions, the finding of a check."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from edits.ledger_store import Damaged
from edits.value_files import canonical, fact_key
from surgery.edit import Edit
from surgery.errors import SurgeryError
from surgery.fact import Fact

FORMAT = "knowledge-surgery ledger 1"
SHORTEST = 4
"""Characters a beginning of a hash must have."""


@dataclass(frozen=True)
class Version:
    """The facts of a ledger at one time, and the edit of all of them.

    Attributes:
        parent: the version before; None for the first.
        base: fingerprint of the weights that everything is found and solved on.
        method: the method's settings (`edits.ledger_method`).
        sites: names of the edited sites.
        statistics: hash of the key statistics.
        values: hashes of the values, ascending.
        edit: hash of the solved edit's file; None where there are no facts.
        factors: SHA-256 of the edit's numbers alone: which weights, and the factors of their changes.
        about: when and where it was made; no part of the hash.
    """

    parent: str | None
    base: str
    method: Mapping[str, Any]
    sites: tuple[str, ...]
    statistics: str
    values: tuple[str, ...]
    edit: str | None
    factors: str | None
    about: Mapping[str, Any]

    @property
    def hash(self) -> str:
        """SHA-256 of everything but `about`, as canonical JSON."""
        return hashlib.sha256(canonical(self._hashed()).encode()).hexdigest()

    def as_record(self) -> dict[str, Any]:
        """The version as JSON values, without the method's settings."""
        shown = {name: value for name, value in self._hashed().items() if name not in ("method", "format")}
        return {"version": self.hash, **shown, "method": self.method["name"], "about": dict(self.about)}

    def as_bytes(self) -> bytes:
        """The version as a file's content."""
        return (canonical({"version": self._hashed(), "about": dict(self.about)}) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes, digest: str) -> Version:
        """The version of a file.

        Raises:
            Damaged: it is not the one of that hash.
        """
        try:
            record = json.loads(data)
            given = record["version"]
            if given.pop("format") != FORMAT:
                raise SurgeryError(f"version {digest[:12]} was written by another version of this package; use that")
            sites, values = tuple(given.pop("sites")), tuple(given.pop("values"))
            version = cls(**given, sites=sites, values=values, about=record["about"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, SurgeryError):
                raise
            raise Damaged(f"version {digest[:12]} is damaged ({error}); restore it from a backup") from error
        if version.hash != digest:
            raise Damaged(f"version {digest[:12]} is damaged: its content is not what its name says; restore a backup")
        return version

    def _hashed(self) -> dict[str, Any]:
        fields = {one.name: getattr(self, one.name) for one in dataclasses.fields(self) if one.name != "about"}
        lists = {"sites": list(self.sites), "values": list(self.values), "method": dict(self.method)}
        return {"format": FORMAT, **fields, **lists}


@dataclass(frozen=True)
class Entry:
    """One fact of a ledger.

    Attributes:
        fact: the fact.
        value: hash of the value it has, alone or with other facts of its subject.
        loss: where the search for that value ended.
    """

    fact: Fact
    value: str
    loss: float

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits that stay the same as long as the fact does."""
        return hashlib.sha256(fact_key(self.fact).encode()).hexdigest()[:12]

    @property
    def label(self) -> str:
        """Subject and prompt, by which the fact can be named."""
        return f"{self.fact.subject} | {self.fact.prompt}"

    def as_record(self) -> dict[str, Any]:
        """The entry as JSON values."""
        return {"entry": self.id, "fact": self.fact.as_record(), "value": self.value, "loss": self.loss}

    def is_called(self, name: str) -> bool:
        """Whether that names it: its id, the beginning of its entry's, prompt, label, prompt and answer, or subject."""
        fact = self.fact
        own = (fact.id, fact.prompt, self.label, f"{fact.prompt} {fact.target}", fact.subject)
        return name in own or (len(name) >= SHORTEST and self.id.startswith(name))


@dataclass(frozen=True)
class Difference:
    """What changed from one version to another.

    Attributes:
        before: hash of the one.
        after: hash of the other.
        added: facts only the other has.
        removed: facts only the one has.
        changed: facts both have, with other answers or wordings.
        weights: |dW_after - dW_before| / max(|dW_before|, |dW_after|) over all edited weights: 0 for the same edit, 1
            where one of them holds no facts.
    """

    before: str
    after: str
    added: tuple[Fact, ...]
    removed: tuple[Fact, ...]
    changed: tuple[tuple[Fact, Fact], ...]
    weights: float

    def as_record(self) -> dict[str, Any]:
        """The difference as JSON values."""
        return {
            "before": self.before,
            "after": self.after,
            "added": [fact.as_record() for fact in self.added],
            "removed": [fact.as_record() for fact in self.removed],
            "changed": [[one.as_record(), other.as_record()] for one, other in self.changed],
            "weights": self.weights,
        }


@dataclass(frozen=True)
class Check:
    """What a check found.

    Attributes:
        versions: how many were looked at.
        files: how many files they refer to.
        left_over: files nobody refers to: of changes that were cut short, or before a `prune`.
        problems: what is missing or damaged, a sentence each.
        solved: how far the current edit is from the one solved again now, as `Difference.weights`: 0.0 where every bit
            is the same; None where it was not solved.
        found: largest relative difference of a value found again now; None where none was sought.
    """

    versions: int
    files: int
    left_over: int
    problems: tuple[str, ...]
    solved: float | None = None
    found: float | None = None

    @property
    def ok(self) -> bool:
        """Nothing is missing or damaged."""
        return not self.problems

    def as_record(self) -> dict[str, Any]:
        """The finding as JSON values."""
        return {"ok": self.ok, **dataclasses.asdict(self)}


def identity(fact: Fact) -> tuple[str, str, str]:
    """What makes two facts the same one with other answers or wordings."""
    return fact.subject, fact.template, fact.target


def distance(edit: Edit | None, other: Edit | None) -> float:
    """|dW - dW'| / max(|dW|, |dW'|) over all weights the two edits change; exactly 0 for equal factors."""
    if edit is None or other is None:
        return float(edit is not other)
    if edit.digest == other.digest:
        return 0.0
    ours, theirs = ({delta.module: delta for delta in one.deltas} for one in (edit, other))
    total = 0.0
    for module in {**ours, **theirs}:
        minus = dataclasses.replace(theirs[module], left=-theirs[module].left) if module in theirs else None
        both = [one for one in (ours.get(module), minus) if one is not None]
        total += (both[0] + both[1] if len(both) == 2 else both[0]).norm ** 2
    largest = max(sum(delta.norm**2 for delta in one.deltas) for one in (edit, other))
    return math.sqrt(total / largest) if largest else 0.0


def entry_named(entries: Sequence[Entry], name: Fact | str) -> Entry:
    """The one entry of that name.

    Raises:
        SurgeryError: there is none, or more than one.
    """
    if isinstance(name, Fact):
        found, shown = [one for one in entries if identity(one.fact) == identity(name)], name.label
    else:
        found, shown = [one for one in entries if one.is_called(name)], name
    if len(found) == 1:
        return found[0]
    if found:
        raise SurgeryError(f"{shown!r} names {len(found)} facts; name one: {_listed(found)}")
    if not entries:
        raise SurgeryError(f"there is no fact {shown!r}; the ledger holds none")
    named = {text: one for one in entries for text in (one.fact.subject, one.fact.prompt, one.label, one.fact.label)}
    near = dict.fromkeys(named[text] for text in get_close_matches(shown, list(named), n=5, cutoff=0.5))
    raise SurgeryError(
        f"there is no fact {shown!r} in the ledger; "
        + (f"did you mean {_listed(list(near))}?" if near else f"it holds {len(entries)}, such as {_listed(entries)}")
    )


def _listed(entries: Sequence[Entry], most: int = 5) -> str:
    shown = ", ".join(f"{one.id} ({one.fact.label})" for one in entries[:most])
    return shown + (f" and {len(entries) - most} more" if len(entries) > most else "")
