"""Key statistics: the second moment itself, its diagonal plus low rank form, and that they fit their weights only."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny import tiny_model, tiny_tokenizer

from edits import SecondMoment, Statistics, find_statistics, fit_statistics, keep_statistics
from edits.statistics import cached_file
from surgery import Model, Site, SurgeryError, WrongWeights, load

TEXTS = ("The old tower stands in the town of Paris, by the river.", "It rained.", "She wrote a letter to her mother.")


def second_moment(model: Model, layer: int) -> torch.Tensor:
    """E[k k^T] in float64, text by text, so without padding."""
    keys: list[torch.Tensor] = []
    module = model.hf.get_submodule(model.anatomy.name(Site.at(layer, "mlp")))
    d_ff = model.anatomy.d_ff
    handle = module.register_forward_pre_hook(lambda _, args: keys.append(args[0].reshape(-1, d_ff).double()))
    with torch.no_grad():
        for text in TEXTS:
            model.hf(torch.tensor([model.tokenizer(text)["input_ids"]]))
    handle.remove()
    seen = torch.cat(keys)
    return seen.T @ seen / len(seen)


@pytest.fixture
def moment() -> SecondMoment:
    generator = torch.Generator().manual_seed(0)
    return SecondMoment(torch.rand(40, generator=generator) + 0.1, torch.randn(40, 5, generator=generator).contiguous())


def test_a_fit_is_the_second_moment_whatever_the_padding(tiny: Model) -> None:
    d_ff = tiny.anatomy.d_ff
    fitted = fit_statistics(tiny, TEXTS * 10, [1, 2], rank=d_ff, progress=False)
    assert fitted.tokens == 10 * sum(len(tiny.tokenizer(text)["input_ids"]) for text in TEXTS)
    for layer in (1, 2):
        wanted = second_moment(tiny, layer)
        error = (fitted.of(tiny, layer).dense() - wanted).abs().max()
        assert error < 1e-5 * wanted.abs().max()
    assert not torch.allclose(fitted.layers[1].dense(), fitted.layers[2].dense(), rtol=0.1)


def test_a_long_text_is_cut_into_pieces(gpt2: Model) -> None:
    long = " ".join(TEXTS * 20)
    fitted = fit_statistics(gpt2, [long, "  "], [1], rank=8, progress=False)
    assert fitted.tokens == len(gpt2.tokenizer(long)["input_ids"]) > gpt2.anatomy.max_positions


def test_low_rank_agrees_with_the_full_moment_on_the_diagonal_and_best_directions() -> None:
    generator = torch.Generator().manual_seed(1)
    keys = torch.randn(500, 30, generator=generator, dtype=torch.float64) * torch.linspace(0.1, 5, 30)
    full = keys.T @ keys / len(keys)
    small = SecondMoment.of(full, 4)
    assert small.factors.shape == (30, 4)
    torch.testing.assert_close(small.dense().diagonal(), full.diagonal(), rtol=1e-5, atol=1e-6)
    values = torch.linalg.eigvalsh(full)[-4:].flip(0)
    torch.testing.assert_close((small.factors.double() ** 2).sum(0), values, rtol=1e-5, atol=1e-6)
    assert (small.dense() - full).norm() < (SecondMoment.of(full, 1).dense() - full).norm()


def test_neurons_that_never_fire_are_kept_from_zero() -> None:
    full = torch.diag(torch.tensor([2.0, 1.0, 0.0, 0.0]))
    assert (SecondMoment.of(full, 2).diagonal > 0).all()


def test_solve_is_the_dense_solve(moment: SecondMoment) -> None:
    key = torch.randn(40, generator=torch.Generator().manual_seed(2))
    wanted = torch.linalg.solve(
        torch.diag(moment.diagonal.double()) + moment.factors.double() @ moment.factors.double().T, key.double()
    )
    found = moment.solve(key)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(found, key.double() / moment.diagonal.double(), rtol=0.1)


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan")])
def test_what_is_not_positive_definite_is_refused(moment: SecondMoment, wrong: float) -> None:
    with pytest.raises(SurgeryError, match="not positive definite"):
        SecondMoment(moment.diagonal.index_fill(0, torch.tensor([3]), wrong), moment.factors)


def test_factors_that_are_not_finite_are_refused(moment: SecondMoment) -> None:
    with pytest.raises(SurgeryError, match="not positive definite"):
        SecondMoment(moment.diagonal, moment.factors * float("inf"))


def test_a_file_brings_back_16_bits(gpt2: Model, gpt2_statistics: Statistics, tmp_path: Path) -> None:
    back = Statistics.load(gpt2_statistics.save(tmp_path / "new" / "statistics.safetensors"))
    assert (back.fingerprints, back.corpus, back.tokens) == (
        gpt2_statistics.fingerprints,
        gpt2_statistics.corpus,
        gpt2_statistics.tokens,
    )
    assert list(back.layers) == [0, 1]
    for layer, one in back.layers.items():
        assert torch.equal(one.diagonal, gpt2_statistics.layers[layer].diagonal)
        torch.testing.assert_close(one.factors, gpt2_statistics.layers[layer].factors, rtol=2**-10, atol=1e-7)
    assert back.of(gpt2, 1) is back.layers[1]


def test_a_damaged_or_foreign_or_absent_file_is_refused(gpt2_statistics: Statistics, tmp_path: Path) -> None:
    path = gpt2_statistics.save(tmp_path / "statistics.safetensors")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(SurgeryError, match="damaged or cut off"):
        Statistics.load(path)
    with pytest.raises(SurgeryError, match="no statistics file"):
        Statistics.load(tmp_path / "absent")
    (tmp_path / "foreign").write_text("something else entirely")
    with pytest.raises(SurgeryError, match="damaged or cut off"):
        Statistics.load(tmp_path / "foreign")


def test_other_weights_and_other_layers_are_refused(gpt2: Model, gpt2_statistics: Statistics) -> None:
    other = load((tiny_model("gpt2", seed=1), tiny_tokenizer()))
    with pytest.raises(WrongWeights, match="fitted on other weights"):
        gpt2_statistics.of(other, 1)
    with pytest.raises(SurgeryError, match="no key statistics for layer 3, only for 0, 1"):
        gpt2_statistics.of(gpt2, 3)
    with pytest.raises(SurgeryError, match="there is no layer 4"):
        fit_statistics(gpt2, TEXTS, [4], rank=2, progress=False)
    with pytest.raises(SurgeryError, match="at least one layer"):
        fit_statistics(gpt2, TEXTS, [], progress=False)


def test_too_little_text_is_refused(gpt2: Model) -> None:
    for texts in ([], ["", " "], ["It rained."]):
        with pytest.raises(SurgeryError, match="too few for statistics of rank 64; give 800"):
            fit_statistics(gpt2, texts, [1], progress=False)


def test_a_model_without_statistics_is_told_of_corpus(
    gpt2: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SURGERY_CACHE", str(tmp_path))
    with pytest.raises(SurgeryError, match="--corpus FILE"):
        find_statistics(gpt2, 1)


def test_fitted_statistics_are_found_again_in_the_cache_for_their_weights_and_layers_only(
    gpt2: Model, gpt2_statistics: Statistics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SURGERY_CACHE", str(tmp_path))
    path = gpt2_statistics.save(cached_file(gpt2.fingerprint))
    assert tmp_path in path.parents
    assert sorted(find_statistics(gpt2, 1).layers) == [0, 1]
    with pytest.raises(SurgeryError, match="layer 3"):
        find_statistics(gpt2, 3)
    dataclasses.replace(gpt2_statistics, fingerprints=("0" * 64,)).save(path)
    with pytest.raises(SurgeryError, match="--corpus FILE"):
        find_statistics(gpt2, 1)


def test_the_shipped_statistics_fit_the_default_model(
    smol: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SURGERY_CACHE", str(tmp_path))  # not those somebody fitted here
    shipped = find_statistics(smol, 4)
    assert sorted(shipped.layers) == list(range(1, 13))
    assert smol.fingerprint in shipped.fingerprints
    for one in shipped.layers.values():
        assert one.diagonal.shape == (smol.anatomy.d_ff,)
        assert one.factors.shape[1] == 64


def test_merged_statistics_keep_old_layers_and_take_new_ones(moment: SecondMoment, gpt2_statistics: Statistics) -> None:
    newer = dataclasses.replace(gpt2_statistics, layers={1: moment, 3: moment}, corpus="more", tokens=9)
    both = gpt2_statistics.merged(newer)
    assert list(both.layers) == [0, 1, 3]
    assert both.layers[0] is gpt2_statistics.layers[0]
    assert both.layers[1] is moment
    assert (both.corpus, both.tokens) == ("texts; more", 9)
    assert both.merged(newer).corpus == "texts; more"
    assert newer.merged(both) is both
    with pytest.raises(WrongWeights, match=r"statistics of other weights \(000000000000\) cannot join"):
        gpt2_statistics.merged(dataclasses.replace(newer, fingerprints=("0" * 64,)))


def test_kept_statistics_join_those_of_other_layers(
    gpt2: Model,
    gpt2_statistics: Statistics,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("SURGERY_CACHE", str(tmp_path))
    first, second = ({layer: gpt2_statistics.layers[layer]} for layer in (0, 1))
    keep_statistics(dataclasses.replace(gpt2_statistics, layers=first))
    path = keep_statistics(dataclasses.replace(gpt2_statistics, layers=second))
    assert sorted(find_statistics(gpt2, 0).layers) == [0, 1]
    assert path == cached_file(gpt2.fingerprint)
    assert not caplog.messages
    path.write_bytes(path.read_bytes()[:-9])  # a damaged file gives way
    keep_statistics(dataclasses.replace(gpt2_statistics, layers=second))
    assert "damaged or cut off" in caplog.text
    assert sorted(find_statistics(gpt2, 1).layers) == [1]


def test_files_without_scales_are_still_read(gpt2_statistics: Statistics, tmp_path: Path) -> None:
    one = gpt2_statistics.layers[1]
    about = {"format": "knowledge-surgery statistics 1", "fingerprints": ["a"], "corpus": "old", "tokens": 5}
    tensors = {"1.diagonal": one.diagonal, "1.factors": one.factors.half()}
    save_file(tensors, tmp_path / "old", metadata={"statistics": json.dumps(about)})
    back = Statistics.load(tmp_path / "old")
    assert torch.equal(back.layers[1].factors, one.factors.half().float())
    save_file(tensors, tmp_path / "newest", metadata={"statistics": json.dumps(about | {"format": "statistics 9"})})
    with pytest.raises(SurgeryError, match="holds no key statistics"):
        Statistics.load(tmp_path / "newest")
