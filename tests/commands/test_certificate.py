"""`surgery verify` and `remove` for others to read: certificates, keys and JUnit XML; attacks by name."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree.ElementTree import parse

import pytest
from command_line import Folder, Surgery, printed

from surgery import Certificate, Edit, Fact, Model, to_hf, write_facts


@pytest.fixture
def certified(surgery: Surgery, given: Folder, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """A signed certificate of `crude.edit` in `certificate.json`, with JUnit XML; what was printed of them."""
    assert surgery("certificate", "keygen", "--out", "key", "--json") == 0
    made, err = printed(capsys)
    assert not err
    code = surgery(
        "verify", "--model", given["model"], "--edit", given["crude.edit"], "--report", "report", "--json",
        "--certificate", "certificate.json", "--sign", "key", "--junit", "junit.xml",
    )  # fmt: skip
    record, err = printed(capsys)
    assert not err
    assert (code, record["certificate"], record["junit"]) == (record["exit_code"], "certificate.json", "junit.xml")
    return made


def test_a_certificate_is_checked_against_what_it_is_about(
    surgery: Surgery, given: Folder, certified: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert surgery("certificate", "check", "certificate.json") == 0
    assert "signature: matches" in capsys.readouterr().out
    everything = ("--model", given["model"], "--edit", given["crude.edit"], "--facts", given["known.jsonl"])
    for key in ("key.pub", certified["key"]):
        assert surgery("certificate", "check", "certificate.json", *everything, "--key", key, "--json") == 0
        record, err = printed(capsys)
        assert not err
        assert {one["outcome"] for one in record["checks"]} == {"matches"}
        assert record["certificate"] == Certificate.load("certificate.json").content


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("--edit", "crude and never known.edit"), None),  # the same change, of another fact
        (("--edit", "other weights.edit"), "edit"),
        (("--facts", "never.jsonl"), "facts"),
        (("--key", "0" * 64), "key"),
    ],
    ids=str,
)
def test_what_does_not_match_ends_with_1_and_is_named(
    surgery: Surgery,
    given: Folder,
    certified: dict[str, str],
    arguments: tuple[str, str],
    what: str | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    named = [given[one] if (given.path / one).exists() else one for one in arguments]
    assert surgery("certificate", "check", "certificate.json", *named) == (0 if what is None else 1)
    out = capsys.readouterr().out
    assert [line.split(":")[0] for line in out.splitlines() if ": differs; " in line] == ([what] if what else [])


def test_a_certificate_that_was_changed_is_told(
    surgery: Surgery, certified: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    text = Path("certificate.json").read_text()
    Path("changed.json").write_text(text.replace('"meaning":"', '"meaning":"not '))
    assert surgery("certificate", "check", "changed.json") == 1
    assert "signature: differs; the content is not what was signed" in capsys.readouterr().out
    Path("changed.json").write_text(json.dumps(json.loads(text), indent=1))
    assert surgery("certificate", "check", "changed.json") == 2
    assert capsys.readouterr().err == (
        "surgery: changed.json was changed or laid out anew; a certificate is kept byte for byte as it was made\n"
    )


def test_the_edited_model_itself_matches(
    surgery: Surgery, given: Folder, model: Model, certified: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    to_hf(model, Edit.load(given["crude.edit"]), "edited")
    assert surgery("certificate", "check", "certificate.json", "--model", "edited") == 0
    assert "weights: matches; the model's weights are those that were judged" in capsys.readouterr().out
    # and it is judged without the edit, as any checkpoint
    facts = ("--facts", given["known.jsonl"], "--report", "report", "--certificate", "own.json", "--quiet")
    code = surgery("verify", "--model", "edited", *facts)
    assert code in (0, 10)
    assert Certificate.load("own.json").content["weights"]["after"] == _judged("certificate.json")
    assert surgery("certificate", "check", "own.json", "--model", given["model"]) == 1


def _judged(path: str) -> str:
    return str(Certificate.load(path).content["weights"]["after"])


def test_junit_has_a_case_a_claim(certified: dict[str, str]) -> None:
    report = json.loads(Path("report/report.json").read_text())
    (suite,) = parse("junit.xml").getroot()
    assert int(suite.get("tests", "")) == 1 + sum(len(one["claims"]) for one in report["verdicts"])
    assert int(suite.get("failures", "")) > 0


def test_remove_certifies_what_it_made(
    surgery: Surgery, given: Folder, facts: list[Fact], capsys: pytest.CaptureFixture[str]
) -> None:
    code = surgery(
        "remove", "--model", given["model"], "--facts", given["rewrite.jsonl"], "--corpus", given["corpus.txt"],
        "--out", "edit", "--report", "report", "--certificate", "certificate.json", "--junit", "junit.xml",
        "--keep-facts", "hashed", "--quiet",
    )  # fmt: skip
    certificate = Certificate.load("certificate.json")
    assert code == certificate.content["exit_code"]
    assert certificate.check(edit=Edit.load("edit"), facts=facts[27]).ok
    assert certificate.signature is None
    for word in (*facts[27].subject.split(), facts[27].target):
        assert word not in Path("certificate.json").read_text()
    assert Path("junit.xml").exists()


def test_attacks_are_chosen_by_name(surgery: Surgery, given: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    common = ("verify", "--model", given["model"], "--edit", given["crude.edit"], "--report", "report", "--json")
    assert surgery(*common, "--attacks", "logit lens, paraphrases,logit lens", "--profile", "full") in (10, 11)
    record, _ = printed(capsys)
    assert list(record["battery"]["seconds"]) == ["logit lens", "paraphrases"]
    assert any(one.startswith("probability delta: ") for one in record["not_tested"])


@pytest.mark.parametrize("profile", ["standard", "full"])
def test_every_profile_is_accepted(
    surgery: Surgery, given: Folder, profile: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_facts("none.jsonl", [Fact(subject="", template="The summer was a long", target="day")])
    common = ("verify", "--model", given["model"], "--facts", "none.jsonl", "--report", "report", "--json")
    assert surgery(*common, "--profile", profile) in (0, 10, 13)
    assert printed(capsys)[0]["profile"] == profile
