"""Where a ledger is on the disk: immutable files named by their content, and one name that moves.

    objects/<sha256>.safetensors      a value: what one subject's key should give (`edits.value_files`)
    edits/<sha256>.safetensors        a solved edit, an ordinary edit file
    statistics/<sha256>.safetensors   the key statistics everything is solved with
    versions/<sha256>.json            a version: which values, which edit, which version before (`edits.ledger_version`)
    HEAD                              the current version's hash
    START                             where history begins, after it was cut off
    lock                              held by the process that changes something

1. A file is written beside its place, flushed, renamed, and its folder flushed (`surgery.files.written_whole`).
2. HEAD is written last. Before that nothing has changed, after that everything has; what a killed process leaves
   behind are files nobody refers to.
3. The first three kinds are named by the SHA-256 of their bytes, which is checked whenever one is read; `sha256sum`
   tells the same.
4. Who changes something holds the lock from before it reads HEAD until after it has written it. Readers need none.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, get_args

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from surgery.errors import SurgeryError
from surgery.files import flush_folder, writable_folder, written_whole

Kind = Literal["objects", "edits", "statistics"]
KINDS: tuple[Kind, ...] = get_args(Kind)
VERSIONS = "versions"
_HASH = re.compile(r"[0-9a-f]{64}")
_HALF_WRITTEN = re.compile(r"\.(new|HEAD|START|[0-9a-f]{64}\.(json|safetensors))\.")
"""What a killed process leaves behind: nothing of the user's own is called so."""


class Damaged(SurgeryError):
    """A file of a ledger is missing, or its content is not what its name says."""


