"""A ledger: a folder of edits of one model, from which any fact can be taken back as if it had never been there.

1. A ledger is made for the weights as they came, the base, with one method, its sites, contexts and key statistics,
   and one objective; all of these stay.
2. Adding a fact finds its value on the base. Facts of one subject share a key and so a value (`edits.keys.by_key`);
   where one comes or goes, the value of those that are left is found anew, from them alone. No other fact has a part
   in a value, not even by rounding: each is found in a run of its own.
3. After every change the edit of all facts is solved from the base, in one batch, values in the order of their facts.
   So it depends on which facts there are, and on nothing else: on one machine with as many threads it is the same to
   the last bit whatever was added and removed in which order. Elsewhere sums are rounded otherwise; `check` says by how
   much.
4. A version names its values, its edit and the version before it by hashes (`edits.ledger_store`,
   `edits.ledger_version`), so a version's own hash stands for everything that went into it, but
   for this package's own code and the texts it brings along.

Removing takes back what the ledger did about a fact. From a ledger that rewrites, the model gives its old answer again;
from one that removes, the model *knows the fact again*. Earlier versions still hold what was removed; `prune` with
`keep_history=False` deletes them, so that no file of the ledger has the text any more (what a disk, a backup or an
exported edit still holds is beyond it).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edits.ledger_contents import Contents, about, check_facts, referred
from edits.ledger_method import ledger_method, method_of, method_record, statistics_of
from edits.ledger_store import KINDS, Damaged, Store
from edits.ledger_version import Check, Difference, Entry, Version, distance, entry_named, identity
from edits.method import Method
from edits.objectives import Objective
from surgery.edit import Edit
from surgery.errors import SurgeryError
from surgery.fact import Fact
from surgery.model import Model
from surgery.site import Site

WAIT = 600.0
"""Seconds; adding a hundred facts takes some minutes."""


class Ledger:
    """The ledger in a folder. It holds nothing in memory: several processes may have it open and change it in turn.

    Args:
        folder: where it is.
        wait: seconds to wait for another process that is changing it.

    Raises:
        SurgeryError: there is none.
    """

    def __init__(self, folder: str | Path, *, wait: float = WAIT) -> None:
        self._store = Store(folder, wait=wait)
        self._contents = Contents(self._store)

    @property
    def folder(self) -> Path:
        """Where it is."""
        return self._store.folder

    @classmethod
    def open(cls, folder: str | Path, *, wait: float = WAIT) -> Ledger:
        """The ledger of a folder; see the class."""
        return cls(folder, wait=wait)

    @classmethod
    def create(
        cls,
        folder: str | Path,
        model: Model,
        method: Method,
        sites: Sequence[Site] | None = None,
        *,
        wait: float = WAIT,
    ) -> Ledger:
        """Make a ledger without facts.

        Args:
            folder: where; made if it is absent.
            model: the base; its weights now are those every value is found and solved on.
            method: a closed form with its objective (`edits.ledger_method` says what becomes of batches).
            sites: where to edit; those recommended for the model by default.
            wait: as in `open`.

        Raises:
            SurgeryError: the method is none that can be solved again, there are no key statistics for the sites, or the
                folder holds something already or cannot be written to.
        """
        fixed = ledger_method(model, method)
        chosen, base = fixed.sites(model, sites), model.fingerprint
        statistics = statistics_of(model, fixed, chosen, base)
        with Store.made(folder, wait=wait) as store:
            first = Version(
                parent=None,
                base=base,
                method=method_record(fixed),
                sites=tuple(site.name for site in chosen),
                statistics=store.put_saved("statistics", statistics.save),
                values=(),
                edit=None,
                factors=None,
                about=about(model),
            )
            store.put_version(first.hash, first.as_bytes())
            store.move_head(first.hash)
        return cls(folder, wait=wait)

    @property
    def head(self) -> Version:
        """The current version."""
        return self._contents.head

    @property
    def objective(self) -> Objective:
        """What the model is to say of every fact."""
        made = method_of(self.head.method, None).objective
        assert made is not None, "a ledger is made with one"
        return made

    def versions(self) -> tuple[Version, ...]:
        """All versions, the current one first, back to where history begins.

        Raises:
            Damaged: one is missing or is not what its hash says.
        """
        return tuple(self._contents.history())

    def version(self, name: str | None = None) -> Version:
        """A version by its hash or the beginning of it; None is the current one.

        Raises:
            SurgeryError: no version of the history is called so, or more than one.
        """
        return self._contents.named(name)

    def list(self, version: str | None = None) -> tuple[Entry, ...]:
        """The facts of a version, the current one by default, in the order of their subjects."""
        return self._contents.entries(self.version(version))

    def edit(self, version: str | None = None) -> Edit:
        """The edit of all facts of a version, as it was solved then. No model is needed.

        Raises:
            SurgeryError: it holds no facts, so there is nothing to change.
            Damaged: the file is not whole.
        """
        chosen = self.version(version)
        if (edit := self._contents.edit(chosen)) is None:
            raise SurgeryError(f"version {chosen.hash[:12]} of the ledger holds no facts; the model is right as it is")
        return edit

    def add(self, model: Model, facts: Sequence[Fact] | Fact, *, progress: bool = True) -> Version:
        """Add facts; when this returns, they are on the disk. All are added or none.

        A fact that is there already stays; one that is there with another answer or other wordings (the same subject,
        template and target) is replaced.

        Raises:
            WrongWeights: the model is not the base.
            NearCollapse: the edit of all facts would pass a limit.
            SurgeryError: facts contradict each other or the ledger's objective, or the disk is full; the ledger is as
                it was.
        """
        given = (facts,) if isinstance(facts, Fact) else tuple(facts)
        if not given:
            raise SurgeryError("there is no fact to add; give at least one")
        new = {identity(fact): fact for fact in given}
        if twice := [fact.label for fact in given if new[identity(fact)] != fact]:
            raise SurgeryError(f"{twice[0]!r} is given twice, with different answers or wordings; give it once")
        with self._store.locked():
            head = self.head
            wanted = {identity(one.fact): one.fact for one in self._contents.entries(head)} | new
            check_facts(self.objective, list(new.values()), list(wanted.values()))
            return self._contents.change(model, head, list(wanted.values()), progress=progress)

    def remove(self, model: Model, *names: Fact | str, progress: bool = True) -> Version:
        """Take facts back; when this returns, the edit is the one of the others, as if these had never been there.

        Args:
            model: the base.
            names: each a fact, or what `list` calls it: its id, the beginning of its entry's id, its prompt,
                "subject | prompt", or its subject where that has one fact only.
            progress: show a bar where somebody is looking.

        Raises:
            WrongWeights: the model is not the base.
            SurgeryError: a name is that of no fact or of several, which are listed, or the disk is full; the ledger is
                as it was.
        """
        with self._store.locked():
            head = self.head
            gone = {one.id for one in self.named(*names)}
            left = [one.fact for one in self._contents.entries(head) if one.id not in gone]
            return self._contents.change(model, head, left, progress=progress)

    def named(self, *names: Fact | str) -> tuple[Entry, ...]:
        """The entries of the current version that `remove` would take for these names.

        Raises:
            SurgeryError: no names, or one is that of no fact or of several.
        """
        if not names:
            raise SurgeryError("there is no fact to remove; name at least one")
        entries = self.list()
        return tuple(entry_named(entries, name) for name in names)

    def diff(self, before: str | None = None, after: str | None = None) -> Difference:
        """What changed between two versions; by default between the one before the current one and that.

        Raises:
            SurgeryError: there is no such version.
        """
        new = self.version(after)
        old = (self._contents.before(new) or new) if before is None else self.version(before)
        ours, theirs = ({identity(one.fact): one.fact for one in self._contents.entries(of)} for of in (old, new))
        return Difference(
            before=old.hash,
            after=new.hash,
            added=tuple(fact for key, fact in theirs.items() if key not in ours),
            removed=tuple(fact for key, fact in ours.items() if key not in theirs),
            changed=tuple((ours[key], fact) for key, fact in theirs.items() if key in ours and ours[key] != fact),
            weights=distance(self._contents.edit(old), self._contents.edit(new)),
        )

    def solve(self, model: Model, version: str | None = None) -> Edit | None:
        """The edit of a version solved again from its values; None where it holds no facts.

        Raises:
            WrongWeights: the model is not the base.
        """
        chosen = self.version(version)
        self._contents.check_weights(model, chosen)
        return self._contents.solved(model, chosen, chosen.values)

    def check(self, model: Model | None = None, *, values: bool = False) -> Check:
        """Whether everything that history refers to is there and whole.

        Args:
            model: the base; with it the current edit is solved again and compared.
            values: find the current values again too, which takes as long as adding the facts did.

        Raises:
            WrongWeights: the model is not the base.
        """
        if values and model is None:
            raise SurgeryError("values are found on a model; give the ledger's base to check them")
        problems: list[str] = []
        history = self._contents.history(problems)
        kept = referred(history)
        for kind in KINDS:
            for digest in sorted(kept[kind]):
                try:
                    self._store.checked(kind, digest)
                except Damaged as error:
                    problems.append(str(error))
        solved = found = None
        if model is not None and not problems:
            head = history[0]
            solved = distance(self._contents.edit(head), self.solve(model, head.hash))
            found = self._contents.apart(model, head) if values else None
        files = sum(len(kept[kind]) for kind in KINDS)
        return Check(len(history), files, self._store.left_over(kept), tuple(problems), solved, found)

    def prune(self, *, keep_history: bool = True) -> int:
        """Delete files nobody refers to; returns how many.

        Args:
            keep_history: False deletes every version before the current one too, with the facts only they hold: after
                that no file of the ledger holds a removed fact's text. The current version keeps its hash.

        Raises:
            Damaged: the history to keep is not whole; nothing is deleted.
        """
        with self._store.locked():
            head = self.head
            gone = self._store.drop(referred(self._contents.history(None if keep_history else [])))
            if not keep_history:
                # after the rest, which makes room for it on a full disk
                self._store.move_start(head.hash)
                gone += self._store.drop(referred(self._contents.history()))
            return len(gone)
