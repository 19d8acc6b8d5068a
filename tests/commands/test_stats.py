"""`surgery stats`: text of every kind, layers by word, a figure beside the file, going on after a stop."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import torch
from command_line import Folder, Surgery, printed
from pyarrow import parquet

import edits
from edits import Statistics, find_statistics, recommended_sites
from surgery import Model


@pytest.fixture
def lines(given: Folder) -> list[str]:
    return Path(given["corpus.txt"]).read_text().splitlines()


@pytest.fixture
def stats(given: Folder, surgery: Surgery) -> Surgery:
    def run(*arguments: str) -> int:
        return surgery("stats", "--model", given["model"], "--rank", "8", "--out", "new/statistics", *arguments)

    return run


def test_a_text_file_gives_statistics_numbers_and_a_figure(
    stats: Surgery, given: Folder, model: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stats("--corpus", given["corpus.txt"], "--layers", "1,2", "--json") == 0
    record, err = printed(capsys)
    assert not err
    wanted = 10 * model.anatomy.d_ff
    assert wanted <= record["tokens"] < wanted + 30
    assert (record["layers"], record["corpus"]) == ([1, 2], "corpus.txt")
    assert record["bytes"] == Path("new/statistics").stat().st_size
    assert all(0 < smallest < largest for smallest, largest in record["eigenvalues"].values())
    found = record["convergence"]
    assert found["held_out"] + found["tokens"][-1] == record["tokens"]
    assert [len(row) for row in found["response"]] == [len(found["tokens"])] * 2
    assert record["figure"] == "new/statistics.png"
    assert sorted(path.name for path in Path("new").iterdir()) == ["statistics", "statistics.png"]
    assert Path("new/statistics.png").stat().st_size > 5000
    kept, written = find_statistics(model, 2), Statistics.load("new/statistics")
    assert torch.equal(kept.layers[2].factors, written.layers[2].factors)


def test_somebody_who_reads_along_is_told_whether_it_was_enough(
    stats: Surgery, given: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stats("--corpus", given["corpus.txt"], "--layers", "1", "--figure", "other.svg") == 0
    out = capsys.readouterr().out
    assert "layer 1: positive definite, eigenvalues" in out
    assert "the last doubling changed the response by up to" in out
    assert "other.svg" in out
    assert Path("other.svg").read_text().startswith("<?xml")


def test_too_little_text_does_not_take_the_place_of_more(
    stats: Surgery, given: Folder, model: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = 10 * model.anatomy.d_ff
    assert stats("--corpus", given["corpus.txt"], "--layers", "1") == 0
    before = find_statistics(model, 1)
    assert stats("--corpus", given["corpus.txt"], "--layers", "1,2", "--tokens", "60", "--no-convergence") == 0
    capsys.readouterr()
    # a layer that had none gets what there is; its own again, more text or less
    assert torch.equal(find_statistics(model, 1).layers[1].factors, before.layers[1].factors)
    few = find_statistics(model, 2)
    assert few.tokens < wanted
    assert stats("--corpus", given["corpus.txt"], "--layers", "1,2", "--tokens", "40", "--no-convergence") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert f"layer 1: not kept for later edits, whose statistics are of {few.tokens} tokens; give {wanted} or" in out
    assert "layer 2: not kept for later edits" in out
    assert "0 of 2 layers also kept" in out
    assert stats("--corpus", given["corpus.txt"], "--layers", "1,2", "--json") == 0
    assert printed(capsys)[0]["kept"] == [1, 2]
    assert find_statistics(model, 2).tokens >= wanted


def test_without_convergence_the_statistics_are_the_same(
    stats: Surgery, given: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stats("--corpus", given["corpus.txt"], "--layers", "1") == 0
    first = Statistics.load("new/statistics").layers[1]
    Path("new/statistics.png").unlink()
    capsys.readouterr()
    assert stats("--corpus", given["corpus.txt"], "--layers", "1", "--no-convergence", "--json") == 0
    assert "convergence" not in printed(capsys)[0]
    assert torch.equal(Statistics.load("new/statistics").layers[1].factors, first.factors)
    assert [path.name for path in Path("new").iterdir()] == ["statistics"]


def test_layers_by_word_and_layers_already_kept(stats: Surgery, given: Folder, model: Model) -> None:
    assert stats("--corpus", given["corpus.txt"], "--layers", "3", "--quiet") == 0
    assert stats("--corpus", given["corpus.txt"], "--tokens", "500", "--layers", "0", "--quiet") == 0
    assert list(Statistics.load("new/statistics").layers) == [0]
    assert sorted(find_statistics(model, 3).layers) == [0, 3]
    assert find_statistics(model, 3).tokens < 530
    assert stats("--corpus", given["corpus.txt"], "--quiet") == 0
    unasked = {site.layer for site in [*recommended_sites(model, 1), *recommended_sites(model, 4)]}
    assert set(Statistics.load("new/statistics").layers) == unasked
    assert stats("--corpus", given["corpus.txt"], "--layers", "all", "--no-convergence", "--quiet") == 0
    assert list(Statistics.load("new/statistics").layers) == [0, 1, 2, 3]


def test_lines_of_json_and_data_sets_give_the_same_text(
    stats: Surgery, given: Folder, lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    everything = ("--tokens", "1000000", "--layers", "1", "--no-convergence", "--quiet")
    assert stats("--corpus", given["corpus.txt"], *everything) == 0
    wanted = Statistics.load("new/statistics")
    rows = [{"text": "not this", "said": line} for line in lines]
    Path("lines.jsonl").write_text("\n\n".join(json.dumps(row) for row in rows))
    Path("set").mkdir()
    Path("set/test.jsonl").write_text("\n".join(json.dumps(row) for row in [*rows, {"text": "x", "said": None}]))
    Path("set/train.jsonl").write_text(json.dumps({"text": "one line", "said": "is too few"}))
    Path("columns").mkdir()
    parquet.write_table(pyarrow.table({"text": lines}), "columns/train.parquet")
    for source in (
        ("--corpus", "lines.jsonl", "--column", "said"),
        ("--dataset", "set::test", "--column", "said"),
        ("--dataset", "set:default:test", "--column", "said"),
        ("--dataset", "columns"),
    ):
        assert stats(*source, *everything) == 0, capsys.readouterr().err
        found = Statistics.load("new/statistics")
        assert (found.tokens, found.corpus) == (wanted.tokens, source[1])
        # in another order, so to rounding
        torch.testing.assert_close(found.layers[1].dense(), wanted.layers[1].dense(), rtol=1e-3, atol=1e-5)


def test_the_seed_draws_the_text(stats: Surgery, given: Folder) -> None:
    drawn = []
    for seed in ("1", "1", "2"):
        few = ("--tokens", "200", "--layers", "1", "--no-convergence", "--quiet", "--seed", seed)
        assert stats("--corpus", given["corpus.txt"], *few) == 0
        drawn.append(Statistics.load("new/statistics").layers[1].diagonal)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_a_stopped_command_goes_on(
    stats: Surgery, given: Folder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--corpus", given["corpus.txt"], "--layers", "1")
    assert stats(*arguments, "--json") == 0
    wanted = printed(capsys)[0]["convergence"]
    first = Statistics.load("new/statistics").layers[1]
    monkeypatch.setattr("edits.checkpoint.SECONDS", 0)
    products, left = edits.fitting._products, [9]

    def read(*given: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise MemoryError
        return products(*given)

    with monkeypatch.context() as stopped:
        stopped.setattr("edits.fitting._products", read)
        with pytest.raises(MemoryError):
            stats(*arguments)
    assert Path("new/statistics.partial").is_file()
    capsys.readouterr()
    assert stats(*arguments, "--rank", "4") == 2
    assert "statistics.partial was left by another fit" in capsys.readouterr().err
    assert stats(*arguments) == 0
    assert "going on from new/statistics.partial" in capsys.readouterr().out
    assert not Path("new/statistics.partial").exists()
    assert torch.equal(Statistics.load("new/statistics").layers[1].factors, first.factors)
    assert stats(*arguments, "--json") == 0
    assert printed(capsys)[0]["convergence"] == wanted


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "give --corpus FILE or --dataset NAME, one of them"),
        (("--corpus", "corpus.txt", "--dataset", "set"), "give --corpus FILE or --dataset NAME, one of them"),
        (
            ("--corpus", "known.jsonl"),
            'known.jsonl, line 1: has no text in the field "text"; name another with surgery stats --column',
        ),
        (("--corpus", "corpus.txt", "--figure", "a.bmp"), "there is no figure format '.bmp'; choose one of .png"),
        (("--corpus", "corpus.txt", "--figure", "a.png", "--no-convergence"), "leave out --no-convergence"),
        (("--corpus", "corpus.txt", "--tokens", "0"), "up to 0 tokens hold nothing"),
        (("--corpus", "corpus.txt", "--rank", "0"), "a rank of 0 keeps nothing"),
        (("--corpus", "corpus.txt", "--tokens", "30", "--rank", "15"), "too few to hold a tenth out"),
        (("--dataset", "set:a:b:c"), "names no data set; write NAME, NAME:CONFIG, NAME:CONFIG:SPLIT or NAME::SPLIT"),
        (("--dataset", "set"), "has no text in a column 'text'; it has words: use --column"),
        (("--dataset", "set::validation"), "cannot load the data set 'set::validation'"),
        (("--dataset", "set:other"), "cannot load the data set 'set:other'"),
        (
            ("--dataset", "nobody/nothing"),
            "Give a name the hub has, while it can be reached, a local folder, or --corpus",
        ),
    ],
    ids=str,
)
def test_a_wrong_value_is_one_line(
    arguments: tuple[str, ...],
    says: str,
    stats: Surgery,
    given: Folder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # else it tries for half a minute
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    Path("set").mkdir()
    Path("set/train.jsonl").write_text(json.dumps({"words": "hello"}))
    here = [given[one] if one in ("corpus.txt", "known.jsonl") else one for one in arguments]
    assert stats("--layers", "1", *here, "--quiet") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err
    assert err.count("\n") == 1
    assert not Path("new").exists()


def test_a_data_set_needs_its_package(
    stats: Surgery, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert stats("--dataset", "set") == 2
    assert "pip install 'knowledge-surgery[datasets]', or give --corpus FILE" in capsys.readouterr().err
