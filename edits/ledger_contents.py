"""What is in a ledger: its versions with their facts, values and edits, and how the next version comes about."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime

import torch

from edits.grid import ClosedForm
from edits.keys import by_key
from edits.ledger_method import method_of
from edits.ledger_store import KINDS, VERSIONS, Damaged, Store
from edits.ledger_version import SHORTEST, Entry, Version
from edits.objectives import Objective
from edits.statistics import Statistics
from edits.value_files import difference, fact_key, read_facts_and_loss, read_value, value_bytes
from edits.values import Value
from surgery.edit import Edit
from surgery.errors import SurgeryError, WrongWeights
from surgery.fact import Fact
from surgery.model import Model
from surgery.progress import bar
from surgery.site import Site


class Contents:
    """A store read as versions."""

    def __init__(self, store: Store) -> None:
        self.store = store

    @property
    def head(self) -> Version:
        """The current version."""
        return self.at(self.store.head)

    def at(self, digest: str) -> Version:
        """The version of a hash.

        Raises:
            Damaged: it is missing, or not what its hash says.
        """
        return Version.from_bytes(self.store.version(digest), digest)

    def before(self, version: Version) -> Version | None:
        """The version before one; None where history begins."""
        begins = version.parent is None or version.hash == self.store.start
        return None if begins else self.at(str(version.parent))

    def history(self, problems: list[str] | None = None) -> list[Version]:
        """All versions, the current one first, back to where history begins.

        With `problems`, history that breaks off is told there.

        Raises:
            Damaged: a version is missing or not what its hash says.
        """
        found: list[Version] = []
        try:
            version: Version | None = self.head
            while version is not None:
                found.append(version)
                version = self.before(version)
        except Damaged as error:
            if problems is None:
                raise
            problems.append(str(error))
        return found

    def named(self, name: str | None) -> Version:
        """A version by its hash or the beginning of it; None is the current one.

        Raises:
            SurgeryError: no version of the history is called so, or more than one.
        """
        if name is None:
            return self.head
        found = [one for one in self.history() if len(name) >= SHORTEST and one.hash.startswith(name)]
        if len(found) == 1:
            return found[0]
        what = f"{len(found)} versions begin with" if found else "there is no version"
        raise SurgeryError(
            f"{what} {name!r}; give at least {SHORTEST} digits of a hash that 'surgery ledger list --versions' shows"
        )

    def entries(self, version: Version) -> tuple[Entry, ...]:
        """The facts of a version, in the order of their subjects.

        Raises:
            Damaged: a value's file is not whole.
        """
        read = {digest: read_facts_and_loss(self.store.checked("objects", digest)) for digest in version.values}
        entries = [Entry(fact, digest, loss) for digest, (facts, loss) in read.items() for fact in facts]
        return tuple(sorted(entries, key=lambda one: (one.fact.subject, fact_key(one.fact))))

    def edit(self, version: Version) -> Edit | None:
        """The solved edit of a version, None where it holds no facts.

        Raises:
            Damaged: its file is not whole.
        """
        return None if version.edit is None else Edit.load(self.store.checked("edits", version.edit))

    def values(self, digests: Sequence[str], device: torch.device) -> list[Value]:
        """Values in the order of their facts.

        Raises:
            Damaged: a value's file is not whole.
        """
        read = [read_value(self.store.checked("objects", digest), device) for digest in digests]
        return sorted(read, key=lambda value: [fact_key(fact) for fact in value.facts])

    def method(self, version: Version) -> tuple[ClosedForm, list[Site]]:
        """What a version was found and solved with, and where.

        Raises:
            Damaged: the statistics' file is not whole.
        """
        statistics = Statistics.load(self.store.checked("statistics", version.statistics))
        return method_of(version.method, statistics), [Site(name) for name in version.sites]

    def solved(self, model: Model, version: Version, digests: Sequence[str]) -> Edit | None:
        """The edit that values of these hashes give with a version's method; None for none."""
        if not digests:
            return None
        method, sites = self.method(version)
        return method.solve(model, self.values(digests, model.device), sites)

    def apart(self, model: Model, version: Version) -> float:
        """Largest relative difference of a version's values from those found again now."""
        stored = self.values(version.values, model.device)
        again = self._found(model, version, [one.facts for one in stored])
        return max((difference(one, other) for one, other in zip(stored, again, strict=True)), default=0.0)

    def check_weights(self, model: Model, version: Version) -> None:
        """Refuse other weights than those the ledger was made for.

        Raises:
            WrongWeights: the model has others.
        """
        if (found := model.fingerprint) != version.base:
            raise WrongWeights(
                f"this ledger was made for other weights ({version.base[:12]}) than these ({found[:12]}); load the "
                "model it was made for, without any edit and in the same dtype"
            )

    def change(self, model: Model, head: Version, facts: Sequence[Fact], *, progress: bool) -> Version:
        """Make the version of these facts the current one; the store must be locked since `head` was read.

        Values of facts that are as they were are taken over; what can fail for other reasons than the disk does so
        before anything is written but objects nobody refers to.

        Raises:
            WrongWeights: the model is not the base.
            NearCollapse: the edit would pass a limit.
            SurgeryError: a value cannot be found, the solve failed, or the disk is full.
        """
        self.check_weights(model, head)
        known = {read_facts_and_loss(self.store.checked("objects", digest))[0]: digest for digest in head.values}
        groups = [tuple(group) for group in by_key(sorted(facts, key=fact_key))]
        new = [group for group in groups if group not in known]
        shown = bar(new, "values", show=progress and len(new) > 1)
        for group, value in zip(new, self._found(model, head, shown) if new else (), strict=True):
            known[group] = self.store.put("objects", value_bytes(value))
        digests = tuple(sorted(known[group] for group in groups))
        if digests == head.values:
            return head
        return self.write(model, head, digests)

    def _found(self, model: Model, version: Version, groups: Iterable[tuple[Fact, ...]]) -> Iterator[Value]:
        """The value of each group of facts with one key, found in a run of its own."""
        method, sites = self.method(version)
        for group in groups:
            (value,) = method.find(model, group, sites)
            yield value

    def write(self, model: Model, head: Version, digests: tuple[str, ...]) -> Version:
        """Solve for values that are kept, and make the version of them the current one."""
        edit = self.solved(model, head, digests)
        if edit is not None and edit.base != head.base:
            raise WrongWeights("the model's weights were changed while its facts were edited; do it again without that")
        version = Version(
            parent=head.hash,
            base=head.base,
            method=head.method,
            sites=head.sites,
            statistics=head.statistics,
            values=digests,
            edit=None if edit is None else self.store.put_saved("edits", edit.save),
            factors=None if edit is None else edit.digest,
            about=about(model),
        )
        self.store.put_version(version.hash, version.as_bytes())
        self.store.move_head(version.hash)
        return version


