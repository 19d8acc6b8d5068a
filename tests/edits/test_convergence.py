"""Whether the text was enough: the held out response by a plain loop, its limit, judgement and figure by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from passages import PASSAGES
from sweeping import Toy, sentences

import edits
from edits import Convergence, SecondMoment, Statistics, fit_statistics, fit_with_convergence
from edits.keys import read_ends, subject_rows
from edits.pieces import read_pieces
from surgery import Fact, Model, Site, SurgeryError

TEXTS = PASSAGES * 2
RANK = 4


@pytest.fixture(scope="module")
def fitted(gpt2: Model, tiny_fact: Fact) -> tuple[Statistics, Convergence]:
    return fit_with_convergence(gpt2, TEXTS, [2, 0], facts=[tiny_fact], rank=RANK, progress=False)


@pytest.fixture
def by_hand() -> Convergence:
    """Two layers whose response is 0.01 + 1 / tokens and 0.02 + 40 / tokens for two facts that differ by 0.004."""
    tokens = np.array([1000, 2000, 4000])
    mean = np.stack([0.01 + 1 / tokens, 0.02 + 40 / tokens])
    return Convergence(
        layers=(3, 4),
        tokens=(1000, 2000, 4000),
        responses=mean[..., None] + np.array([-0.002, 0.002]),
        without=np.array([[0.03, 0.05], [0.06, 0.10]]),
        held_out=500,
        width=100,
        model="a model",
    )


def test_statistics_are_the_same_with_and_without(gpt2: Model, fitted: tuple[Statistics, Convergence]) -> None:
    plain = fit_statistics(gpt2, TEXTS, [0, 2], rank=RANK, progress=False)
    assert list(plain.layers) == list(fitted[0].layers) == [0, 2]
    for layer, one in plain.layers.items():
        assert torch.equal(one.factors, fitted[0].layers[layer].factors)
        assert torch.equal(one.diagonal, fitted[0].layers[layer].diagonal)


@torch.no_grad()
def test_responses_are_those_of_a_plain_loop(
    gpt2: Model, tiny_fact: Fact, fitted: tuple[Statistics, Convergence]
) -> None:
    found = fitted[1]
    pieces = read_pieces(gpt2, TEXTS, width=256, tokens=None)
    rows = [row for batch in pieces.batches for row in batch]
    ends = [sum(map(len, pieces.batches[:mark])) for mark in pieces.marks]
    assert found.held_out == sum(map(len, rows[ends[-1] :]))
    assert found.tokens == tuple(sum(map(len, rows[:end])) for end in ends)
    for i, layer in enumerate(found.layers):
        module = gpt2.hf.get_submodule(gpt2.anatomy.name(Site.at(layer, "mlp")))
        seen: list[torch.Tensor] = []
        handle = module.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0][0].double()))
        for row in rows:
            gpt2.hf(torch.tensor([row]))
        handle.remove()
        key = read_ends(gpt2, subject_rows(gpt2, [tiny_fact], ("{}",)), Site.at(layer, "mlp"))[0][0].double()
        held = torch.cat(seen[ends[-1] :])
        for j, end in enumerate(ends):
            keys = torch.cat(seen[:end])
            along = SecondMoment.of(keys.T @ keys / len(keys), RANK).solve(key)
            wanted = ((held @ along / (key @ along)) ** 2).mean().sqrt()
            assert found.responses[i, j, 0] == pytest.approx(float(wanted), rel=1e-4)
        without = ((held @ key / (key @ key)) ** 2).mean().sqrt()
        assert found.without[i, 0] == pytest.approx(float(without), rel=1e-4)


def test_statistics_of_a_trained_model_lower_the_response(toy: Toy) -> None:
    model, facts = toy
    found = fit_with_convergence(model, sentences(facts), [1], facts=facts[:8], progress=False)[1]
    assert found.mean[0, -1] < found.mean[0, 0]
    assert found.mean[0, -1] < found.without[0].mean()


def test_the_limit_is_exact_where_the_rest_falls_with_tokens(by_hand: Convergence) -> None:
    assert by_hand.mean[0] == pytest.approx([0.011, 0.0105, 0.01025])
    assert by_hand.limit == pytest.approx([0.01, 0.02])
    assert by_hand.change == pytest.approx([0.00025 / 0.0105, 0.01 / 0.04])


def test_enough_is_less_than_two_percent_at_every_layer(by_hand: Convergence) -> None:
    assert not by_hand.enough
    assert by_hand.told() == [
        "layer 3: held out response 0.0110 from 1000 tokens, 0.0103 from 4000, 0.0100 expected of endless text, 0.0400 "
        "without",
        "layer 4: held out response 0.0600 from 1000 tokens, 0.0300 from 4000, 0.0200 expected of endless text, 0.0800 "
        "without",
        "give more text: the last doubling changed the response by up to 25.0%, 2% is the limit",
    ]
    flat = dataclasses.replace(by_hand, responses=by_hand.responses * 0 + np.array([0.02, 0.0201, 0.0199])[:, None])
    assert flat.enough
    assert flat.told()[-1] == "enough text: the last doubling changed the response by up to 1.0%, 2% is the limit"
    worse = dataclasses.replace(by_hand, responses=by_hand.responses * 0 + np.array([0.02, 0.02, 0.021])[:, None])
    assert not worse.enough


def test_the_record_is_plain_json(by_hand: Convergence) -> None:
    record = by_hand.as_record()
    assert record["tokens"] == [1000, 2000, 4000]
    assert record["response"][1] == pytest.approx([0.06, 0.04, 0.03])
    assert record["standard_error"][0] == pytest.approx([0.002] * 3)
    assert (record["enough"], record["facts"], record["held_out"], record["d_ff"]) == (False, 2, 500, 100)


def test_the_figure_draws_shares_of_the_response_without(by_hand: Convergence) -> None:
    figure, mine = plt.subplots()
    assert by_hand.plot(mine) is mine
    assert plt.get_fignums() == [figure.number]
    solid = {line.get_label(): line.get_ydata() for line in mine.get_lines() if line.get_label()[0] != "_"}
    assert list(solid) == ["layer 3", "layer 4"]
    assert solid["layer 4"] == pytest.approx([0.75, 0.5, 0.375])
    assert mine.get_title() == "Key statistics of a model: give more text"
    assert "500 others with 2 edits" in mine.get_xlabel()
    assert "10 x d_ff = 1000 tokens" in mine.get_xlabel()
    assert by_hand.plot() is not mine


def test_a_stopped_fit_goes_on_with_its_convergence(
    gpt2: Model,
    tiny_fact: Fact,
    fitted: tuple[Statistics, Convergence],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("edits.checkpoint.SECONDS", 0)
    monkeypatch.setattr("edits.fitting.FITTED_BYTES", 1)
    products, left = edits.fitting._products, [7, 7, 100]
    kept = tmp_path / "fit.partial"

    def read(*given: object) -> object:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return products(*given)  # type: ignore[arg-type]

    monkeypatch.setattr("edits.fitting._products", read)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            fit_with_convergence(gpt2, TEXTS, [0, 2], facts=[tiny_fact], rank=RANK, progress=False, resume=kept)
        left.pop(0)
    again = fit_with_convergence(gpt2, TEXTS, [0, 2], facts=[tiny_fact], rank=RANK, progress=False, resume=kept)
    assert again[1].tokens == fitted[1].tokens
    assert np.array_equal(again[1].responses, fitted[1].responses)
    assert np.array_equal(again[1].without, fitted[1].without)
    assert torch.equal(again[0].layers[2].factors, fitted[0].layers[2].factors)
    assert not kept.exists()


def test_text_that_cannot_be_halved_is_refused(gpt2: Model, tiny_fact: Fact) -> None:
    for texts in (TEXTS[:9], [" ".join(TEXTS)]):
        with pytest.raises(
            SurgeryError, match="too few to hold a tenth out and halve the rest; give 800 in at least 10"
        ):
            fit_with_convergence(gpt2, texts, [1], facts=[tiny_fact], rank=RANK, progress=False)
    with pytest.raises(SurgeryError, match="there are no facts to measure"):
        fit_with_convergence(gpt2, TEXTS, [1], facts=[], progress=False)


def test_responses_of_another_shape_are_refused(by_hand: Convergence) -> None:
    with pytest.raises(SurgeryError, match="do not fit"):
        dataclasses.replace(by_hand, tokens=(1000, 2000))
    with pytest.raises(SurgeryError, match="do not fit"):
        dataclasses.replace(by_hand, responses=by_hand.responses * np.nan)
