"""What a verification costs, counted by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from by_hand import Toy, toy_edit

from surgery import Model, verify
from surgery.predict import rate
from surgery.verification.costs import Meter, peak_memory

TOYS = ("llama",)


def test_a_meter_counts_positions_and_seconds_and_leaves_nothing(toy: Toy, unchanged: Callable[[Model], None]) -> None:
    model, facts = toy
    unchanged(model)
    meter, prompt, target = Meter(), facts[0].prompt, facts[0].target
    length = len(model.tokenizer(f"{prompt} {target}")["input_ids"])
    with meter.measuring(model):
        with meter.part("asking"):
            rate(model, [(prompt, target), (prompt, target)])
        with meter.part("asking"), pytest.raises(ZeroDivisionError), meter.part("failing"):
            raise ZeroDivisionError
    assert meter.costs.tokens in (2 * length, 2 * (length - 1))  # the answer's last token need not be read
    rate(model, [(prompt, target)])
    assert meter.costs.tokens <= 2 * length
    assert set(meter.costs.seconds) == {"asking", "failing"}
    assert meter.costs.seconds["asking"] >= meter.costs.seconds["failing"] >= 0
    with pytest.raises(KeyError), meter.measuring(model):
        raise KeyError


def test_a_report_says_what_it_cost(toy: Toy) -> None:
    report = verify(toy[0], toy_edit(toy, size=1.0), texts=["The", "They"])
    assert set(report.costs.seconds) == {"probes", "drift", "attacks", "side effects", "leak"}
    assert sum(report.costs.seconds.values()) <= report.seconds
    assert sum(report.battery.seconds.values()) <= report.costs.seconds["attacks"]
    assert report.costs.tokens > 100
    assert report.as_record()["costs"]["tokens"] == report.costs.tokens


def test_memory_is_more_than_what_is_held_now() -> None:
    held = bytearray(10**7)
    most = peak_memory()
    assert most is None or most > len(held)
