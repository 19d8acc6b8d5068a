"""UltraEdit: its normalisation, its solve and one whole edit by hand, and what a single position does to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from answers_by_hand import answer_ids, blamed, ridge, standardised

from edits import UltraEdit
from edits.ultra import Running, spread_over
from surgery import Fact, Model, Site, SurgeryError
from surgery.predict import rate

SITE = Site("L1.mlp")
TEXTS = ("The old tower stands in the town of Paris.", "She said that it rained in Rome.")


@pytest.fixture(scope="module")
def numbers() -> np.random.RandomState:
    return np.random.RandomState(0)


def test_statistics_over_batches_are_those_of_all_rows_at_once(numbers: np.random.RandomState) -> None:
    rows = numbers.randn(9, 4) * 3 + 5
    rows[:, 2] = 7.0  # a coordinate that never changes
    running = Running()
    for part in (rows[:1], rows[1:3], rows[3:]):
        running.add(torch.tensor(part))
    np.testing.assert_allclose(running.normalised(torch.tensor(rows)).numpy(), standardised(rows, rows), atol=1e-12)
    assert (running.normalised(torch.tensor(rows))[:, 2] == 0).all()


def test_the_small_system_gives_what_the_large_one_does(numbers: np.random.RandomState) -> None:
    keys, values = numbers.randn(3, 11), numbers.randn(3, 5)
    left, right = spread_over(torch.tensor(keys), torch.tensor(values))
    assert (left.shape, right.shape) == ((5, 3), (11, 3))
    np.testing.assert_allclose((left @ right.T).numpy(), ridge(keys, values), atol=1e-12)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_edit_of_one_position_by_hand(by_name: Callable[[str], Model], name: str, tiny_fact: Fact) -> None:
    model, fact = by_name(name), tiny_fact.replace(new_target="the")
    module = model.anatomy.name(SITE)
    edit = UltraEdit(texts=TEXTS, step=0.5, progress=False)(model, fact, [SITE])
    asked, answer = list(model.tokenizer(fact.prompt)["input_ids"]), answer_ids(model, fact.prompt, "the")
    assert len(answer) == 1
    key, gradient, own = (rows[-1] for rows in blamed(model, module, asked + answer, len(asked)))
    keys, gradients, sizes = Running(), Running(), [own.square().mean().sqrt()]
    for text in TEXTS:
        parts = blamed(model, module, list(model.tokenizer(text)["input_ids"]), 1)
        keys.add(parts[0])
        gradients.add(parts[1])
        sizes += parts[2].square().mean(1).sqrt()
    keys.add(key[None])
    gradients.add(gradient[None])
    size = sorted(sizes)[(len(sizes) - 1) // 2]
    normal = keys.normalised(key[None])[0]
    value = -0.5 * size * float(normal.square().mean()) * gradients.normalised(gradient[None])[0]
    wanted = torch.outer(value, key) / (key.square().sum() + 1)
    assert edit.deltas[0].rank == 1
    largest = float(wanted.abs().max())
    torch.testing.assert_close(edit.deltas[0].dense().double(), wanted, rtol=2e-3, atol=2e-3 * largest)


def test_normalised_by_itself_alone_one_fact_is_no_edit_at_all(
    gpt2: Model, tiny_fact: Fact, unchanged: Callable[[Model], None]
) -> None:
    unchanged(gpt2)
    fact = tiny_fact.replace(new_target="the")
    published, begun = (UltraEdit(texts=texts, progress=False)(gpt2, fact, [SITE]) for texts in ((), TEXTS))
    assert published.deltas[0].norm == 0
    assert begun.deltas[0].norm > 0


def test_a_fact_becomes_likelier_in_every_batch(
    gpt2: Model, tiny_fact: Fact, other_fact: Fact, unchanged: Callable[[Model], None]
) -> None:
    unchanged(gpt2)
    facts = [tiny_fact, other_fact]
    asked = [(fact.prompt, str(fact.new_target)) for fact in facts]
    sites = [Site(f"L{layer}.mlp") for layer in (1, 2, 3)]
    before = rate(gpt2, asked)
    together, apart = (UltraEdit(batch=n, step=3.0, progress=False)(gpt2, facts, sites) for n in (2, 1))
    for edit in (together, apart):
        assert [delta.rank for delta in edit.deltas] == [together.deltas[0].rank] * 3
        with edit.applied(gpt2):
            for now, was in zip(rate(gpt2, asked), before, strict=True):
                assert now.probability > was.probability
    assert not torch.allclose(together.deltas[0].dense(), apart.deltas[0].dense())


def test_a_later_batch_that_is_broken_off_is_undone(
    gpt2: Model, tiny_fact: Fact, other_fact: Fact, unchanged: Callable[[Model], None]
) -> None:
    unchanged(gpt2)
    old = gpt2.anatomy.matrix(SITE).clone()

    def interrupt(module: Any, args: Any, output: Any) -> None:
        if not torch.equal(gpt2.anatomy.matrix(SITE), old):  # the first batch is written, for the second to see
            raise KeyboardInterrupt

    handle = gpt2.hf.get_input_embeddings().register_forward_hook(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            UltraEdit(batch=1, progress=False)(gpt2, [tiny_fact, other_fact], [SITE])
    finally:
        handle.remove()


def test_layers_are_those_of_the_published_list_and_settings_are_checked(gpt2: Model) -> None:
    assert UltraEdit().sites(gpt2) == [Site("L3.mlp")]  # 0.65 to 0.95 of four layers
    for settings in ({"step": 0.0}, {"batch": 0}, {"depth": (0.9, 0.5)}):
        with pytest.raises(SurgeryError, match="batch and step must be above 0, and depth two rising numbers"):
            UltraEdit(**settings)
