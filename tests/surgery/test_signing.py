"""Keys as files, and signatures by them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from surgery import SurgeryError
from surgery.signing import is_signed, make_key, public_of, read_key, read_public_key, sign


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    make_key(folder / "mine")
    return folder


def test_keys_are_files_their_owner_alone_may_read(tmp_path: Path, keys: Path) -> None:
    public = make_key(tmp_path / "deep" / "key")
    private, beside = tmp_path / "deep" / "key", tmp_path / "deep" / "key.pub"
    assert private.stat().st_mode & 0o777 == 0o600
    assert read_public_key(beside) == read_public_key(str(beside)) == read_public_key(public) == public
    assert b"PRIVATE" not in beside.read_bytes()
    for there in (private, beside):
        with pytest.raises(SurgeryError, match=r"is there already"):
            make_key(private)
        there.unlink()
    (tmp_path / "text").write_text("no key")
    wrong: list[tuple[Callable[[Any], Any], Any, str]] = [
        (read_key, keys / "mine.pub", "holds no private key"),
        (read_key, tmp_path / "text", "holds no private key"),
        (read_key, tmp_path / "absent", "cannot read the key"),
        (read_public_key, keys / "mine", "holds no public key"),
        (read_public_key, "ab12", "cannot read the key ab12"),
        (read_public_key, "A" * 64, "cannot read the key"),
    ]
    for read, what, message in wrong:
        with pytest.raises(SurgeryError, match=message):
            read(what)


def test_a_signature_is_of_these_bytes_by_this_key(keys: Path) -> None:
    key = read_key(keys / "mine")
    public, signature = public_of(key), sign(key, b"content")
    assert public == read_public_key(keys / "mine.pub")
    assert is_signed(b"content", signature, public)
    assert not is_signed(b"contents", signature, public)
    assert not is_signed(b"content", "0" * 128, public)
    assert not is_signed(b"content", "no digits", public)
    assert not is_signed(b"content", signature, "f" * 64)
