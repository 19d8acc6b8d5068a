"""Ed25519 keys and signatures (RFC 8032), through `cryptography`, which the extra `sign` installs.

A private key is a PEM file (PKCS 8, not encrypted) that its owner alone may read; the public key stands beside it as
`.pub`. Both are what `openssl pkey` reads and writes. A public key may also be given as its 64 hexadecimal digits.
"""

from __future__ import annotations

import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from surgery.errors import SurgeryError
from surgery.files import writable_folder, written_whole

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_HEX = re.compile(r"[0-9a-f]{64}")


def make_key(path: str | Path) -> str:
    """Write a new private key, and its public key beside it as `.pub`; returns the public one, in hexadecimal.

    Raises:
        SurgeryError: there is something of that name already, it cannot be written, or `cryptography` is missing.
    """
    check_available()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    path = Path(path)
    beside = path.with_name(path.name + ".pub")
    for one in (path, beside):
        if one.exists():
            raise SurgeryError(f"{one} is there already, and a key that is overwritten is lost; choose another name")
    writable_folder(path.parent)
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(private)
    with written_whole(beside) as temporary:
        temporary.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return public_of(key)


def read_key(path: str | Path) -> Ed25519PrivateKey:
    """The private key of a file.

    Raises:
        SurgeryError: the file cannot be read or holds none, or `cryptography` is missing.
    """
    check_available()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    content = _read(path)
    try:
        key = load_pem_private_key(content, password=None)
    except (ValueError, TypeError) as error:
        raise SurgeryError(
            f"{path} holds no private key that can be used; give a file that 'surgery certificate keygen' wrote"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise SurgeryError(f"{path} holds a key of another kind than ed25519; make one by 'surgery certificate keygen'")
    return key


def read_public_key(key: str | Path) -> str:
    """A public key in hexadecimal, from a file or from these digits themselves.

    Raises:
        SurgeryError: it is neither, or `cryptography` is missing.
    """
    if isinstance(key, str) and _HEX.fullmatch(key):
        return key
    check_available()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    content = _read(key)
    try:
        found = load_pem_public_key(content)
    except ValueError as error:
        raise SurgeryError(
            f"{key} holds no public key; give the .pub file that 'surgery certificate keygen' wrote, or 64 hex digits"
        ) from error
    if not isinstance(found, Ed25519PublicKey):
        raise SurgeryError(
            f"{key} holds a key of another kind than ed25519; give the one the certificate was signed by"
        )
    return found.public_bytes_raw().hex()


def public_of(key: Ed25519PrivateKey) -> str:
    """The public key of a private one, in hexadecimal."""
    return key.public_key().public_bytes_raw().hex()


def sign(key: Ed25519PrivateKey, content: bytes) -> str:
    """The signature of some bytes, in hexadecimal."""
    return key.sign(content).hex()


def is_signed(content: bytes, signature: str, public_key: str) -> bool:
    """Whether that is the signature of these bytes by the owner of that key.

    Raises:
        SurgeryError: `cryptography` is missing.
    """
    check_available()
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key)).verify(bytes.fromhex(signature), content)
    except (InvalidSignature, ValueError):
        return False
    return True


def check_available() -> None:
    """Whether there is anything to sign with.

    Raises:
        SurgeryError: there is not.
    """
    if find_spec("cryptography") is None:
        raise SurgeryError(
            "signatures need the package cryptography; install it by pip install 'knowledge-surgery[sign]'"
        )


def _read(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise SurgeryError(f"cannot read the key {path}: {getattr(error, 'strerror', None) or error}") from error
