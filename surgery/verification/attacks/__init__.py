"""Attacks by name. A new one is one file and one line here: then it is in its profile, the report and the tests."""

from __future__ import annotations

from collections.abc import Sequence

from surgery.errors import check_choice
from surgery.verification.attack import PROFILES, Attack, Profile
from surgery.verification.attacks.ablation import DirectionAblation
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
        AnswerPrefixes,
        StraySpaces,
        Sampling,
        Reversed,
        TwoHops,
        OtherLanguages,
    )
}


def attacks_of(profile: Profile) -> tuple[Attack, ...]:
    """The attacks of a profile with their defaults: its own and those of the lighter ones."""
    weight = PROFILES.index(profile)
    return tuple(one() for one in ATTACKS.values() if PROFILES.index(one.profile) <= weight)


def attacks_named(names: Sequence[str]) -> tuple[Attack, ...]:
    """The attacks of these names with their defaults, each once.

    Raises:
        SurgeryError: there is none of a name; the message lists those there are.
    """
    chosen = list(dict.fromkeys(name.strip() for name in names))
    for name in chosen:
        check_choice("attack", name, ATTACKS)
    return tuple(ATTACKS[name]() for name in chosen)
