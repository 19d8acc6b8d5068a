"""Files that are either whole or absent, and the folder where this package keeps what it can make again."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs

from surgery.errors import SurgeryError


def cache_folder() -> Path:
    """The user's cache folder of this package; the environment variable SURGERY_CACHE moves it."""
    return Path(os.environ.get("SURGERY_CACHE") or platformdirs.user_cache_path("knowledge-surgery"))


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path` and move it there when the body ends well.

    Whatever ends the body early, Ctrl-C and a full disk included, leaves `path` as it was. After a good end the file
    is on the disk under its name, not only in memory, so that it outlasts a loss of power.

    Raises:
        SurgeryError: the folder cannot be made or written to.
    """
    path = Path(path)
    folder = writable_folder(path.parent)
    if path.is_dir():
        raise SurgeryError(f"cannot write the file {path}: it is a folder; give a file name")
    handle, name = tempfile.mkstemp(dir=folder, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(path)
        flush_folder(folder)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: str | Path) -> Iterator[Path]:
    """Give a temporary folder beside `folder` and move it there when the body ends well; else nothing is left.

    Raises:
        SurgeryError: there is something in the folder already, or its place cannot be written to.
    """
    folder = check_new_folder(folder)
    work = Path(tempfile.mkdtemp(dir=writable_folder(folder.absolute().parent), prefix=f".{folder.name}."))
    try:
        yield work
        mask = os.umask(0)
        os.umask(mask)
        for file in work.rglob("*"):
            if file.is_file():
                # safetensors writes for its owner alone, whatever the user's mask says
                file.chmod(0o666 & ~mask)
                with file.open("rb") as opened:
                    os.fsync(opened.fileno())
        work.chmod(0o777 & ~mask)
        try:
            work.replace(folder)
        except OSError as error:
            raise SurgeryError(f"cannot write {folder}: {error.strerror or error}; choose another place") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def check_new_folder(folder: str | Path) -> Path:
    """Check, without making anything, that a folder is absent or empty and could be written.

    Raises:
        SurgeryError: it is not, or could not.
    """
    folder = check_writable(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise SurgeryError(f"{folder} holds files already; give a folder that is empty or not there yet")
    return folder


def flush_folder(folder: Path) -> None:
    """Have the disk hold a folder's names as they are now, where the system can do that for folders."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def check_writable(path: str | Path) -> Path:
    """Check, without making anything, that a file or folder of that name could be written.

    Raises:
        SurgeryError: the nearest folder that exists is a file or refuses writing.
    """
    path = Path(path)
    nearest = next(one for one in [path, *path.absolute().parents] if one.exists())
    if nearest != path and not nearest.is_dir():
        raise SurgeryError(f"cannot write {path}: {nearest} is a file, not a folder; choose another place")
    if not os.access(nearest, os.W_OK):
        raise SurgeryError(f"cannot write {path}: {nearest} refuses writing; choose another place")
    return path


def writable_folder(folder: str | Path) -> Path:
    """Make `folder` if it is absent and check that a file can be written there.

    Raises:
        SurgeryError: it cannot be made, is a file, or refuses writing.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise SurgeryError(f"cannot write to the folder {folder}: {error.strerror or error}; choose another") from error
