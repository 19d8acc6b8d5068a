"""Nearly the same names: what they are, how much they weigh, and that a change leaves them alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch

import edits
from edits.keys import one_key, read_ends
from edits.moment import SecondMoment
from edits.namesakes import EACH, namesakes, read_names, scaled
from surgery import Edit, Fact, Model, Neighbour, Site, SurgeryError, rate

PLANE = Fact(subject="Airbus A350", template="The wings of the {} are made by", target="Airbus", new_target="Adobe")
SITE = Site.at(1, "mlp")


def told(model: Model, rows: list[tuple[int, ...]]) -> list[str]:
    return [str(model.tokenizer.decode(list(row))).strip() for row in rows]


def test_one_token_of_the_subject_is_another_of_its_kind(smol: Model) -> None:
    (rows,) = namesakes(smol, [[PLANE]])
    own = smol.tokenizer(f"{PLANE.template.partition('{}')[0]}{PLANE.subject}")["input_ids"]
    assert len(rows) == len(set(rows)) > 20
    assert all(len(row) == len(own) and sum(a != b for a, b in zip(row, own, strict=True)) == 1 for row in rows)
    names = told(smol, rows)
    assert all(name.startswith("The wings of the ") for name in names)
    assert "The wings of the Airbus A320" in names
    assert {name[-3:].isdigit() for name in names} == {True}  # a digit's place is taken by digits
    ends = [row[-1] for row in rows if row[:-1] == tuple(own[:-1])]
    assert len(ends) == EACH


def test_what_a_neighbour_is_about_is_not_looked_at(smol: Model) -> None:
    near = PLANE.replace(neighbours=(Neighbour("The Airbus A320 is made by", "Airbus"),))
    (all_names,), (fewer,) = namesakes(smol, [[PLANE]]), namesakes(smol, [[near]])
    left_out = set(told(smol, all_names)) - set(told(smol, fewer))
    assert left_out == {"The wings of the Airbus A320"}


def test_a_text_s_first_token_stays_and_facts_of_one_subject_go_together(smol: Model) -> None:
    first = Fact(subject="Airbus A350", template="{} is made by", target="Airbus")
    rows, none, both = namesakes(smol, [[first], [Fact(subject="", template="It was", target="day")], [first, PLANE]])
    assert {row[0] for row in rows} == {smol.tokenizer("Airbus")["input_ids"][0]}
    assert none == []
    assert both == rows + namesakes(smol, [[PLANE]])[0]
    assert namesakes(smol, [[first.replace(subject="France")]]) == [[]]


def test_a_batch_shares_so_many(gpt2: Model, tiny_fact: Fact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edits.namesakes.MOST", 12)
    facts = [[tiny_fact.replace(subject=f"The old {name}")] for name in ("tower", "market", "teacher")]
    alone, together = namesakes(gpt2, facts[:1]), namesakes(gpt2, facts)
    assert [len(rows) for rows in together] == [4, 4, 4]
    assert len(alone[0]) == 12
    assert set(together[0]) <= set(namesakes(gpt2, facts[:1])[0]) | set(alone[0])


@pytest.mark.parametrize("length", [1.0, 30.0])
def test_they_weigh_in_units_of_their_own_keys(gpt2: Model, tiny_fact: Fact, length: float) -> None:
    """C' is 1 + weight times C along a key that all names share, however long keys are."""
    (rows,) = namesakes(gpt2, [[tiny_fact]])
    keys, _ = read_ends(gpt2, rows, SITE)
    moment = SecondMoment(torch.full((gpt2.anatomy.d_ff,), length), torch.zeros(gpt2.anatomy.d_ff, 0))
    (long,) = scaled(read_names(gpt2, [rows], SITE), moment, 8.0)
    c = moment.dense()
    wanted = keys.double().T @ keys.double() / len(keys)
    wanted *= 8.0 / float((keys.double() @ torch.linalg.inv(c) * keys.double()).sum(1).mean())
    torch.testing.assert_close(long.double().T @ long.double(), wanted, rtol=1e-5, atol=1e-8)
    none, same = (one.double() for one in scaled(read_names(gpt2, [(), [rows[0]] * 3], SITE), moment, 8.0))
    k = keys[0].double()
    assert float(k @ (c + same.T @ same) @ k / (k @ c @ k)) == pytest.approx(9.0, rel=1e-4)
    assert none.shape == (0, gpt2.anatomy.d_ff)
    assert scaled(read_names(gpt2, [()], SITE), moment, 8.0)[0].shape == (0, gpt2.anatomy.d_ff)


