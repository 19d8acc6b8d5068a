"""Attacks by name. A new one is one file and one line here: then it is in its profile, the report and the tests."""

from __future__ import annotations

from surgery.verification.attack import PROFILES, Attack, Profile
from surgery.verification.attacks.hops import Reversed, TwoHops
from surgery.verification.attacks.jailbreaks import Jailbreaks
from surgery.verification.attacks.languages import OtherLanguages
from surgery.verification.attacks.lens import LogitLens, ProbabilityDelta
from surgery.verification.attacks.paraphrases import Paraphrases
from surgery.verification.attacks.sampling import Sampling
from surgery.verification.attacks.spaces import StraySpaces
from surgery.verification.attacks.superficial import AnswerPrefixes

ATTACKS: dict[str, type[Attack]] = {
    one.name: one
    for one in (
        Paraphrases,
        LogitLens,
        ProbabilityDelta,
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
