"""A ledger: any fact can be taken back as if it had never been there, whatever came before and after it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ledgers import SITES, MakeLedger, facts_about, second, small

from edits import Damaged, Emmet, Ledger, Neutral, RankOne, Statistics
from surgery import Edit, Fact, Model, SurgeryError


def test_what_is_added_and_removed_in_any_order_leaves_the_same_edit_to_the_last_bit(
    tmp_path: Path, gpt2: Model, gpt2_statistics: Statistics
) -> None:
    tower, river, teacher = facts_about(3)
    given = [tower, second(tower), river, teacher]
    draw = random.Random(0)
    reached: dict[frozenset[Fact], tuple[str | None, str | None]] = {frozenset(): (None, None)}
    again = 0
    for i in range(2):
        method = small(gpt2_statistics, Emmet)
        ledger = Ledger.create(tmp_path / str(i), gpt2, method, SITES[1:])
        for _ in range(8):
            there = {entry.fact for entry in ledger.list()}
            absent = [fact for fact in given if fact not in there]
            if there and (not absent or draw.random() < 0.45):
                gone = draw.sample(sorted(there, key=str), draw.randint(1, min(2, len(there))))
                version = ledger.remove(gpt2, *gone)
                there -= set(gone)
            else:
                new = draw.sample(absent, draw.randint(1, min(3, len(absent))))
                version = ledger.add(gpt2, new)
                there |= set(new)
            assert {entry.fact for entry in ledger.list()} == there
            again += frozenset(there) in reached
            assert reached.setdefault(frozenset(there), (version.factors, version.edit)) == (
                version.factors,
                version.edit,
            )
    found = ledger.check(gpt2, values=True)
    assert (found.ok, found.solved, found.found) == (True, 0.0, 0.0)
    assert len({factors for factors, _ in reached.values()}) == len(reached) > 6
    assert again > 3


def test_a_removed_fact_was_never_there(
    make_ledger: MakeLedger, gpt2: Model, unchanged: Callable[[Model], None]
) -> None:
    unchanged(gpt2)
    one, other, third = facts_about(3)
    ledger, without = make_ledger(), make_ledger()
    ledger.add(gpt2, [one, other, third])
    ledger.remove(gpt2, other)
    without.add(gpt2, third)
    without.add(gpt2, one)
    edit, never = ledger.edit(), without.edit()
    assert edit.facts == never.facts
    assert other.prompt not in str(edit.settings) + str(edit.log) + str(edit.prompts)
    for delta, same in zip(edit.deltas, never.deltas, strict=True):
        assert torch.equal(delta.left, same.left)
        assert torch.equal(delta.right, same.right)
    assert ledger.head.edit == without.head.edit
    assert ledger.diff().removed == (other,)


def test_the_edit_is_that_of_the_method_when_called_with_all_facts(make_ledger: MakeLedger, gpt2: Model) -> None:
    ledger = make_ledger()
    facts = facts_about(3)
    ledger.add(gpt2, facts[2])
    ledger.add(gpt2, facts[:2])
    method, sites = ledger._contents.method(ledger.head)
    called = method(gpt2, sorted(facts, key=lambda fact: fact.subject), sites)
    edit = ledger.edit()
    assert edit.settings == called.settings
    assert (edit.base, edit.method, edit.claim) == (called.base, called.method, called.claim)
    for delta in edit.deltas:
        other = next(one for one in called.deltas if one.module == delta.module)
        torch.testing.assert_close(
            delta.dense(), other.dense(), rtol=1e-3, atol=1e-4 * float(delta.dense().abs().max())
        )


def test_facts_of_one_subject_share_a_value_that_is_found_from_them_alone(make_ledger: MakeLedger, gpt2: Model) -> None:
    one, river = facts_about(2)
    ledger, alone = make_ledger(), make_ledger()
    ledger.add(gpt2, [one, river])
    kept = {entry.fact: entry.value for entry in ledger.list()}
    ledger.add(gpt2, second(one))
    values = {entry.fact: entry.value for entry in ledger.list()}
    assert values[one] == values[second(one)] != kept[one]
    assert values[river] == kept[river]
    ledger.remove(gpt2, second(one))
    assert {entry.fact: entry.value for entry in ledger.list()} == kept
    alone.add(gpt2, one)
    assert alone.list()[0].value == kept[one]


def test_removing_the_last_fact_leaves_an_empty_version(make_ledger: MakeLedger, gpt2: Model) -> None:
    ledger = make_ledger()
    (fact,) = facts_about(1)
    ledger.add(gpt2, fact)
    version = ledger.remove(gpt2, fact)
    assert (version.values, version.edit, version.factors) == ((), None, None)
    assert ledger.list() == ()
    assert ledger.solve(gpt2) is None
    with pytest.raises(SurgeryError, match="holds no facts; the model is right as it is"):
        ledger.edit()
    assert ledger.diff().weights == 1.0
    assert ledger.check(gpt2, values=True).solved == 0.0


def test_adding_again_changes_nothing_and_another_answer_takes_the_place_of_the_old(
    make_ledger: MakeLedger, gpt2: Model
) -> None:
    ledger = make_ledger()
    one, other = facts_about(2)
    before = ledger.add(gpt2, [one, other])
    assert ledger.add(gpt2, [other, one]) == before
    assert len(ledger.versions()) == 2
    changed = one.replace(new_target="Tokyo")
    after = ledger.add(gpt2, changed)
    assert {entry.fact for entry in ledger.list()} == {changed, other}
    found = ledger.diff()
    assert (found.changed, found.added, found.removed) == (((one, changed),), (), ())
    assert 0 < found.weights < 2
    back = ledger.add(gpt2, one)
    assert (back.factors, back.edit) == (before.factors, before.edit)
    assert back.hash not in (before.hash, after.hash)
    assert ledger.diff(before.hash[:8], back.hash).weights == 0.0
    found = ledger.diff(ledger.versions()[-1].hash, before.hash[:8])
    assert found.added == (one, other) if one.subject < other.subject else (other, one)
    assert (found.weights, found.before) == (1.0, ledger.versions()[-1].hash)


def test_versions_stay_reproducible(make_ledger: MakeLedger, gpt2: Model) -> None:
    ledger = make_ledger()
    facts = facts_about(3)
    hashes = [ledger.add(gpt2, fact).hash for fact in facts]
    opened = Ledger.open(ledger.folder)
    assert [version.hash for version in opened.versions()][:3] == hashes[::-1]
    assert opened.versions()[-1].parent is None
    for i, name in enumerate(hashes):
        edit, again = opened.edit(name[:10]), opened.solve(gpt2, name)
        assert again is not None
        assert set(edit.facts) == set(facts[: i + 1])
        assert all(torch.equal(a.left, b.left) for a, b in zip(edit.deltas, again.deltas, strict=True))
    for name in ("abc", "0" * 10, ""):
        with pytest.raises(SurgeryError, match=f"there is no version '{name}'; give at least 4 digits"):
            opened.edit(name)


def test_facts_are_removed_by_any_name_that_is_theirs_alone(make_ledger: MakeLedger, gpt2: Model) -> None:
    tower, river, teacher = facts_about(3)
    ledger = make_ledger()
    ledger.add(gpt2, [tower.replace(id="first"), second(tower), river, teacher])
    with pytest.raises(SurgeryError, match=r"'The old tower' names 2 facts; name one: [0-9a-f]{12} \(.*, [0-9a-f]{12}"):
        ledger.remove(gpt2, "The old tower")
    with pytest.raises(SurgeryError, match=r"no fact 'The old towers' in the ledger; did you mean .*They wrote about"):
        ledger.remove(gpt2, "The old towers")
    with pytest.raises(SurgeryError, match=r"no fact 'xyz' in the ledger; it holds 4, such as [0-9a-f]{12} \("):
        ledger.remove(gpt2, "xyz")
    with pytest.raises(SurgeryError, match="there is no fact to remove"):
        ledger.remove(gpt2)
    assert len(ledger.list()) == 4
    entry = next(one for one in ledger.list() if one.fact == second(tower))
    ledger.remove(gpt2, "first", f"{river.subject} | {river.prompt}")
    ledger.remove(gpt2, entry.id[:6])
    assert [one.fact for one in ledger.list()] == [teacher]
    ledger.remove(gpt2, teacher.replace(new_target="Madrid"))  # the same fact whatever its new answer
    with pytest.raises(SurgeryError, match="the ledger holds none"):
        ledger.remove(gpt2, teacher)


def test_forgetting_history_leaves_no_trace_of_a_removed_fact(make_ledger: MakeLedger, gpt2: Model) -> None:
    ledger = make_ledger()
    facts = facts_about(3)
    secret = facts[2]
    ledger.add(gpt2, facts)
    head = ledger.remove(gpt2, secret)
    text = secret.subject.encode()

    def holding() -> list[Path]:
        return [path for path in ledger.folder.rglob("*") if path.is_file() and text in path.read_bytes()]

    assert len(holding()) == 2  # its value and the edit it was part of
    assert ledger.prune() == 0
    assert len(holding()) == 2
    (ledger.folder / "objects" / f".{head.values[0]}.safetensors.killed").write_bytes(text)
    (ledger.folder / ".gitignore").write_text("mine")
    assert ledger.prune(keep_history=False) == 5
    assert holding() == []
    assert (ledger.folder / ".gitignore").exists()
    assert ledger.versions() == (head,)
    assert ledger.head == head
    assert ledger.diff().weights == 0.0
    assert ledger.check(gpt2, values=True) == ledger.check(gpt2, values=True)
    assert ledger.check().ok
    ledger.add(gpt2, secret)
    assert [version.hash for version in ledger.versions()][1:] == [head.hash]


def test_history_that_is_broken_can_be_forgotten_but_not_the_current_version(
    make_ledger: MakeLedger, gpt2: Model
) -> None:
    ledger = make_ledger()
    one, other = facts_about(2)
    old = ledger.add(gpt2, one)
    head = ledger.add(gpt2, other)
    path = ledger.folder / "versions" / f"{old.hash}.json"
    path.write_bytes(b"{}")
    with pytest.raises(Damaged, match=old.hash[:12]):
        ledger.prune()
    assert path.exists()
    assert ledger.prune(keep_history=False) == 3
    assert ledger.versions() == (head,)
    assert ledger.check(gpt2).ok
    path = ledger.folder / "versions" / f"{head.hash}.json"
    path.write_bytes(b"{}")
    with pytest.raises(Damaged, match=head.hash[:12]):
        ledger.prune(keep_history=False)
    assert len(list((ledger.folder / "objects").iterdir())) == 2


def test_a_removing_ledger_finds_its_way_with_every_objective_and_solver(
    tmp_path: Path, gpt2: Model, gpt2_statistics: Statistics
) -> None:
    facts = [fact.replace(new_target=None) for fact in facts_about(2)]
    method = small(gpt2_statistics, RankOne, objective=Neutral(generic=("It", "This")))
    ledger = Ledger.create(tmp_path / "ledger", gpt2, method, SITES[1:])
    ledger.add(gpt2, facts)
    assert isinstance(ledger.edit(), Edit)
    assert ledger.edit().deltas[0].rank == 2
    again = Ledger.open(ledger.folder)
    assert again.objective == Neutral(generic=("It", "This"))
    assert again.check(gpt2, values=True).found == 0.0
