"""A method with each layer's statistics, and a method that has none: in a layer sweep too."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from sweeping import SHIFT, Toy

from edits import ConstrainedFineTune, FineTune, sweep
from edits.layer_statistics import LayerStatistics
from surgery import Fact, Model, SurgeryError


def test_a_method_without_statistics_edits_every_layer_as_it_is(gpt2: Model) -> None:
    method = FineTune(steps=2)
    found = LayerStatistics(gpt2, method, [3, 0, 3], None)
    assert (found.layers, found.left_out) == ((0, 3), ())
    assert found.method(3) is method
    assert found.digest(0) == found.digest(3)
    with pytest.raises(SurgeryError, match="there is no layer 9"):
        LayerStatistics(gpt2, method, [9], None)
    with pytest.raises(SurgeryError, match="ft-l uses no key statistics; leave the texts to fit them on away"):
        LayerStatistics(gpt2, ConstrainedFineTune(), [0], ["some text"])


def test_its_layers_are_swept_without_any_text(toy: Toy, facts: list[Fact], unchanged: Callable[[Model], None]) -> None:
    model = toy[0]
    unchanged(model)
    found = sweep(model, facts[:1], method=FineTune(progress=False), neighbour_shift=SHIFT, progress=False)
    assert (found.layers, found.left_out, found.method) == ((0, 1, 2, 3), (), "ft-m")
    assert found.mean("efficacy").tolist() == [1.0] * 4
    assert all(1 <= steps <= 25 and not math.isnan(steps) for steps in found.mean("steps"))
    with pytest.raises(SurgeryError, match="ft-m uses no key statistics"):
        sweep(model, facts[:1], method=FineTune(), texts=["some text"], progress=False)
