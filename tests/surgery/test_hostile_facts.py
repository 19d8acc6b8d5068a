"""Facts nobody would like to meet in a file: each has a row of its own, and the others' numbers stay as they are."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import parse

import pytest
from by_hand import Toy, toy_edit
from known_answers import strangers

from surgery import Fact, Model, Neighbour, SurgeryError, read_facts, verify
from surgery.records import FactsFileError
from surgery.report import Report
from surgery.verification.askable import readable, unaskable
from surgery.verification.attacks import ATTACKS, attacks_named, attacks_of
from surgery.verification.baseline import Baseline
from surgery.verification.battery import attacked
from surgery.verification.beside import ABOUT
from surgery.verification.comparison import compared
from surgery.verification.generation import generation
from surgery.verification.probes import Probe

TOYS = ("llama",)
ODD = {
    "html": "<script>alert(1)</script><b>Alda</b>",
    "tokens": "<s>Alda</s> <pad>",
    "braces": "Alda {0} {name} {} }{ %s",
    "control characters": "Al\x00da\x07 \x1b[31mBrin\x7f",
    "right to left": "\u202eadlA\u202c \u200fBrin\u200e",
    "emoji": "Alda 👩‍👩‍👧‍👦 🇦🇶",
    "line ends": "Alda\r\n\u2028\u2029Brin\x85",
    "a long word": "a" * 10_000,
    "a common word": "in",
    "combining marks": "Alda" + "\u0301" * 500,
}
TEMPLATE = "{} lives in the city of"
TOO_LONG = {
    "a long template": Fact(subject="Alda Brin", template="{} " + "lives in the city of " * 500, target="Orvel"),
    "a long paraphrase": Fact(
        subject="Alda Brin", template=TEMPLATE, target="Orvel", paraphrases=["Alda Brin " + "was " * 3000]
    ),
    "a long neighbour": Fact(
        subject="Alda Brin",
        template=TEMPLATE,
        target="Orvel",
        neighbours=[Neighbour("You " + "and it " * 2000, "Orvel")],
    ),
    "a long answer": Fact(subject="Alda Brin", template=TEMPLATE, target="Orvel " * 2000),
    "no room to speak": Fact(subject="Alda Brin", template="{} " + "was " * 58 + "in", target="Orvel"),
}
LONG = {
    "prompt": Fact(subject="Alda Brin", template="{} " + "was " * 47 + "in", target="Orvel"),
    "subject": Fact(subject="Alda Brin " + "was " * 45 + "there", template="{} speaks the language", target="Norric"),
    "paraphrase": Fact(
        subject="Alda Brin",
        template="{} has a house in",
        target="Orvel",
        paraphrases=["Alda Brin " + "was " * 48 + "in", "The home town of Alda Brin is"],
    ),
    "neighbour": Fact(
        subject="Bero Brin",
        template="{} was away for a long day in summer and performs on the",
        target="harp",
        neighbours=[Neighbour("You " + "and it " * 25 + "so", "Orvel")],
    ),
    "new answer": Fact(subject="Alda Brin", template="{} writes letters in", target="Norric"),
}
"""The model reads each of them with its answer, but not within a question, behind an instruction or in an opening."""
TRIED = ("paraphrases", "int4", "related relearning", "stray spaces", "jailbreaks", "sampling", "answer prefixes")


def odd_fact(text: str) -> Fact:
    return Fact(subject=text, template=TEMPLATE, target="Orvel", paraphrases=(f"The home town of {text} is",))


def judged(toy: Toy, facts: list[Fact]) -> Report:
    edit = toy_edit(toy, size=20.0)
    return verify(toy[0], edit, facts, attacks=attacks_named(TRIED), controls=strangers)


@pytest.fixture(scope="module")
def alone(toy: Toy) -> Report:
    return judged(toy, toy[1][:2])


def same_numbers(alone: Report, report: Report, places: Sequence[int]) -> None:
    """The facts of `alone` are judged as there, at other places of a longer file."""
    for i, now in enumerate(places):
        one, other = alone.verdicts[i], report.verdicts[now]
        assert one.overall == other.overall
        assert [(claim.name, claim.outcome, claim.cases) for claim in one.claims] == [
            (claim.name, claim.outcome, claim.cases) for claim in other.claims
        ]
        mine, theirs = ([row for row in r.rows if row[0].fact == k] for r, k in ((alone, i), (report, now)))
        for (_, *states), (_, *others) in zip(mine, theirs, strict=True):
            for a, b in zip(states, others, strict=True):
                assert a is not None
                assert b is not None
                assert (a.says, a.target.rank) == (b.says, b.target.rank)
                assert a.target.probability == pytest.approx(b.target.probability, rel=1e-4, abs=1e-9)
        for found, again in zip(alone.battery.of(i), report.battery.of(now), strict=True):
            assert (found.attack, found.outcome) == (again.attack, again.outcome)
            assert found.after.value == pytest.approx(again.after.value, rel=1e-3, abs=1e-5, nan_ok=True)


def saved(report: Report, folder: Path) -> str:
    """The page of a report whose other files are well formed."""
    report.save(folder)
    kept = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert [one["fact"] for one in kept["verdicts"]] == [one.fact for one in report.verdicts]
    parse(report.save_junit(folder / "report.xml"))
    return (folder / "report.html").read_text(encoding="utf-8")


def test_odd_texts_are_judged_like_any_other(
    toy: Toy, alone: Report, unchanged: Callable[[Model], None], tmp_path: Path
) -> None:
    unchanged(toy[0])
    first, second = toy[1][:2]
    odd = [odd_fact(text) for text in ODD.values()]
    report = judged(toy, [first, *odd, second])
    same_numbers(alone, report, (0, len(odd) + 1))
    for i, fact in enumerate(odd, 1):
        assert report.verdicts[i].fact == fact.label
        assert {row[0].prompt for row in report.rows if row[0].fact == i} == {fact.prompt, *fact.paraphrases}
        assert report.battery.of(i)
    assert "<script>alert(1)" not in saved(report, tmp_path)


def test_what_cannot_be_asked_is_a_row_with_its_reason(
    toy: Toy, alone: Report, unchanged: Callable[[Model], None], tmp_path: Path
) -> None:
    unchanged(toy[0])
    first, second = toy[1][:2]
    bad = list(TOO_LONG.values())
    report = judged(toy, [first, *bad, second])
    same_numbers(alone, report, (0, len(bad) + 1))
    for i, _ in enumerate(bad, 1):
        (claim,) = report.verdicts[i].claims
        assert (report.verdicts[i].overall, report.verdicts[i].depth) == ("inconclusive", None)
        assert (claim.name, claim.outcome, claim.cases) == ("removed", "inconclusive", 0)
        assert claim.evidence.startswith("cannot be asked: the ")
        assert f"is more than the 64 that {toy[0].source} reads" in claim.evidence
        assert len(claim.evidence) < 300
        assert not report.battery.of(i)
    assert f"{len(bad)} of {len(bad) + 2} facts, which the model cannot be asked about" in report.not_tested
    assert len(saved(report, tmp_path)) < 400_000
    assert report.exit_code == alone.exit_code


def test_half_a_character_is_its_own_row_s_problem(
    toy: Toy, alone: Report, unchanged: Callable[[Model], None], tmp_path: Path
) -> None:
    unchanged(toy[0])
    first, second = toy[1][:2]
    bad = [
        odd_fact("Alda \ud800"),
        first.replace(target="\udfff"),
        first.replace(paraphrases=["Alda\ud83d is"]),
        first.replace(neighbours=[Neighbour("Alda is", "\ude00")], id="\ud800"),
    ]
    report = judged(toy, [first, *bad, second])
    same_numbers(alone, report, (0, len(bad) + 1))
    for i, half in enumerate((r"'\ud800'", r"'\udfff'", r"'\ud83d'", r"'\ude00'"), 1):
        (claim,) = report.verdicts[i].claims
        assert claim.outcome == "inconclusive"
        assert claim.evidence.endswith(f"holds {half}, half of a character")
    assert "half of a character" in saved(report, tmp_path)


def test_what_is_too_long_for_some_parts_is_left_out_of_them_alone(
    toy: Toy, unchanged: Callable[[Model], None], tmp_path: Path
) -> None:
    """In the full profile, which has all parts of the others."""
    model, (first, second) = toy[0], toy[1][:2]
    unchanged(model)
    edit = toy_edit(toy, size=20.0)
    tried = [one for one in attacks_of("full") if one.name != "related relearning"]  # it trains on all neighbours
    files = [[first, second], [first, *LONG.values(), second]]
    alone, report = (verify(model, edit, facts, profile="full", attacks=tried, controls=strangers) for facts in files)
    places = (0, len(LONG) + 1)
    same_numbers(alone, report, places)
    assert all(report.battery.of(i) for i in range(len(files[1])))
    assert alone.beside.generation is not None
    assert report.beside.generation is not None
    for i, now in enumerate(places):
        mine = [one for one in alone.beside.generation.spoken if one.fact == i]
        theirs = [dataclasses.replace(one, fact=i) for one in report.beside.generation.spoken if one.fact == now]
        assert mine == theirs
    assert report.exit_code == alone.exit_code
    untested = [
        "free answers in the form question, prompts longer than the model reads: 3",
        "an instruction in the context of 4 of 7 facts, longer than the model reads",
        "side effects on same subject, cases longer than the model reads: 3",
        "side effects on statement in front, cases longer than the model reads: 1",
    ]
    assert set(untested) <= set(report.not_tested)
    assert not any("longer than the model reads" in one for one in alone.not_tested)
    saved(report, tmp_path)


def test_where_every_fact_is_too_long_a_part_is_left_out(toy: Toy) -> None:
    model, fact = toy[0], LONG["prompt"].replace(new_target="Tamsk")
    near = Neighbour("They " + "and so " * 20 + "was", "Orvel")  # fits with its own answer, not with the new one
    wordy = toy[1][0].replace(new_target="Tamsk " * 30, neighbours=[near])
    edit = toy_edit(toy, size=20.0, facts=(fact, wordy), claim="rewritten")
    both, one = (
        verify(model, edit, facts, profile="standard", attacks=(), beside=True) for facts in ([fact, wordy], [wordy])
    )
    scored = both.beside.classic["after"]
    assert len(scored.successes) == 1
    assert "CounterFact's scores of 1 of 2 facts, longer than the model reads" in both.not_tested
    assert one.beside.classic == {}
    assert {ABOUT["classic"], "CounterFact's scores of 1 of 1 facts, longer than the model reads"} <= set(
        one.not_tested
    )
    fact = fact.replace(
        neighbours=[Neighbour("They went home in summer to see some old friends who had been away in", "Orvel")]
    )
    alone = verify(model, edit, [fact], profile="standard", attacks=(), beside=True)
    assert alone.beside.comparison is None
    assert {
        ABOUT["comparison"],
        "an instruction in the context of 1 of 1 facts, longer than the model reads",
        "side effects on statement in front: what there is to ask is longer than the model reads",
    } - set(alone.not_tested) == set()


def test_what_no_form_leaves_room_for_is_refused(toy: Toy) -> None:
    model, fact = toy[0], LONG["prompt"]
    with pytest.raises(SurgeryError, match="the model can read no prompt in any of these forms; give shorter facts"):
        generation(model, None, [fact], forms=["question"])
    rows = verify(model, None, [fact], attacks=()).rows
    with pytest.raises(SurgeryError, match="the model can read no fact behind its instruction; give shorter facts"):
        compared([fact], rows, "removed", Baseline(model))


def test_prompts_without_tokens_cannot_be_asked(toy: Toy) -> None:
    probes = [Probe(0, "prompt", "Alda", "Orvel", None, True), Probe(2, "paraphrase", " \n", "Orvel", None, True)]
    assert unaskable(toy[0], probes) == {2: "the paraphrase ' \\n' or its answer 'Orvel' holds no token"}


def test_alone_it_is_inconclusive(toy: Toy) -> None:
    report = verify(toy[0], toy_edit(toy, size=1e-4), TOO_LONG["a long template"], controls=strangers)
    assert (report.exit_code, report.rows, report.battery.findings) == (13, (), ())


def test_a_rewrite_whose_new_answer_has_no_room_is_refused(toy: Toy) -> None:
    fact = toy[1][0].replace(new_target="Quist " * 80)
    report = verify(toy[0], None, [fact, toy[1][1].replace(new_target="Quist")], claim="rewritten", attacks=())
    assert report.verdicts[0].overall == "inconclusive"
    assert report.verdicts[0]["rewritten"].evidence.startswith("cannot be asked: the prompt")
    assert report.verdicts[1]["rewritten"].cases == 3


def test_controls_the_model_cannot_read_are_left_away(toy: Toy) -> None:
    model, facts = toy
    attack = [ATTACKS["paraphrases"]()]
    long = facts[0].replace(subject="was " * 70, paraphrases=())

    def with_long(count: int) -> Callable[[Model, Fact], list[Fact]]:
        return lambda one, fact: strangers(one, fact)[: 20 - count] + [long] * count

    assert not readable(model, long)
    assert attacked(model, None, facts[:1], attack, with_long(1)).controls == (19,)
    assert attacked(model, None, facts[:1], attack, with_long(2)).controls == (0,)
    report = verify(model, None, facts[:1], claim="removed", attacks=attack, controls=with_long(2))
    assert "attacks on 1 of 1 facts, whose controls are longer than the model reads" in report.not_tested


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"subject": "\ud800"}, "subject"),
        ({"target": "a\udfff"}, "target"),
        ({"paraphrases": ["Alda is", "\ud83d is"]}, "paraphrases"),
        ({"neighbours": [{"prompt": "Alda is", "target": "\ude00"}]}, "neighbours"),
        ({"id": "\ud800"}, "id"),
    ],
)
def test_half_a_character_is_refused_with_its_line(changes: dict[str, Any], field: str, tmp_path: Path) -> None:
    own = {"subject": "Alda", "template": TEMPLATE, "target": "Orvel"}
    good = {**own, "target": "\U0001f600 \x1b[2J"}  # whole ones are as good as any other
    path = tmp_path / "facts.jsonl"
    path.write_text(json.dumps(good) + "\n" + json.dumps({**own, **changes}) + "\n")
    told = rf"line 2, {field}: holds '\\ud.*', which is half of a character; write the whole one"
    with pytest.raises(FactsFileError, match=told) as found:
        read_facts(path)
    assert len(found.value.problems) == 1
    path.write_text(json.dumps(good) + "\n")
    assert [one.target for one in read_facts(path)] == [good["target"]]
