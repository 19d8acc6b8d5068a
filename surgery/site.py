"""Where in a transformer: a site (one layer's state, mlp or attention output), a neuron, a window of layers."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal, get_args

from surgery.errors import SurgeryError

Kind = Literal["state", "mlp", "attention"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_SITE = re.compile(r"L(\d+)\.(state|mlp|attention)(?:@(\d+))?")


@dataclass(frozen=True)
class Site:
    """A place named as `"L4.mlp"` (layer 4, its mlp) or `"L4.mlp@3"` (there, at token position 3).

    `state` is a block's output; `mlp` and `attention` are what these two add to the residual stream. Layers count
    from 0.

    Raises:
        SurgeryError: the name is not of that form.
    """

    name: str
    layer: int = field(init=False, repr=False)
    kind: Kind = field(init=False, repr=False)
    position: int | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        match = _SITE.fullmatch(self.name)
        if match is None:
            raise SurgeryError(f"{self.name!r} names no site; write one like 'L4.mlp', with {', '.join(KINDS)}")
        layer, kind, position = match.groups()
        object.__setattr__(self, "layer", int(layer))
        object.__setattr__(self, "kind", kind)
        object.__setattr__(self, "position", None if position is None else int(position))

    @classmethod
    def at(cls, layer: int, kind: Kind, position: int | None = None) -> Site:
        """The site of these parts."""
        return cls(f"L{layer}.{kind}" + ("" if position is None else f"@{position}"))

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, order=True)
class Neuron:
    """One hidden unit of an mlp: an input of the down-projection of `layer`."""

    layer: int
    index: int

    def __str__(self) -> str:
        return f"L{self.layer}.n{self.index}"


def window(center: int, width: int, layers: int) -> range:
    """Layers of a window of `width` around `center`: [l - w//2, l - (-w//2)), clipped at both ends.

    The published code's window, which for an even width reaches one layer further down than up.

    Raises:
        SurgeryError: the width is below 1.
    """
    if width < 1:
        raise SurgeryError(f"a window of {width} layers restores nothing; give a width of at least 1")
    return range(max(0, center - width // 2), min(layers, center - (-width // 2)))
