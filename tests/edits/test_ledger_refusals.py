"""What a ledger refuses, and how it tells of damage."""

from __future__ import annotations

from pathlib import Path

import pytest
from ledgers import SITES, MakeLedger, facts_about, small, small_ledger
from sweeping import Counted
from tiny import tiny_model, tiny_tokenizer

from edits import Damaged, Ledger, NearCollapse, RankOne, Statistics, Suppress
from edits.limits import Limits
from surgery import Model, SurgeryError, WrongWeights, load


def test_facts_that_contradict_each_other_or_the_ledger_are_refused(
    make_ledger: MakeLedger, tmp_path: Path, gpt2: Model, gpt2_statistics: Statistics
) -> None:
    ledger = make_ledger()
    one, other = facts_about(2)
    head = ledger.add(gpt2, one.replace(id="a"))
    for facts, message in (
        ([], "there is no fact to add"),
        ([other, other.replace(new_target="Tokyo")], "is given twice, with different answers or wordings"),
        ([other.replace(new_target=None)], "has no new_target to replace 'London' with"),
        ([other.replace(id="a")], "two facts have the id 'a'"),
        ([one.replace(target="Madrid")], "cannot be given two answers, 'Rome' and 'Rome'; remove one"),
    ):
        with pytest.raises(SurgeryError, match=message):
            ledger.add(gpt2, facts)
    assert ledger.head == head
    removing = small_ledger(tmp_path / "removing", gpt2, gpt2_statistics, objective=Suppress())
    with pytest.raises(SurgeryError, match=r"this ledger removes facts \(suppress\); leave new_target away, or keep"):
        removing.add(gpt2, one)
    two = [one.replace(new_target=None, target=target) for target in ("London", "Paris")]
    assert removing.edit(removing.add(gpt2, two).hash).claim == "removed"
    assert removing.objective == Suppress()


def test_other_weights_than_the_base_are_refused(make_ledger: MakeLedger, gpt2: Model) -> None:
    ledger = make_ledger()
    one, other = facts_about(2)
    head = ledger.add(gpt2, one)
    elsewhere = load((tiny_model("gpt2", seed=1), tiny_tokenizer()))
    for call in (
        lambda model: ledger.add(model, other),
        lambda model: ledger.remove(model, one),
        lambda model: ledger.solve(model),
        lambda model: ledger.check(model),
    ):
        with pytest.raises(WrongWeights, match=r"made for other weights \(.*\) than these .*without any edit"):
            call(elsewhere)
        with ledger.edit().applied(gpt2), pytest.raises(WrongWeights, match="without any edit"):
            call(gpt2)
    assert ledger.head == head


def test_methods_that_cannot_be_solved_again_are_refused(
    tmp_path: Path, gpt2: Model, gpt2_statistics: Statistics
) -> None:
    class Own(RankOne):
        pass

    for method, message in (
        (Counted(), "a ledger cannot take 'counted' back fact by fact.*; choose one of .*memit"),
        (Own(statistics=gpt2_statistics, objective=Suppress()), "cannot take 'rank-one' back fact by fact"),
        (small(gpt2_statistics, objective=None), "one objective for all its facts; give the method one"),
        (small(gpt2_statistics, anchor=8), "anchors values to those of the model as it came"),
        (small(gpt2_statistics, names=3.0), "leave names away"),
    ):
        with pytest.raises(SurgeryError, match=message):
            Ledger.create(tmp_path / "none", gpt2, method, SITES)
    assert not (tmp_path / "none").exists()
    with pytest.raises(SurgeryError, match="there is no ledger in"):
        Ledger.open(tmp_path / "none")


def test_a_change_that_would_break_the_model_changes_nothing(
    tmp_path: Path, gpt2: Model, gpt2_statistics: Statistics
) -> None:
    ledger = small_ledger(tmp_path / "ledger", gpt2, gpt2_statistics, limits=Limits(relative_change=1e-6))
    with pytest.raises(NearCollapse, match="the weights would have changed by"):
        ledger.add(gpt2, facts_about(1))
    assert ledger.head.parent is None
    assert ledger.check().ok


@pytest.mark.parametrize("kind", ["objects", "edits", "statistics", "versions", "HEAD"])
def test_damage_is_found_and_told(make_ledger: MakeLedger, gpt2: Model, kind: str) -> None:
    ledger = make_ledger()
    one, other = facts_about(2)
    head = ledger.add(gpt2, one)
    names = {"objects": head.values[0], "edits": head.edit, "statistics": head.statistics, "versions": head.hash}
    path = ledger.folder / kind
    if kind != "HEAD":
        (path,) = path.glob(f"{names[kind]}.*")
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2] + b"?" + whole[len(whole) // 2 + 1 :], whole[:-20], b"", None):
        if damaged is None:
            path.unlink()
        else:
            path.write_bytes(damaged)
        if kind == "HEAD" and damaged is None:
            with pytest.raises(SurgeryError, match="there is no ledger in"):
                Ledger.open(ledger.folder)
        (problem,) = ledger.check(gpt2).problems
        assert "restore" in problem
        assert (path.stem[:12] if kind != "HEAD" else "HEAD") in problem
        with pytest.raises(Damaged, match="restore"):
            ledger.edit() if kind == "edits" else ledger.add(gpt2, other)
    path.write_bytes(whole)
    assert ledger.check(gpt2).ok
    assert ledger.head == head
