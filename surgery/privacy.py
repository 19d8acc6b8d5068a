"""An edit without the words of the facts it was made from.

An edit in plain names its facts: subject, prompts, answers, what was logged of them. `redact` takes all of that out.
1. "plain" keeps it. "none" keeps how many facts there were. "hashed" also keeps a digest of every subject, of every
   prompt with its answer, and of every prompt the method looked at, so that one can ask whether a fact is in it.
2. A digest is scrypt (RFC 7914) under a random salt of the edit's own: equal facts of two edits look different, and
   each guess at one costs some 16 MB and 0.03 s. Guessing stays possible. That is all that hashes do.
3. Of settings and log, numbers stay; of words, only those under names known to hold no text (`_WORDS_OF_SETTINGS`),
   and none that the facts hold too. A method's new setting is left out until it is known to be harmless.

The numbers of the deltas stay as they are, and they point at the subject: see `surgery.verification.leak`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from surgery.errors import SurgeryError, check_choice
from surgery.fact import SLOT, Fact

if TYPE_CHECKING:
    from surgery.edit import Edit

Keep = Literal["plain", "hashed", "none"]
KEEPS = ("plain", "hashed", "none")
_SCRYPT = {"n": 2**14, "r": 8, "p": 1}
_WORDS_OF_SETTINGS = frozenset(
    {"dtype", "layers", "method", "mode", "name", "objective", "sites", "site", "solver", "spread", "kind"}
)


@dataclass(frozen=True)
class Hidden:
    """What is left of facts whose words were taken out.

    Attributes:
        keep: "hashed" or "none".
        count: how many facts there were.
        salt: of the digests, in hexadecimal; "" without digests.
        subjects: digests of the facts' subjects, sorted.
        facts: digests of each fact's prompt and answer, sorted.
        prompts: digests of the prompts the method looked at, sorted.
    """

    keep: Literal["hashed", "none"]
    count: int
    salt: str = ""
    subjects: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_choice("way to keep facts out of a file", self.keep, KEEPS[1:])
        if self.count < 0 or (self.keep == "hashed") != bool(self.salt):
            raise SurgeryError("an edit with hashed facts has a salt, and one without facts has none")

    def mentions(self, fact: Fact | str) -> bool:
        """Whether the facts held this one, or one of this subject.

        Raises:
            SurgeryError: nothing was kept to tell.
        """
        if self.keep == "none":
            raise SurgeryError("this edit keeps nothing of its facts, so nobody can tell; keep them hashed next time")
        kept = self.subjects if isinstance(fact, str) else self.facts
        return self._digests([_whole(fact)])[0] in kept

    def seen(self, prompts: Sequence[str]) -> tuple[str, ...]:
        """Those of some prompts that the method looked at, as far as digests were kept."""
        digests = self._digests(prompts) if self.prompts else []
        return tuple(text for text, digest in zip(prompts, digests, strict=False) if digest in self.prompts)

    def _digests(self, texts: Sequence[str]) -> list[str]:
        return _hashed(texts, bytes.fromhex(self.salt))

    def as_record(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Hidden:
        """What `as_record` gave."""
        fields: dict[str, Any] = {key: tuple(one) if isinstance(one, list) else one for key, one in record.items()}
        return cls(**fields)


def redact(edit: Edit, keep: Keep = "hashed") -> Edit:
    """The same change without the words of its facts, prompts, contexts and log.

    Verifying such an edit needs the facts from elsewhere. Deltas are not changed.

    Args:
        edit: the edit.
        keep: "plain" changes nothing; "hashed" lets one ask `mentions`; "none" keeps the number of facts.

    Raises:
        SurgeryError: there is no such way, or the edit's facts were taken out already.
    """
    check_keep(keep)
    if keep == "plain" or (edit.hidden is not None and keep == edit.hidden.keep):
        if edit.hidden is not None and keep == "plain":
            raise SurgeryError(f"this edit's facts are {edit.hidden.keep} already; make the edit again to keep them")
        return edit
    if edit.hidden is not None and keep == "hashed":
        raise SurgeryError("this edit keeps nothing of its facts, so there is nothing to hash; make the edit again")
    count = len(edit.facts) if edit.hidden is None else edit.hidden.count
    hidden = Hidden("none", count) if keep == "none" else _digested(edit)
    secret = _words(edit)
    labels = {fact.label: i + 1 for i, fact in enumerate(edit.facts)}
    log = [
        {**_cleaned(one, secret), **({"fact": labels[one["fact"]]} if one.get("fact") in labels else {})}
        for one in edit.log
    ]
    return dataclasses.replace(
        edit, facts=(), prompts=(), settings=_cleaned(edit.settings, secret), log=tuple(log), hidden=hidden
    )


def fact_digests(facts: Sequence[Fact], salt: str) -> list[str]:
    """Each fact's prompt and answer as a digest under a salt, both in hexadecimal."""
    return _hashed([_whole(fact) for fact in facts], bytes.fromhex(salt))


