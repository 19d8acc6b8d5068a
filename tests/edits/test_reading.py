"""Reading rows with a shift by replay: the same log-probabilities and gradients as by full runs, for less."""

from __future__ import annotations

import itertools
import logging
from typing import Any

import pytest
import torch

import edits.values
from edits import Neutral, Replace, ValueSearch
from edits.reading import FullRuns, Reading, Replayed, Rows
from edits.values import find_values
from surgery import Fact, Model, Site
from surgery.hooks import frozen
from surgery.replay import CannotReplay

SITE = Site("L1.mlp")
CONTEXTS = ("{}", "It rained. {}", "They went to the old town and came back. {}")
NORMED = ("gemma2", "gemma3", "olmo2", "glm4")
OTHER = "They said that {} stood, for as long as anybody could remember, in"


@pytest.mark.parametrize("essence", ["{} is a", "About the {}"])
def test_replay_reads_what_full_runs_read(tiny: Model, tiny_fact: Fact, other_fact: Fact, essence: str) -> None:
    first = tiny_fact.replace(new_target="a city in the")
    groups = [
        Rows(tiny, [first, first.replace(template=OTHER, new_target="Berlin")], Replace(), CONTEXTS, essence),
        Rows(tiny, [other_fact], Replace(), CONTEXTS[::-1], essence),
        Rows(tiny, [other_fact.replace(subject="Anna", template=OTHER)], Replace(), CONTEXTS[1:], essence),
    ]
    depths = (1, 2)
    found = []
    for reader in (FullRuns(tiny, SITE, groups, depths), Replayed(tiny, SITE, groups, depths)):
        shifts = torch.linspace(-1, 1, tiny.anatomy.d_model).repeat(3, 1)
        shifts = (shifts * torch.tensor([[1.0], [-1.0], [2.0]])).requires_grad_()
        with frozen(tiny.hf), torch.enable_grad():
            read = reader(shifts)
            (gradient,) = torch.autograd.grad(
                sum(_sum(one, rows) for one, rows in zip(read, groups, strict=True)), shifts
            )
        with torch.no_grad():
            unshifted = reader(torch.zeros_like(shifts))[0].answers[0][-1]
        # a positive control: the shift matters
        assert float((read[0].answers[0][-1].detach() - unshifted).abs().max()) > 1e-2
        reader.keep([0, 2])
        with torch.no_grad():
            kept = reader(shifts[[0, 2]])
        found.append([*_tensors(read), gradient, *_tensors(kept)])
        for one, same in zip(_tensors([read[0], read[2]]), _tensors(kept), strict=True):
            torch.testing.assert_close(one, same, rtol=1e-3, atol=1e-3 * float(one.abs().max()))
    for plain, fast in zip(*found, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-3, atol=1e-3 * float(plain.abs().max()))


def test_the_edited_block_is_run_again_only_where_a_norm_follows_its_mlp(
    tiny: Model, tiny_fact: Fact, request: pytest.FixtureRequest
) -> None:
    reader = Replayed(tiny, SITE, [Rows(tiny, [tiny_fact], Replace(), CONTEXTS, "{} is a")])
    assert (reader._unshifted is None) == (request.node.callspec.params["tiny"] in NORMED)


def test_predictions_are_cut_apart_by_one_function_for_all_facts(
    tiny: Model, tiny_fact: Fact, other_fact: Fact
) -> None:
    """A cut of its own for each fact would make gradients of all predictions as many times as there are facts."""
    groups = [Rows(tiny, [fact], Replace(), CONTEXTS, "{} is a") for fact in (tiny_fact, other_fact)]
    with frozen(tiny.hf), torch.enable_grad():
        read = Replayed(tiny, SITE, groups, (1,))(torch.zeros(2, tiny.anatomy.d_model, requires_grad=True))
    for depth in (0, 1):
        cut = {one.answers[0][depth].grad_fn.next_functions[0][0] for one in read}  # type: ignore[union-attr]
        assert [node.name() for node in cut] == ["SplitWithSizesBackward0"]


def _sum(reading: Reading, rows: Rows) -> torch.Tensor:
    assert reading.essence is not None
    picked = [
        depth.gather(-1, ids[..., None]).sum()
        for depths, ids in zip(reading.answers, rows.answers, strict=True)
        for depth in depths
    ]
    return torch.stack([*picked, reading.essence[:7].sum()]).sum()


def _tensors(readings: list[Reading]) -> list[torch.Tensor]:
    each = [one for reading in readings for one in (*itertools.chain(*reading.answers), reading.essence)]
    return [one.detach() for one in each if one is not None]


def test_both_methods_find_the_same_value(toy: tuple[Model, list[Fact]]) -> None:
    model, facts = toy
    fact = facts[0].replace(new_target=next(one.target for one in facts if one.target != facts[0].target))
    for objective in (Replace(), Neutral(generic=("It", "This"))):
        plain, fast = (
            find_values(model, [fact], SITE, objective, CONTEXTS, ValueSearch(steps=15, step=0.05, method=method))[0]
            for method in ("plain", "fast")
        )
        assert float(torch.cosine_similarity(plain.shift, fast.shift, dim=0)) > 0.999
        assert fast.losses == pytest.approx(plain.losses, rel=1e-2, abs=1e-3)
        torch.testing.assert_close(fast.key, plain.key)


def test_a_model_that_cannot_be_replayed_is_searched_plainly_and_says_so(
    toy: tuple[Model, list[Fact]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, facts = toy
    fact = facts[0].replace(new_target=facts[1].target)

    def refuse(*args: Any) -> None:
        raise CannotReplay("blocks of glass cannot be called again")

    (wanted,) = find_values(model, [fact], SITE, Replace(), CONTEXTS, ValueSearch(steps=2, method="plain"))
    monkeypatch.setattr(edits.values, "Replayed", refuse)
    with caplog.at_level(logging.WARNING):
        (found,) = find_values(model, [fact], SITE, Replace(), CONTEXTS, ValueSearch(steps=2))
    assert "blocks of glass cannot be called again; searching by full runs" in caplog.text
    torch.testing.assert_close(found.shift, wanted.shift)
