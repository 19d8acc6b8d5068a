"""Fitting key statistics: order, passes and stops change nothing; what is too little is told."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from passages import PASSAGES
from tiny import tiny_model, tiny_tokenizer

import edits
from edits import Statistics, fit_statistics, fit_with_convergence
from edits.pieces import read_pieces
from surgery import Model, SurgeryError, load

LAYERS = (0, 1, 2)


@pytest.fixture(scope="module")
def whole(gpt2: Model) -> Statistics:
    return fit_statistics(gpt2, PASSAGES, LAYERS, rank=8, progress=False)


def same(one: Statistics, other: Statistics) -> bool:
    return (one.fingerprints, one.tokens, list(one.layers)) == (
        other.fingerprints,
        other.tokens,
        list(other.layers),
    ) and (
        all(
            torch.equal(one.layers[n].factors, other.layers[n].factors)
            and torch.equal(one.layers[n].diagonal, other.layers[n].diagonal)
            for n in one.layers
        )
    )


def stopping(monkeypatch: pytest.MonkeyPatch, after: int, error: type[BaseException]) -> None:
    """Let reading a batch raise after so many batches."""
    products = edits.fitting._products
    done = []

    def read(*arguments: Any) -> Any:
        if len(done) == after:
            raise error("stopped")
        done.append(1)
        return products(*arguments)

    monkeypatch.setattr("edits.fitting._products", read)


def test_every_piece_is_read_once_in_an_order_that_doubles(gpt2: Model) -> None:
    pieces = read_pieces(gpt2, PASSAGES * 8, width=4, tokens=None)
    rows = [row for batch in pieces.batches for row in batch]
    ids = [gpt2.tokenizer(text)["input_ids"] for text in PASSAGES * 8]
    assert sorted(rows) == sorted(tuple(one[i : i + 4]) for one in ids for i in range(0, len(one), 4))
    assert max(len(batch) for batch in pieces.batches) == 8
    ends = [sum(len(batch) for batch in pieces.batches[:mark]) for mark in pieces.marks]
    kept = len(rows) - len(rows) // 10
    assert ends == [round(kept / 16), round(kept / 8), round(kept / 4), round(kept / 2), kept]
    assert pieces.before(pieces.marks[-1]) < pieces.tokens == sum(map(len, ids))


def test_reading_stops_after_enough_tokens(gpt2: Model) -> None:
    def endless() -> Any:
        while True:
            yield from ["", *PASSAGES]

    fitted = fit_statistics(gpt2, endless(), [1], rank=8, tokens=100, progress=False)
    longest = max(len(gpt2.tokenizer(text)["input_ids"]) for text in PASSAGES)
    assert 100 <= fitted.tokens < 100 + longest
    with pytest.raises(SurgeryError, match="up to 0 tokens hold nothing"):
        fit_statistics(gpt2, PASSAGES, [1], tokens=0, progress=False)


def test_passes_of_one_layer_each_give_the_same_bits(
    gpt2: Model, whole: Statistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edits.fitting.FITTED_BYTES", 1)
    assert same(fit_statistics(gpt2, PASSAGES, LAYERS, rank=8, progress=False), whole)


@pytest.mark.parametrize(
    ("group", "after", "error"),
    [
        (2**31, 0, KeyboardInterrupt),
        (2**31, 3, KeyboardInterrupt),
        (2**31, 6, MemoryError),
        (1, 7, OSError),
        (1, 16, OSError),
    ],
    ids=str,
)
def test_a_stopped_fit_goes_on_to_the_same_bits(
    gpt2: Model,
    whole: Statistics,
    group: int,
    after: int,
    error: type[BaseException],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    unchanged: Callable[[Model], None],
) -> None:
    unchanged(gpt2)
    kept = tmp_path / "fit.partial"
    monkeypatch.setattr("edits.fitting.FITTED_BYTES", group)
    monkeypatch.setattr("edits.checkpoint.SECONDS", 0)
    with monkeypatch.context() as stopped:
        stopping(stopped, after, error)
        with pytest.raises(error):
            fit_statistics(gpt2, PASSAGES, LAYERS, rank=8, progress=False, resume=kept)
    assert kept.is_file() == (after > 0)
    reads = []
    products = edits.fitting._products
    monkeypatch.setattr("edits.fitting._products", lambda *given: reads.append(1) or products(*given))
    assert same(fit_statistics(gpt2, PASSAGES, LAYERS, rank=8, progress=False, resume=kept), whole)
    passes = 3 if group == 1 else 1
    assert len(reads) == passes * len(read_pieces(gpt2, PASSAGES, width=256, tokens=None).batches) - after
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
import torch
torch.set_num_threads(1)
import edits, surgery
from edits import checkpoint
from tiny import tiny_model, tiny_tokenizer

checkpoint.SECONDS, save, saved = 0, checkpoint.save_file, []

def dying(tensors, path, metadata):
    saved.append(1)
    save(tensors, path, metadata=metadata)
    if len(saved) == 4:
        with open(path, "r+b") as file:
            file.truncate(100)  # it dies half way through the file
        os.kill(os.getpid(), signal.SIGKILL)

checkpoint.save_file = dying
model = surgery.load((tiny_model("gpt2"), tiny_tokenizer()))
edits.fit_statistics(model, sys.argv[2].split("|"), [0, 1, 2], rank=8, progress=False, resume=sys.argv[1])
"""


