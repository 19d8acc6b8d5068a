"""JUnit XML of a report: well-formed whatever the facts say, and its counts are the report's."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from xml.etree.ElementTree import Element, fromstring, parse

import pytest
from by_hand import Toy, toy_edit
from hypothesis import given
from hypothesis import strategies as st

from surgery import Report, SurgeryError, verify
from surgery.junit import allowed, junit
from surgery.verification import Claim, Verdict

TOYS = ("llama",)
HOSTILE = "]]><failure message='x'/> & \"\x00\x1b[31m \u202e \ufffe \ud800 \x85 \U0001f600\n\ttwo lines"


@pytest.fixture(scope="module")
def report(toy: Toy) -> Report:
    evil = toy[1][0].replace(id=HOSTILE, paraphrases=(f"{toy[1][0].subject} lives in \x1b[31m",))
    return verify(toy[0], toy_edit(toy, size=0.01, facts=(evil, toy[1][1])), texts=["The", "They"], profile="quick")


def cases(root: Element) -> dict[tuple[str, str], Element]:
    return {(one.get("classname", ""), one.get("name", "")): one for one in root.iter("testcase")}


def test_a_case_is_a_fact_and_claim_with_its_evidence(report: Report, tmp_path: Path) -> None:
    path = report.save_junit(tmp_path / "deep" / "junit.xml")
    root = parse(path).getroot()
    (suite,) = root
    assert (root.tag, suite.tag, suite.get("name")) == ("testsuites", "testsuite", "surgery verify: removed")
    found = cases(root)
    claims = [(allowed(one.fact), claim) for one in report.verdicts for claim in one.claims]
    assert list(found) == [*((fact, claim.name) for fact, claim in claims), ("whole model", "drift")]
    outcomes = [claim.outcome for _, claim in claims] + [report.drift_claim.outcome]
    assert outcomes.count("fails") > 0
    counts = [len(outcomes), outcomes.count("fails"), outcomes.count("inconclusive"), outcomes.count("not applicable")]
    for one in (root, suite):
        assert [int(one.get(name, "")) for name in ("tests", "failures", "errors", "skipped")] == counts
    assert [len(list(root.iter(name))) for name in ("testcase", "failure", "error", "skipped")] == counts
    for fact, claim in claims:
        (told,) = found[fact, claim.name]
        if claim.outcome == "holds":
            assert (told.tag, told.text) == ("system-out", allowed(claim.evidence))
        else:
            assert told.get("message") == allowed(claim.evidence)
    about = {one.get("name"): one.get("value") for one in root.iter("property")}
    assert (about["exit code"], about["profile"]) == ("10", "quick")
    assert about["not tested 1"] == report.not_tested[0]


def test_text_stays_as_it_is_but_for_what_xml_does_not_allow(report: Report) -> None:
    names = [one.get("classname") for one in fromstring(junit(report)).iter("testcase")]
    assert names[0] == "]]><failure message='x'/> & \"[31m \u202e   \x85 \U0001f600\n\ttwo lines"


@given(st.text(st.characters(exclude_categories=())))
def test_whatever_it_says_it_is_well_formed(text: str) -> None:
    kept = allowed(text)
    assert set(text) - set(kept) <= {chr(code) for code in (*range(32), 0xFFFE, 0xFFFF, *range(0xD800, 0xE000))}
    assert fromstring(f"<a>{kept.replace('&', '').replace('<', '')}</a>".encode()).tag == "a"


@pytest.mark.parametrize(
    ("outcome", "tag", "type_"),
    [("fails", "failure", "fails"), ("inconclusive", "error", "inconclusive"), ("not applicable", "skipped", None)],
)
def test_what_does_not_hold_is_said_as_ci_systems_know_it(
    report: Report, outcome: str, tag: str, type_: str | None
) -> None:
    claim = Claim("removed", outcome, "why \x07so", 3)  # type: ignore[arg-type]
    one = dataclasses.replace(report, verdicts=(Verdict("it", (claim,), "still there"),))
    (told,) = cases(fromstring(junit(one)))["it", "removed"]
    assert (told.tag, told.get("type"), told.get("message")) == (tag, type_, "why so")


def test_a_place_that_cannot_be_written_is_refused(report: Report, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SurgeryError, match="cannot write to the folder"):
        report.save_junit(tmp_path / "file" / "junit.xml")
