"""Attacks by name. A new one is one file and one line here: then it is in its profile, the report and the tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from surgery.errors import check_choice
from surgery.verification.attack import PROFILES, Attack, Profile
from surgery.verification.attacks.ablation import DirectionAblation
from surgery.verification.attacks.choice import MultipleChoice
from surgery.verification.attacks.hops import Reversed, TwoHops
from surgery.verification.attacks.jailbreaks import Jailbreaks
from surgery.verification.attacks.languages import OtherLanguages
from surgery.verification.attacks.lens import LogitLens, ProbabilityDelta
from surgery.verification.attacks.paraphrases import Paraphrases
from surgery.verification.attacks.quantised import NF4, Int4, Int8
from surgery.verification.attacks.relearning import RelatedRelearning, UnrelatedRelearning
from surgery.verification.attacks.sampling import Sampling
from surgery.verification.attacks.spaces import StraySpaces
from surgery.verification.attacks.superficial import AnswerPrefixes

ATTACKS: dict[str, type[Attack]] = {
    one.name: one
    for one in (
        Paraphrases,
        LogitLens,
        ProbabilityDelta,
        Int8,
        Int4,
        NF4,
        RelatedRelearning,
        UnrelatedRelearning,
        DirectionAblation,
        Jailbreaks,
        MultipleChoice,
        AnswerPrefixes,
        StraySpaces,
        Sampling,
        Reversed,
        TwoHops,
        OtherLanguages,
    )
}


def attacks_of(profile: Profile, seed: int = 0) -> tuple[Attack, ...]:
    """The attacks of a profile with their defaults: its own and those of the lighter ones.

    Args:
        profile: which.
        seed: of what they draw; 0 for what each draws by default.
    """
    weight = PROFILES.index(profile)
    return tuple(_seeded(one(), seed) for one in ATTACKS.values() if PROFILES.index(one.profile) <= weight)


def attacks_named(names: Sequence[str], seed: int = 0) -> tuple[Attack, ...]:
    """The attacks of these names with their defaults, each once.

    Args:
        names: which.
        seed: of what they draw; 0 for what each draws by default.

    Raises:
        SurgeryError: there is none of a name; the message lists those there are.
    """
    chosen = list(dict.fromkeys(name.strip() for name in names))
    for name in chosen:
        check_choice("attack", name, ATTACKS)
    return tuple(_seeded(ATTACKS[name](), seed) for name in chosen)


def _seeded(attack: Attack, seed: int) -> Attack:
    """The attack so many seeds on from its default; one that takes `tries` seeds in a row shares none with another."""
    default = getattr(attack, "seed", None)
    if default is None:
        return attack
    moved = (default + seed * getattr(attack, "tries", 1)) % 2**31
    return dataclasses.replace(attack, seed=moved)  # type: ignore[type-var]  # attacks are dataclasses