class Store:
    """The files of one ledger.

    Attributes:
        folder: where they are.
        wait: seconds to wait for another process that changes the ledger.

    Raises:
        SurgeryError: there is no ledger in the folder.
    """

    def __init__(self, folder: str | Path, *, wait: float = 60.0) -> None:
        self.folder, self.wait = Path(folder), wait
        if not self.exists(self.folder):
            raise SurgeryError(
                f"there is no ledger in {folder}; make one with edits.Ledger.create, or with 'surgery ledger add'"
            )

    @staticmethod
    def exists(folder: str | Path) -> bool:
        """Whether there is a ledger in a folder. One whose making was cut short is none yet."""
        return (Path(folder) / "HEAD").is_file()

    @classmethod
    @contextmanager
    def made(cls, folder: str | Path, *, wait: float = 60.0) -> Iterator[Store]:
        """A new ledger's store, for the block that writes its first version; locked meanwhile.

        Raises:
            SurgeryError: there is a ledger already, or the folder holds something else or cannot be written to.
        """
        place = Path(folder)
        if cls.exists(place):
            raise SurgeryError(f"there is a ledger in {folder} already; open it, or choose another folder")
        ours = {*KINDS, VERSIONS, "lock"}
        found = sorted(one.name for one in place.iterdir()) if place.is_dir() else []
        if others := [name for name in found if name not in ours and not _HALF_WRITTEN.match(name)]:
            raise SurgeryError(f"{folder} holds {others[0]!r}, which is no part of a ledger; choose an empty folder")
        for name in (*KINDS, VERSIONS):
            writable_folder(place / name)
        store = cls.__new__(cls)
        store.folder, store.wait = place, wait
        with store.locked():
            if cls.exists(place):
                raise SurgeryError(f"another process has made a ledger in {folder} just now; open it")
            yield store

    @contextmanager
    def locked(self) -> Iterator[None]:
        """A block in which no other process changes the ledger. A process that is killed lets go of it.

        Raises:
            SurgeryError: another process has held it for `wait` seconds.
        """
        lock = FileLock(self.folder / "lock")
        with self._told():
            try:
                lock.acquire(timeout=self.wait)
            except Timeout:
                raise SurgeryError(
                    f"another process is changing the ledger {self.folder}, for {self.wait:g} s already; wait until "
                    "it is done and do it again"
                ) from None
        try:
            yield
        finally:
            lock.release()

    def path(self, kind: Kind, digest: str) -> Path:
        """Where the file of that hash is."""
        return self.folder / kind / f"{digest}.safetensors"

    def put(self, kind: Kind, data: bytes) -> str:
        """Keep some bytes; returns their hash.

        Raises:
            SurgeryError: they cannot be written.
        """
        digest = hashlib.sha256(data).hexdigest()
        self._write(self.path(kind, digest), data)
        return digest

    def put_saved(self, kind: Kind, save: Callable[[Path], object]) -> str:
        """Keep the file that `save` writes where it is told to; returns its hash.

        Raises:
            SurgeryError: it cannot be written.
        """
        with self._told(), tempfile.TemporaryDirectory(dir=self.folder, prefix=".new.") as part:
            save(Path(part) / "file")
            data = (Path(part) / "file").read_bytes()
        return self.put(kind, data)

    def checked(self, kind: Kind, digest: str) -> Path:
        """The file of that hash, read and found to be whole.

        Raises:
            Damaged: it is not.
        """
        path = self.path(kind, digest)
        self._checked_bytes(path, digest)
        return path

    def put_version(self, digest: str, data: bytes) -> None:
        """Keep a version under the hash of its hashed part; not yet as the current one."""
        self._write(self.folder / VERSIONS / f"{digest}.json", data)

    def version(self, digest: str) -> bytes:
        """A version's file; its hash is checked by who understands it.

        Raises:
            Damaged: there is none.
        """
        return self._bytes(self.folder / VERSIONS / f"{digest}.json")

    def versions(self) -> list[str]:
        """Hashes of all versions that are there, also those no longer or not yet referred to."""
        return sorted(one.stem for one in (self.folder / VERSIONS).glob("*.json") if _HASH.fullmatch(one.stem))

    @property
    def head(self) -> str:
        """Hash of the current version.

        Raises:
            Damaged: HEAD names none.
        """
        return self._named("HEAD")

    @property
    def start(self) -> str | None:
        """Hash of the version where history begins, None where it was never cut off."""
        return self._named("START") if (self.folder / "START").exists() else None

    def move_head(self, digest: str) -> None:
        """Make a version the current one: the one step that changes a ledger."""
        self._write(self.folder / "HEAD", f"{digest}\n".encode())

    def move_start(self, digest: str) -> None:
        """Have history begin at a version."""
        self._write(self.folder / "START", f"{digest}\n".encode())

    def drop(self, kept: Mapping[str, Collection[str]]) -> list[Path]:
        """Delete what is not among the hashes to keep of each folder, and what killed processes left half written."""
        gone: list[Path] = []
        for folder in (self.folder, *(self.folder / name for name in (*KINDS, VERSIONS))):
            own = [one for one in folder.iterdir() if _HALF_WRITTEN.match(one.name)]
            if folder != self.folder:
                own += [
                    one for one in folder.iterdir() if _HASH.fullmatch(one.stem) and one.stem not in kept[folder.name]
                ]
            for path in own:
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
            flush_folder(folder)
            gone += own
        return gone

    def left_over(self, kept: Mapping[str, Collection[str]]) -> int:
        """How many files `drop` would delete of those that have their names."""
        return sum(
            _HASH.fullmatch(one.stem) is not None and one.stem not in kept[name]
            for name in (*KINDS, VERSIONS)
            for one in (self.folder / name).iterdir()
        )

    def _named(self, name: str) -> str:
        text = self._bytes(self.folder / name).decode("ascii", "replace").strip()
        if not _HASH.fullmatch(text):
            raise Damaged(f"{self.folder / name} should hold a version's hash, not {text[:70]!r}; restore a backup")
        return text

    def _write(self, path: Path, data: bytes) -> None:
        with self._told(), written_whole(path) as new:
            new.write_bytes(data)

    def _checked_bytes(self, path: Path, digest: str) -> bytes:
        data = self._bytes(path)
        if hashlib.sha256(data).hexdigest() != digest:
            raise Damaged(f"{path} is damaged: its content is not what its name says; restore it from a backup")
        return data

    def _bytes(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise Damaged(f"cannot read {path} ({error.strerror or error}); restore it from a backup") from error

    @contextmanager
    def _told(self) -> Iterator[None]:
        """A block that writes, whose failure is told with the version the ledger then holds."""
        try:
            yield
        except (OSError, SafetensorError, SurgeryError) as error:
            cause = error.__cause__ if isinstance(error, SurgeryError) else error
            if not isinstance(cause, (OSError, SafetensorError)):
                raise
            reason = getattr(cause, "strerror", None) or str(cause)
            holds = f"holds version {self.head[:12]}" if self.exists(self.folder) else "holds nothing yet"
            raise SurgeryError(
                f"cannot write to the ledger {self.folder}: {reason}; it {holds}. Make writing possible and do it again"
            ) from cause
