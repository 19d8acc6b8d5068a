"""A certificate: what a verification found, bound by hashes to weights, edit and facts, without a word of the facts.

1. Weights are named by their fingerprint before the edit and with it, the edit by a hash of its factors alone.
2. A fact is named by scrypt of its prompt and answer under a salt of the certificate's own (`surgery.privacy`). Who has
   the fact can tell that it is meant; who has not may only guess, some 0.03 s a guess.
3. For each fact stand its claims' outcomes, the probabilities and ranks of its prompts, and each attack's lift with
   those of its controls; beside them thresholds, profile, and what was not tested.
4. A signature is ed25519 over the canonical JSON of everything but itself, the public key included: keys in order, no
   spaces, UTF-8. A file is this canonical JSON on one line, and a file that is not is refused; so every changed byte is
   found. That the key is the right one, only who was told the key before can say (`check(public_key=...)`).
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from surgery import signing
from surgery.certificate_content import content_of
from surgery.certificate_format import FORMAT, canonical, check_content
from surgery.edit import Edit
from surgery.errors import SurgeryError
from surgery.fact import Fact
from surgery.files import written_whole
from surgery.model import Model
from surgery.privacy import fact_digests
from surgery.report import Report

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


@dataclass(frozen=True)
class Checked:
    """One thing a certificate says, held against what is at hand.

    Attributes:
        what: "signature", "key", "weights", "edit" or "facts".
        outcome: whether it matches.
        told: in words.
    """

    what: str
    outcome: Literal["matches", "differs", "not checked"]
    told: str


@dataclass(frozen=True)
class CertificateCheck:
    """What a check of a certificate came to."""

    checks: tuple[Checked, ...]

    @property
    def ok(self) -> bool:
        """Nothing that could be checked differs."""
        return all(one.outcome != "differs" for one in self.checks)

    def __getitem__(self, what: str) -> Checked:
        return next(one for one in self.checks if one.what == what)


@dataclass(frozen=True)
class Certificate:
    """What a verification found, for others to check.

    Attributes:
        content: what it says, as JSON values.
        signature: over `content`, in hexadecimal; None where nobody signed.

    Raises:
        SurgeryError: the content is not that of a certificate.
    """

    content: Mapping[str, Any]
    signature: str | None = None

    def __post_init__(self) -> None:
        check_content(self.content)
        if self.signature is not None and not re.fullmatch("[0-9a-f]{128}", str(self.signature)):
            raise SurgeryError("the certificate's signature was changed or cut; get it again from its maker")
        if (self.signature is None) != (self.content["public_key"] is None):
            raise SurgeryError(
                "a certificate has a signature and the key it is checked by, or neither; this one was cut"
            )

    @classmethod
    def of(
        cls, report: Report, model: Model, edit: Edit | None, facts: Sequence[Fact] | Fact | None = None
    ) -> Certificate:
        """The certificate of a verification, without a signature.

        Args:
            report: what was found.
            model: the base model, or the model that was judged as it is; it is the same afterwards.
            edit: the edit that was judged.
            facts: those it was judged by; None for the ones the edit names.

        Raises:
            WrongWeights: the model is not the one that was judged.
            SurgeryError: the report is not about this edit and these facts.
        """
        chosen = (
            (facts,) if isinstance(facts, Fact) else tuple(facts if facts is not None else edit.facts if edit else ())
        )
        if chosen != report.facts:
            raise SurgeryError(
                "the report is about other facts than these; give those it was made with, in their order"
            )
        about = None if edit is None else edit.summary()
        if about != report.edit or report.base != (edit.base if edit else model.fingerprint):
            raise SurgeryError("the report is about another edit or other weights; give those it was made with")
        salt = secrets.token_hex(16)
        content = {
            "format": FORMAT,
            "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "salt": salt,
            "public_key": None,
            **content_of(report, model, edit, fact_digests(chosen, salt)),
        }
        return cls(content)

    def signed(self, key: Ed25519PrivateKey) -> Certificate:
        """The same, signed by the owner of a key (`surgery.signing.read_key`)."""
        content = {**self.content, "public_key": signing.public_of(key)}
        return Certificate(content, signing.sign(key, canonical(content)))

    def save(self, path: str | Path) -> Path:
        """Write it as one line of JSON, whole or not at all.

        Raises:
            SurgeryError: the place cannot be written to.
        """
        with written_whole(path) as temporary:
            temporary.write_bytes(canonical(self._record()) + b"\n")
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> Certificate:
        """Read a file that `save` wrote.

        Raises:
            SurgeryError: there is no such file, or it is not byte for byte one that `save` writes.
        """
        try:
            text = Path(path).read_bytes().strip()
        except OSError as error:
            raise SurgeryError(f"cannot read the certificate {path}: {error.strerror}; give a file") from error
        try:
            record = json.loads(text)
            whole = canonical(record) == text
            signature = record.pop("signature")
        except (ValueError, RecursionError, KeyError, AttributeError, TypeError) as error:
            raise SurgeryError(f"{path} is no certificate; give a file that --certificate wrote") from error
        if not whole:
            raise SurgeryError(
                f"{path} was changed or laid out anew; a certificate is kept byte for byte as it was made"
            )
        return cls(record, signature)

    def check(
        self,
        model: Model | None = None,
        edit: Edit | None = None,
        facts: Sequence[Fact] | Fact | None = None,
        public_key: str | Path | None = None,
    ) -> CertificateCheck:
        """Hold the certificate against what is at hand; what is not given is not checked.

        Args:
            model: the base, or the model with the edit in its weights; it is the same afterwards.
            edit: the edit it is about.
            facts: some or all of the facts it is about.
            public_key: of whom the reader trusts, as a file or 64 hexadecimal digits.

        Raises:
            SurgeryError: the public key is none, or there is a signature and no `cryptography` to check it by.
        """
        chosen = (facts,) if isinstance(facts, Fact) else facts
        return CertificateCheck(
            (
                self._signature(),
                self._key(public_key),
                self._weights(model, edit),
                self._edit(edit),
                self._facts(chosen),
            )
        )

    def _record(self) -> dict[str, Any]:
        return {**self.content, "signature": self.signature}

    def _signature(self) -> Checked:
        if self.signature is None:
            return Checked("signature", "not checked", "nobody signed this certificate")
        if signing.is_signed(canonical(self.content), self.signature, self.content["public_key"]):
            return Checked(
                "signature", "matches", f"unchanged since the owner of {self.content['public_key']} signed it"
            )
        return Checked("signature", "differs", "the content is not what was signed")

    def _key(self, public_key: str | Path | None) -> Checked:
        if public_key is None:
            return Checked("key", "not checked", "no public key was given, so whoever made it may have signed it")
        wanted = signing.read_public_key(public_key)
        if self.signature is None:
            return Checked("key", "differs", "nobody signed this certificate, so the key's owner did not")
        same = wanted == self.content["public_key"]
        told = (
            "signed by the owner of the key given" if same else f"signed by another key, {self.content['public_key']}"
        )
        return Checked("key", "matches" if same else "differs", told)

    def _weights(self, model: Model | None, edit: Edit | None) -> Checked:
        before, after = self.content["weights"]["before"], self.content["weights"]["after"]
        if model is None:
            return Checked("weights", "not checked", "no model was given")
        found = model.fingerprint
        if found == after:
            return Checked("weights", "matches", "the model's weights are those that were judged")
        if found != before:
            expected = f"{after[:12]}" + (f" or, before the edit, {before[:12]}" if before else "")
            return Checked("weights", "differs", f"the model's weights are {found[:12]}, not {expected}")
        if edit is None or edit.base != found:
            return Checked("weights", "matches", "the model's weights are those before the edit")
        with edit.applied(model):
            same = model.fingerprint == after
        told = "the model's weights are those before the edit, and the edit makes them "
        return Checked(
            "weights", "matches" if same else "differs", told + ("those judged" if same else "others than judged")
        )

    def _edit(self, edit: Edit | None) -> Checked:
        if edit is None:
            return Checked("edit", "not checked", "no edit was given")
        if self.content["edit"] is None:
            return Checked("edit", "differs", "the certificate is about a model as it was, without an edit")
        same = edit.digest == self.content["edit"]["digest"] and edit.base == self.content["weights"]["before"]
        told = "the factors are those that were judged" if same else "these are other factors, or for other weights"
        return Checked("edit", "matches" if same else "differs", told)

    def _facts(self, facts: Sequence[Fact] | None) -> Checked:
        certified = {one["digest"] for one in self.content["facts"]}
        if facts is None:
            return Checked("facts", "not checked", f"no facts were given; the certificate is about {len(certified)}")
        digests = fact_digests(facts, self.content["salt"])
        missing = [fact.label for fact, digest in zip(facts, digests, strict=True) if digest not in certified]
        if missing or not facts:
            told = (
                f"{len(missing)} of {len(facts)} facts given are not in it, such as {missing[0]!r}"
                if missing
                else "none"
            )
            return Checked("facts", "differs", told)
        return Checked("facts", "matches", f"{len(set(digests))} of the {len(certified)} facts certified were given")
