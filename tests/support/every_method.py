"""What the tests of all registered editing methods share."""

from __future__ import annotations

from collections.abc import Callable

from edits import Method
from edits.spread import adds_as_is
from surgery import Fact, Model, Site

SITE = Site("L1.mlp")
Quick = Callable[..., Method]
"""Makes a method with small settings."""


def sites_of(method: Method, model: Model) -> list[Site]:
    """Where a method edits in these tests: two layers, where it spreads a change over several and the model lets it."""
    several = getattr(method, "layers", 1) > 1 and adds_as_is(model, SITE)
    return [Site("L0.mlp"), SITE] if several else [SITE]


def able(method: Method, *facts: Fact) -> list[Fact]:
    """The facts as a method can edit them: without new answers where it only removes."""
    return [fact.replace(new_target=None) for fact in facts] if method.name == "zero-neurons" else list(facts)
