"""`surgery ledger`: facts in and out of a folder, from the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from xml.etree.ElementTree import parse

import pytest
from command_line import Folder, Surgery, printed
from ledgers import FAR

from edits import OBJECTIVES, Emmet, Ledger, Replace, ValueSearch, fit_statistics
from surgery import Certificate, Edit, Fact, Model, Site, write_facts

LEDGER = ("--ledger", "kept")


@pytest.fixture(scope="module")
def three(facts: list[Fact]) -> list[Fact]:
    """Three facts to rewrite, one with an id."""
    found = [facts[i].replace(new_target=facts[i].neighbours[0].target) for i in (27, 45, 72)]
    return [found[0], found[1].replace(id="second"), found[2]]


@pytest.fixture(scope="module")
def small(given: Folder, model: Model, facts: list[Fact], three: list[Fact]) -> Path:
    """A ledger of the three facts in one layer, found in a few steps."""
    texts = Path(given["corpus.txt"]).read_text().splitlines()
    statistics = fit_statistics(model, texts, [0], progress=False)
    search = ValueSearch(steps=3)
    method = Emmet(statistics=statistics, objective=Replace(), contexts=("{}",), search=search, limits=FAR)
    ledger = Ledger.create(Path(given["ledger"]), model, method, [Site("L0.mlp")])
    ledger.add(model, three)
    return ledger.folder


@pytest.fixture
def kept(surgery: Surgery, small: Path, three: list[Fact]) -> Ledger:
    """The ledger in a folder of its own, and its facts in `three.jsonl`."""
    write_facts("three.jsonl", three)
    shutil.copytree(small, "kept")
    return Ledger.open("kept")


def test_a_ledger_is_made_with_its_first_facts(
    surgery: Surgery, given: Folder, three: list[Fact], capsys: pytest.CaptureFixture[str]
) -> None:
    write_facts("one.jsonl", three[:1])
    arguments = ("ledger", "add", "--model", given["model"], *LEDGER, "--facts", "one.jsonl")
    assert surgery(*arguments, "--corpus", given["corpus.txt"], "--method", "rank-one", "--layer", "0", "--json") == 0
    record, err = printed(capsys)
    assert not err
    assert (record["facts"], record["sites"], record["method"]) == (1, ["L0.mlp"], "rank-one")
    kept = Ledger.open("kept")
    assert record["version"] == kept.head.hash
    assert kept.list()[0].fact == three[0]
    assert surgery(*arguments) == 0
    assert f"nothing to change: version {kept.head.hash[:12]}" in capsys.readouterr().out
    # what is said again as it is, and what is not said, is no contradiction
    assert surgery(*arguments, "--seed", "1", "--limits", "perplexity=1.5", "--method", "rank-one") == 0
    # where facts are removed, a new answer is left away
    other = ("--ledger", "other", "--objective", "maximum-entropy", "--method", "rank-one", "--layer", "0")
    assert surgery(*arguments, *other) == 0
    assert "1 added, 0 removed, 0 changed, 1 fact\n" in capsys.readouterr().out
    assert Ledger.open("other").list()[0].fact == three[0].replace(new_target=None)


def test_facts_go_in_and_out_and_the_edit_comes_along(
    surgery: Surgery, given: Folder, model: Model, kept: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    first = kept.head
    assert surgery("ledger", "list", *LEDGER, "--json") == 0
    record, _ = printed(capsys)
    assert len(record["facts"]) == 3
    assert "second" in {one["fact"].get("id") for one in record["facts"]}
    name = next(one["entry"] for one in record["facts"] if one["fact"].get("id") != "second")
    assert surgery("ledger", "remove", "--model", given["model"], *LEDGER, "second", name[:6]) == 0
    assert "0 added, 2 removed, 0 changed, 1 fact\n" in capsys.readouterr().out
    assert surgery("ledger", "diff", *LEDGER, "--json") == 0
    record, _ = printed(capsys)
    assert (len(record["removed"]), record["before"]) == (2, first.hash)
    assert record["weights"] > 0
    assert surgery("ledger", "diff", *LEDGER, first.hash[:6], first.hash) == 0
    assert "are 0 of their norm apart" in capsys.readouterr().out
    assert surgery("ledger", "export", *LEDGER, "--out", "now.edit", "--quiet") == 0
    assert surgery("ledger", "export", *LEDGER, "--out", "then.edit", "--version", first.hash[:8]) == 0
    assert "3 facts" in capsys.readouterr().out
    edits = [Edit.load("now.edit"), Edit.load("then.edit")]
    assert [len(edit.facts) for edit in edits] == [1, 3]
    for edit in edits:
        with edit.applied(model):
            pass
    assert surgery("verify", "--model", given["model"], "--edit", "now.edit", "--report", "report", "--quiet") in (
        0,
        11,
    )


def test_a_ledger_is_judged_as_a_whole(
    surgery: Surgery, given: Folder, kept: Ledger, three: list[Fact], capsys: pytest.CaptureFixture[str]
) -> None:
    common = ("--model", given["model"], *LEDGER)
    code = surgery("verify", *common, "--report", "report", "--certificate", "certificate.json", "--json")
    record, err = printed(capsys)
    assert not err
    assert code == record["exit_code"]
    assert {one["fact"] for one in record["verdicts"]} == {fact.label for fact in three}
    assert record["claim"] == "rewritten"
    assert record["edit"] == json.loads(json.dumps(kept.edit().summary()))
    assert Certificate.load("certificate.json").check(edit=kept.edit(), facts=three).ok
    # some of them, judged by the edit of all
    write_facts("one.jsonl", three[:1])
    surgery("verify", *common, "--facts", "one.jsonl", "--report", "report", "--json")
    assert [one["fact"] for one in printed(capsys)[0]["verdicts"]] == [three[0].label]


def test_adding_judges_the_earlier_facts_again(
    surgery: Surgery, given: Folder, kept: Ledger, facts: list[Fact], capsys: pytest.CaptureFixture[str]
) -> None:
    before = kept.head
    new = facts[60].replace(new_target=facts[60].neighbours[0].target)
    write_facts("new.jsonl", [new])
    common = ("ledger", "add", "--model", given["model"], *LEDGER, "--facts", "new.jsonl", "--verify")
    code = surgery(*common, "--report", "report", "--junit", "verdicts.xml", "--certificate", "given.json", "--json")
    record, err = printed(capsys)
    assert not err
    assert (record["junit"], record["certificate"]) == ("verdicts.xml", "given.json")
    assert Certificate.load("given.json").check(edit=kept.edit(), facts=new).ok
    named = {one.get("classname") for one in parse("verdicts.xml").iter("testcase")}
    assert named >= {one["fact"] for one in record["verdicts"]}
    assert kept.head.parent == before.hash
    assert record["version"] == kept.head.hash
    assert code == record["exit_code"] == json.loads(Path("report/report.json").read_text())["exit_code"]
    assert len(record["verdicts"]) == 4
    # what is there already is judged as well, and a report is not asked for
    assert surgery(*common) == code
    out = capsys.readouterr().out
    assert "nothing to change" in out
    assert record["meaning"] in out


def test_an_earlier_fact_that_a_new_one_brings_back_is_found(
    surgery: Surgery, given: Folder, model: Model, facts: list[Fact], capsys: pytest.CaptureFixture[str]
) -> None:
    """Both are about one person, whose key they share, and the new one asks for what the first has removed."""
    fact = facts[45]
    gone = fact.replace(new_target=next(one.target for one in fact.neighbours if one.target != fact.target), id="gone")
    other = next(one for one in facts if one.subject == fact.subject and one.template != fact.template)
    back = other.replace(template=fact.paraphrases[0].replace(fact.subject, "{}"), target=str(gone.new_target),
                         new_target=fact.target, paraphrases=(), neighbours=(), id="back")  # fmt: skip
    statistics = fit_statistics(model, Path(given["corpus.txt"]).read_text().splitlines(), [0], progress=False)
    search = ValueSearch(steps=60, clamp=8.0, stop=0.005)
    contexts = ("{}", "The day . {}", "Because {}")
    method = Emmet(statistics=statistics, objective=Replace(), contexts=contexts, search=search, limits=FAR)
    Ledger.create(Path("kept"), model, method, [Site("L0.mlp")]).add(model, [gone])
    common = ("--model", given["model"], *LEDGER)
    judged = ("verify", *common, "--claim", "removed", "--attacks", "paraphrases", "--report", "report", "--json")
    # only the drift of a toy stands against it
    assert surgery(*judged) == 11
    assert {one["name"]: one["outcome"] for one in printed(capsys)[0]["verdicts"][0]["claims"]} == dict.fromkeys(
        ("known", "removed", "neighbours", "extraction"), "holds"
    )
    write_facts("back.jsonl", [back])
    assert surgery("ledger", "add", *common, "--facts", "back.jsonl", "--verify", "--json") == 10
    again = {one["fact"]: one["overall"] for one in printed(capsys)[0]["verdicts"]}
    assert again["gone"] == "still there"
    assert surgery(*judged) == 10
    (verdict,) = (one for one in printed(capsys)[0]["verdicts"] if one["fact"] == "gone")
    assert verdict["overall"] == "still there"
    assert {one["name"]: one["outcome"] for one in verdict["claims"]}["extraction"] == "fails"


def test_a_check_says_what_is_wrong_and_pruning_forgets(
    surgery: Surgery, given: Folder, three: list[Fact], kept: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ("--model", given["model"], *LEDGER)
    secret = three[2]
    assert surgery("ledger", "remove", *common, f"{secret.subject} | {secret.prompt}", "--quiet") == 0
    assert surgery("ledger", "check", *common, "--solve", "--values") == 0
    out = capsys.readouterr().out
    assert "3 versions, 6 files, 0 left over: all whole" in out
    assert "solved again: the same to the last bit" in out
    assert "values found again: the same to the last bit" in out
    assert surgery("ledger", "list", *LEDGER, "--versions", "--json") == 0
    record, _ = printed(capsys)
    assert [len(one["values"]) for one in record["versions"]] == [2, 3, 0]
    assert any(secret.prompt.encode() in path.read_bytes() for path in Path("kept").rglob("*.safetensors"))
    assert surgery("ledger", "prune", *LEDGER, "--forget-history") == 0
    assert capsys.readouterr().out == "4 files deleted\n"
    assert not any(secret.prompt.encode() in path.read_bytes() for path in Path("kept").rglob("*.safetensors"))
    next(Path("kept", "objects").iterdir()).write_bytes(b"else")
    assert surgery("ledger", "check", *LEDGER, "--json") == 1
    record, _ = printed(capsys)
    assert not record["ok"]
    assert "restore it from a backup" in record["problems"][0]


def test_a_new_ledger_takes_seed_limits_and_every_objective(
    surgery: Surgery, given: Folder, three: list[Fact], capsys: pytest.CaptureFixture[str]
) -> None:
    write_facts("one.jsonl", three[:1])
    arguments = ("ledger", "add", "--model", given["model"], *LEDGER, "--facts", "one.jsonl")
    new = ("--corpus", given["corpus.txt"], "--method", "rank-one", "--layer", "0", "--objective", "refusal")
    assert surgery(*arguments, *new, "--seed", "2", "--limits", "relative-change=3", "--quiet") == 0
    record = Ledger.open("kept").head.method
    assert (record["seed"], record["limits"]["relative_change"], record["limits"]["perplexity"]) == (2, 3.0, 1.5)
    again = (*arguments, "--objective", "refusal")
    assert surgery(*again, "--quiet") == 0  # the seed left away is the ledger's
    assert surgery(*again, "--seed", "1") == 2
    assert "the seed of this ledger is 2, not 1; leave --seed away, or make another" in capsys.readouterr().err
    tight = (*again, "--ledger", "tight", "--method", "rank-one", "--layer", "0", "--limits", "relative-change=1e-9")
    assert surgery(*tight) == 2
    assert "raise the limit if you mean it: make a ledger with --limits NAME=NUMBER" in capsys.readouterr().err
    assert surgery("ledger", "add", "--help") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert all(name in out for name in OBJECTIVES)


def test_an_exported_edit_keeps_its_facts_as_asked(
    surgery: Surgery, kept: Ledger, three: list[Fact], capsys: pytest.CaptureFixture[str]
) -> None:
    assert surgery("ledger", "export", *LEDGER, "--out", "now.edit", "--keep-facts", "hashed") == 0
    assert "3 facts" in capsys.readouterr().out
    edit = Edit.load("now.edit")
    assert edit.facts == ()
    assert all(edit.mentions(fact) for fact in three)
    assert three[0].subject.encode() not in Path("now.edit").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("add", "--facts", "three.jsonl", "--method", "memit"), "the method of this ledger is emmet, not memit"),
        (("add", "--facts", "three.jsonl", "--layer", "1"), "the layer of this ledger is L0.mlp, not L1.mlp"),
        (("add", "--facts", "three.jsonl", "--objective", "neutral"), "this ledger is replace, not neutral"),
        (("add", "--facts", "three.jsonl", "--seed", "2"), "the seed of this ledger is 1, not 2; leave --seed away"),
        (
            ("add", "--facts", "three.jsonl", "--limits", "perplexity=2"),
            "the limits of this ledger are relative-change=100,value-norm=100,perplexity=100, not relative",
        ),
        (("export", "--out", "new", "--keep-facts", "some"), "there is no way to keep facts 'some'"),
        (("add", "--facts", "three.jsonl", "--corpus", "three.jsonl"), "has its key statistics; leave --corpus away"),
        (("add", "--facts", "three.jsonl", "--ledger", "new", "--method", "nas"), "nas anchors values"),
        (("remove", "Alda"), "there is no fact 'Alda' in the ledger"),
        (("diff", "abcd"), "there is no version 'abcd'"),
        (("list", "--versions", "--version", "abcd"), "give one of them"),
        (("list", "--ledger", "absent"), "there is no ledger in absent; make one"),
        (("check", "--ledger", "absent"), "there is no ledger in absent; make one"),
    ],
    ids=str,
)
def test_a_wrong_value_is_told_in_one_line(
    surgery: Surgery,
    given: Folder,
    kept: Ledger,
    arguments: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = kept.head
    where = () if "--ledger" in arguments else LEDGER
    assert surgery("ledger", arguments[0], "--model", given["model"], *where, *arguments[1:]) == 2
    err = capsys.readouterr().err
    assert err.startswith("surgery: ")
    assert err.count("\n") == 1
    assert message in err
    assert kept.head == before
    assert not Path("new").exists()
