"""Names of places, and windows of layers."""

from __future__ import annotations

import pytest

from surgery import Neuron, Site, SurgeryError
from surgery.site import KINDS, Kind, window


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("layer", "position"), [(0, None), (12, 0), (3, 41)])
def test_a_site_is_its_name(layer: int, kind: Kind, position: int | None) -> None:
    site = Site.at(layer, kind, position)
    assert (site.layer, site.kind, site.position) == (layer, kind, position)
    assert str(site) == f"L{layer}.{kind}" + ("" if position is None else f"@{position}")
    assert Site(str(site)) == site


@pytest.mark.parametrize(
    "name", ["", "L4", "4.mlp", "L4.mlps", "L-1.mlp", "L4.mlp@", "L4.mlp@-1", " L4.mlp", "L4.mlp\n"]
)
def test_other_names_are_refused_with_an_example(name: str) -> None:
    with pytest.raises(SurgeryError, match=r"names no site; write one like 'L4\.mlp', with state, mlp, attention"):
        Site(name)


def test_neurons_sort_by_layer_then_index() -> None:
    assert str(Neuron(3, 17)) == "L3.n17"
    assert sorted([Neuron(2, 1), Neuron(1, 9), Neuron(1, 2)]) == [Neuron(1, 2), Neuron(1, 9), Neuron(2, 1)]


@pytest.mark.parametrize(
    ("center", "width", "expected"),
    [
        (5, 1, [5]),
        (5, 2, [4, 5]),
        (5, 3, [4, 5, 6]),
        (5, 10, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        (0, 4, [0, 1]),
        (9, 5, [7, 8, 9]),
        (0, 100, list(range(10))),
    ],
)
def test_a_window_is_clipped_at_both_ends(center: int, width: int, expected: list[int]) -> None:
    assert list(window(center, width, 10)) == expected


def test_a_window_without_layers_is_refused() -> None:
    with pytest.raises(SurgeryError, match="a window of 0 layers"):
        window(5, 0, 10)