def about(model: Model) -> dict[str, str | int]:
    """When and where a version is made: what rounding depends on."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {
        "created": now,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": model.device.type,
    }


def referred(versions: Sequence[Version]) -> dict[str, set[str]]:
    """Hashes of every file these versions refer to, by folder."""
    kept: dict[str, set[str]] = {kind: set() for kind in (*KINDS, VERSIONS)}
    for version in versions:
        kept[VERSIONS].add(version.hash)
        kept["objects"].update(version.values)
        kept["statistics"].add(version.statistics)
        if version.edit is not None:
            kept["edits"].add(version.edit)
    return kept


def check_facts(objective: Objective, new: Sequence[Fact], wanted: Sequence[Fact]) -> None:
    """Refuse facts that contradict each other or a ledger's objective.

    Args:
        objective: of the ledger.
        new: the facts to add.
        wanted: all facts there would be.

    Raises:
        SurgeryError: they do.
    """
    asked: dict[tuple[str, str], Fact] = {}
    named: dict[str, Fact] = {}
    for fact in new:
        if objective.claim == "removed" and fact.new_target is not None:
            raise SurgeryError(
                f"{fact.label!r} names a new_target, but this ledger removes facts ({objective.name}); leave "
                "new_target away, or keep facts to rewrite in a ledger of their own"
            )
        objective.continuation(fact)
    for fact in wanted:
        if fact.id is not None and named.setdefault(fact.id, fact) is not fact:
            raise SurgeryError(f"two facts have the id {fact.id!r}; give one of them another")
        other = asked.setdefault((fact.subject, fact.template), fact)
        if objective.claim == "rewritten" and other is not fact:
            raise SurgeryError(
                f"{fact.prompt!r} cannot be given two answers, {other.new_target!r} and {fact.new_target!r}; "
                "remove one of the two facts"
            )