def test_values_bring_them_along_and_are_solved_alike_without(
    gpt2: Model, tiny_fact: Fact, gpt2_statistics: edits.Statistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of a ledger's files are, which hold none."""
    search = edits.ValueSearch(steps=2)
    method = edits.RankOne(statistics=gpt2_statistics, names=8.0, contexts=("{}",), search=search, progress=False)
    others = [tiny_fact, tiny_fact.replace(subject="The river")]
    values = method.find(gpt2, others, [SITE])
    assert all(value.names is not None and len(value.names) for value in values)
    bare = [dataclasses.replace(value, names=None) for value in values]
    read: list[int] = []
    real = edits.batch.namesakes
    monkeypatch.setattr("edits.batch.namesakes", lambda model, groups: read.append(len(groups)) or real(model, groups))
    known, anew = method.solve(gpt2, values, [SITE]), method.solve(gpt2, bare, [SITE])
    assert read == [2]
    assert torch.equal(known.deltas[0].left, anew.deltas[0].left)
    assert torch.equal(known.deltas[0].right, anew.deltas[0].right)
    plain = dataclasses.replace(method, names=0.0)
    without = plain.solve(gpt2, values, [SITE]), plain.solve(gpt2, bare, [SITE])
    assert torch.equal(without[0].deltas[0].right, without[1].deltas[0].right)
    assert not torch.equal(without[0].deltas[0].right, known.deltas[0].right)


def test_contexts_still_respond_alike() -> None:
    """k_i^T C'^-1 k is the same for all contexts where the key is balanced by C', and not where it is by C."""
    draw = torch.Generator().manual_seed(0)
    moment = SecondMoment(torch.rand(9, generator=draw) + 0.5, torch.randn(9, 2, generator=draw))
    keys, near = torch.randn(3, 9, generator=draw), 2 * torch.randn(4, 9, generator=draw)
    inverse = torch.linalg.inv(moment.plus(near, 4.0).dense())

    def responses(key: torch.Tensor) -> torch.Tensor:
        found = keys.double() @ inverse @ key.double()
        return found / (key.double() @ inverse @ key.double())

    torch.testing.assert_close(
        responses(one_key(keys, moment, 0.0, near=near)), torch.ones(3).double(), atol=1e-5, rtol=0
    )
    assert (responses(one_key(keys, moment, 0.0)) - 1).abs().max() > 0.05


def test_a_namesake_keeps_its_answer(smol: Model, unchanged: Callable[[Model], None]) -> None:
    """Airbus makes the A330 as well; by ordinary text alone it goes wherever the A350 goes."""
    unchanged(smol)
    near = Neighbour("Airbus A330, a product manufactured by", "Airbus")
    fact = PLANE.replace(template="{}, a product manufactured by", neighbours=(near,))

    def edited(names: float | None) -> Edit:
        return edits.RankOne(names=names, count=2, progress=False)(smol, fact)

    def left(edit: Edit) -> tuple[float, float]:
        with edit.applied(smol):
            own, near = rate(smol, [(fact.prompt, "Adobe"), (fact.neighbours[0].prompt, "Airbus")])
        return own.probability, near.probability

    plain, own = edited(0.0), edited(None)
    assert (plain.settings["names"], own.settings["names"]) == (0.0, edits.namesakes.WEIGHT)
    before = rate(smol, [(fact.neighbours[0].prompt, "Airbus")])[0].probability
    (first, reached), (second, kept) = left(plain), left(own)
    assert min(first, second) > 0.9
    assert reached < 0.5 * before  # the positive control
    assert kept > 0.8 * before


def test_removals_leave_them_to_ordinary_text_unless_told() -> None:
    method = edits.RankOne(progress=False)
    assert method._names(edits.Replace(), [PLANE]) == edits.namesakes.WEIGHT
    assert method._names(edits.Neutral(), [PLANE]) == 0.0
    assert edits.RankOne(names=3.0)._names(edits.Neutral(), [PLANE]) == 3.0
    with pytest.raises(SurgeryError, match="nearly the same names weigh 0 or more, not -1"):
        edits.RankOne(names=-1.0)


def test_many_subjects_have_their_names_weigh_less_each() -> None:
    facts = [PLANE.replace(subject=f"Airbus A{number}") for number in range(310, 326)]
    again = [PLANE.replace(subject="Airbus A310", template="The {} is made by")]
    assert edits.Mass(names=8.0)._names(edits.Replace(), facts) == 4.0
    assert edits.Mass(names=8.0)._names(edits.Replace(), facts + again) == 4.0