def test_a_killed_fit_goes_on_to_the_same_bits(gpt2: Model, whole: Statistics, tmp_path: Path) -> None:
    kept = tmp_path / "fit.partial"
    root = Path(edits.__file__).parents[1]
    paths = [str(root), str(root / "tests" / "support"), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(kept), "|".join(PASSAGES)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    before = kept.stat()
    assert same(fit_statistics(gpt2, PASSAGES, LAYERS, rank=8, progress=False, resume=kept), whole)
    assert before.st_size > 3 * 8 * gpt2.anatomy.d_ff**2
    assert not kept.exists()


@pytest.fixture
def stopped(gpt2: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a fit left that was stopped after three batches."""
    monkeypatch.setattr("edits.checkpoint.SECONDS", 0)
    with monkeypatch.context() as context:
        stopping(context, 3, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            fit_statistics(gpt2, PASSAGES, LAYERS, rank=8, progress=False, resume=tmp_path / "fit.partial")
    return tmp_path / "fit.partial"


@pytest.mark.parametrize(
    "other",
    [{"texts": PASSAGES[1:]}, {"layers": [0, 1]}, {"rank": 4}, {"width": 5}, {"tokens": 150}],
    ids=lambda one: next(iter(one)),
)
def test_what_another_fit_left_is_refused_and_kept(gpt2: Model, stopped: Path, other: dict[str, Any]) -> None:
    content = stopped.read_bytes()
    given = {"texts": PASSAGES, "layers": LAYERS, "rank": 8, "resume": stopped, "progress": False} | other
    with pytest.raises(SurgeryError, match=r"fit\.partial was left by another fit, of other text, layers, weights"):
        fit_statistics(gpt2, **given)
    assert stopped.read_bytes() == content


def test_what_a_fit_of_other_weights_or_with_convergence_left_is_refused(gpt2: Model, stopped: Path) -> None:
    other = load((tiny_model("gpt2", seed=1), tiny_tokenizer()))
    with pytest.raises(SurgeryError, match="left by another fit"):
        fit_statistics(other, PASSAGES, LAYERS, rank=8, progress=False, resume=stopped)
    with pytest.raises(SurgeryError, match="left by another fit"):
        fit_with_convergence(gpt2, PASSAGES, LAYERS, rank=8, progress=False, resume=stopped)


def test_a_damaged_checkpoint_is_refused(gpt2: Model, stopped: Path) -> None:
    stopped.write_bytes(stopped.read_bytes()[:-50])
    with pytest.raises(SurgeryError, match=r"damaged or cut off .* delete it to start over"):
        fit_statistics(gpt2, PASSAGES, LAYERS, rank=8, progress=False, resume=stopped)


def test_fewer_than_ten_times_the_width_are_warned_of(gpt2: Model, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "edits.fitting"):
        few = fit_statistics(gpt2, PASSAGES, [1], rank=8, progress=False)
        assert caplog.messages == [f"{few.tokens} tokens are few for an mlp 80 wide; give 800 to settle its statistics"]
        caplog.clear()
        assert fit_statistics(gpt2, PASSAGES * 8, [1], rank=8, progress=False).tokens > 800
        assert not caplog.messages


def test_a_rank_of_nothing_is_refused(gpt2: Model) -> None:
    with pytest.raises(SurgeryError, match="a rank of 0 keeps nothing"):
        fit_statistics(gpt2, PASSAGES, [1], rank=0, progress=False)


def test_keys_beyond_all_numbers_are_refused(gpt2: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    products = edits.fitting._products
    monkeypatch.setattr(
        "edits.fitting._products", lambda *given: [(layer, one * float("inf")) for layer, one in products(*given)]
    )
    with pytest.raises(SurgeryError, match="not finite or all zero"):
        fit_statistics(gpt2, PASSAGES, [1], rank=8, progress=False)
