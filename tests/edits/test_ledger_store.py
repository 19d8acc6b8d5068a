"""A ledger on the disk: a kill, a full disk or a second process at any moment loses nothing that was acknowledged."""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from killing import Steps, cheap_change, cheap_ledger, full
from ledgers import MakeLedger, facts_about, small, small_ledger

from edits import Ledger, Statistics
from edits.ledger_store import Store
from surgery import Model, SurgeryError

ROOT = Path(__file__).parents[2]


def run(name: str, folder: Path, *numbers: int) -> dict[str, int]:
    """What a function of `killing` gives in a process of its own."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")])
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "support" / "killing.py", name, folder, *map(str, numbers)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout)
    return found


def refusal(change: Callable[[], object]) -> str | None:
    """What a change was refused with; None where it went through."""
    try:
        change()
    except SurgeryError as error:
        return str(error)
    return None


def test_killed_at_random_moments_it_holds_all_that_was_acknowledged(tmp_path: Path) -> None:
    found = run("killed_at_random", tmp_path, 40, 0)
    assert found["acknowledged"] > 5
    assert found["left_over"] > 3  # or the kills came at harmless moments only


def test_killed_in_the_middle_of_every_step_it_is_as_before_or_after(tmp_path: Path) -> None:
    found = run("killed_at_every_step", tmp_path)
    assert min(found["made"], found["changed"]) > 25


def test_killed_while_facts_are_really_edited_it_holds_all_that_was_acknowledged(tmp_path: Path) -> None:
    assert run("killed_while_editing", tmp_path / "ledger", 8, 0)["acknowledged"] > 3


def test_two_processes_that_add_at_once_both_get_their_facts_in(tmp_path: Path) -> None:
    found = run("two_at_once", tmp_path, 4)
    assert (found["facts"], found["versions"]) == (8, 9)
    assert found["looks"] > 1


def test_a_full_disk_at_any_step_leaves_it_as_it_was(tmp_path: Path) -> None:
    ledger = cheap_ledger(tmp_path / "ledger")
    for at in range(1, 200):
        before = ledger.head.hash
        steps = Steps(at, full)
        with steps.counted():
            told = refusal(lambda at=at: cheap_change(ledger.folder, random.Random(at)))
        if told is None:
            break
        assert "No space left on device" in told
        assert str(ledger.folder) in told
        assert ledger.check().ok
        assert not list(ledger.folder.rglob(".*"))
        moved = ledger.head.hash != before
        # only the very last step comes after HEAD has moved: the flush of its name
        assert not moved or (steps.taken == at and ledger.head.parent == before)
    assert at > 25
    assert moved
    assert ledger.head.parent == before


def test_a_disk_that_takes_only_small_files_leaves_it_as_it_was(make_ledger: MakeLedger, gpt2: Model) -> None:
    ledger = make_ledger()
    one, other = facts_about(2)
    before = ledger.add(gpt2, one)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    refused = 0
    for size in (0, 1, 500, 2000, 4000, 6000, 12000, 100_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            told = refusal(lambda: ledger.add(gpt2, other))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        if told is not None:
            refused += 1
            assert f"cannot write to the ledger {ledger.folder}: " in told
            assert f"it holds version {before.hash[:12]}. Make writing possible" in told
            assert ledger.head == before
            assert ledger.check(gpt2).ok
    assert refused >= 5
    assert [entry.fact for entry in ledger.list()] == sorted([one, other], key=lambda fact: fact.subject)


def test_content_is_flushed_before_it_is_named_and_the_current_version_is_named_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = cheap_ledger(tmp_path / "ledger")
    happened: list[tuple[str, Path]] = []
    flush, replace = os.fsync, os.replace

    def flushed(handle: int) -> None:
        happened.append(("flush", Path(os.readlink(f"/proc/self/fd/{handle}"))))
        flush(handle)

    def named(old: Any, new: Any) -> None:
        happened.extend([("flushed?", Path(old)), ("name", Path(new))])
        replace(old, new)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", named)
    cheap_change(ledger.folder, random.Random(1))
    names = [i for i, (what, _) in enumerate(happened) if what == "name"]
    assert len(names) == 6  # statistics, two values, an edit, the version, HEAD
    for i in names:
        assert happened[i - 2] == ("flush", happened[i - 1][1])
        assert happened[i + 1] == ("flush", happened[i][1].parent)
    assert happened[-2] == ("name", ledger.folder / "HEAD")
    assert happened[-1] == ("flush", ledger.folder)


def test_who_waits_too_long_for_another_process_is_told(make_ledger: MakeLedger, gpt2: Model) -> None:
    ledger = make_ledger()
    (fact,) = facts_about(1)
    hasty = Ledger.open(ledger.folder, wait=0.1)
    with FileLock(ledger.folder / "lock"):
        for change in (lambda: hasty.add(gpt2, fact), lambda: hasty.remove(gpt2, fact), hasty.prune):
            with pytest.raises(SurgeryError, match=r"another process is changing the ledger .*, for 0\.1 s already"):
                change()
        assert hasty.list() == ()  # readers do not wait
        assert hasty.check().ok
    assert hasty.add(gpt2, fact) == hasty.head


def test_a_ledger_is_made_where_nothing_else_is(
    tmp_path: Path, gpt2: Model, gpt2_statistics: Statistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    make: Callable[[Path], Ledger] = lambda folder: small_ledger(folder, gpt2, gpt2_statistics)  # noqa: E731
    ledger = make(tmp_path / "ledger")
    with pytest.raises(SurgeryError, match=r"there is a ledger in .* already; open it"):
        make(ledger.folder)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter 1").write_text("")
    with pytest.raises(SurgeryError, match="holds 'chapter 1', which is no part of a ledger; choose an empty"):
        make(tmp_path / "thesis")
    (tmp_path / "a file").write_text("")
    with pytest.raises(SurgeryError, match="cannot write to the folder"):
        make(tmp_path / "a file" / "below")
    with pytest.raises(SurgeryError, match=r"there is no ledger in .*; make one with edits.Ledger.create"):
        Store(tmp_path / "thesis")
    assert small(gpt2_statistics).name == ledger.head.method["name"]