def check_keep(keep: str) -> None:
    """Whether there is such a way to keep facts, to be asked before anything that takes long.

    Raises:
        SurgeryError: there is not.
    """
    check_choice("way to keep facts", keep, KEEPS)


def _digested(edit: Edit) -> Hidden:
    salt = secrets.token_bytes(16)
    # a prompt behind a made-up context is nothing anybody would ask again
    settings = [edit.settings, *(one["settings"] for one in edit.settings.get("merged", ()))]
    contexts = [text for one in settings for text in one.get("contexts", ())]
    behind = tuple(one.partition(SLOT)[0] for one in contexts if one.partition(SLOT)[0])
    prompts = [text for text in edit.prompts if not (behind and text.startswith(behind))]
    return Hidden(
        "hashed",
        len(edit.facts),
        salt.hex(),
        subjects=tuple(sorted(_hashed([one.subject for one in edit.facts if one.subject], salt))),
        facts=tuple(sorted(_hashed([_whole(one) for one in edit.facts], salt))),
        prompts=tuple(sorted(_hashed(prompts, salt))),
    )


def mentions(facts: Iterable[Fact], fact: Fact | str) -> bool:
    """Whether some facts hold this one, or one of this subject, as `Hidden.mentions` would answer."""
    known = [one.subject if isinstance(fact, str) else one for one in facts if not isinstance(fact, str) or one.subject]
    return _plain(_whole(fact)) in [_plain(_whole(one)) for one in known]


def _whole(fact: Fact | str) -> str:
    return fact if isinstance(fact, str) else f"{fact.prompt}\0{fact.target}"


def _plain(text: str) -> str:
    # no difference that nobody sees: letters' case, and spaces
    return " ".join(text.casefold().split())


def _hashed(texts: Sequence[str], salt: bytes) -> list[str]:
    def digest(text: str) -> str:
        return hashlib.scrypt(_plain(text).encode("utf-8", "surrogatepass"), salt=salt, dklen=32, **_SCRYPT).hex()

    with ThreadPoolExecutor() as pool:
        own = dict(zip(unique := list(dict.fromkeys(texts)), pool.map(digest, unique), strict=True))
    return [own[text] for text in texts]


def _words(edit: Edit) -> frozenset[str]:
    """Every word of the facts, in small letters."""
    texts: list[str] = []
    for fact in edit.facts:
        texts += [fact.subject, fact.template, fact.target, fact.new_target or "", *fact.paraphrases, fact.id or ""]
        texts += fact.aliases
        texts += [text for one in fact.neighbours for text in (one.prompt, one.target)]
    return frozenset(word for text in texts for word in re.findall(r"\w+", text.casefold()))


def _cleaned(settings: Mapping[str, Any], secret: Iterable[str]) -> dict[str, Any]:
    kept = {}
    for name, value in settings.items():
        if not name.isidentifier() or name.casefold() in secret:
            continue
        if isinstance(value, Mapping):
            kept[name] = _cleaned(value, secret)
        elif (
            value is None
            or isinstance(value, (bool, int, float))
            or (name in _WORDS_OF_SETTINGS and _harmless(value, secret))
        ):
            kept[name] = value
    return kept


def _harmless(value: Any, secret: Iterable[str]) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_harmless(one, secret) for one in value)
    if isinstance(value, str):
        return re.fullmatch(r"[\w.\-]+", value) is not None and value.casefold() not in secret
    return value is None or isinstance(value, (bool, int, float))
