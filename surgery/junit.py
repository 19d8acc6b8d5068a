"""A report as JUnit XML, which CI systems show beside other tests: one test case a fact and claim.

A claim that fails is a failure with its evidence, one that cannot be told an error, one that does not apply is skipped.
So a report has neither failures nor errors where every claim holds. What is not allowed in XML 1.0 is left out:
control characters but tab and line ends, lone surrogates, U+FFFE and U+FFFF (https://www.w3.org/TR/xml/#charsets).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from xml.etree.ElementTree import Element, SubElement, indent, tostring

if TYPE_CHECKING:
    from surgery.report import Report
    from surgery.verification.verdicts import Claim

_BARRED = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_AS = {"fails": "failure", "inconclusive": "error", "not applicable": "skipped"}


def junit(report: Report) -> bytes:
    """The verdicts of a report as a JUnit file's content."""
    cases = [(verdict.fact, claim) for verdict in report.verdicts for claim in verdict.claims]
    cases.append(("whole model", report.drift_claim))
    outcomes = [claim.outcome for _, claim in cases]
    counts = {
        "tests": len(cases),
        "failures": outcomes.count("fails"),
        "errors": outcomes.count("inconclusive"),
        "skipped": outcomes.count("not applicable"),
    }
    totals = {name: str(count) for name, count in counts.items()} | {"time": f"{report.seconds:.3f}"}
    root = Element("testsuites", {"name": "surgery verify", **totals})
    suite = SubElement(root, "testsuite", {"name": f"surgery verify: {report.claim}", **totals})
    properties = SubElement(suite, "properties")
    about = {
        "model": report.model,
        "weights before": report.base,
        "profile": report.profile,
        "exit code": str(report.exit_code),
        "meaning": report.meaning,
        **{f"not tested {i}": text for i, text in enumerate(report.not_tested, 1)},
    }
    for name, value in about.items():
        SubElement(properties, "property", name=name, value=allowed(value))
    for fact, claim in cases:
        _case(suite, fact, claim)
    indent(root)
    return tostring(root, encoding="utf-8", xml_declaration=True) + b"\n"


def allowed(text: str) -> str:
    """A text without the characters that XML does not allow."""
    return _BARRED.sub("", text)


def _case(suite: Element, fact: str, claim: Claim) -> None:
    case = SubElement(suite, "testcase", classname=allowed(fact), name=claim.name)
    told = allowed(claim.evidence)
    if claim.outcome == "holds":
        SubElement(case, "system-out").text = told
        return
    found = SubElement(case, _AS[claim.outcome], message=told)
    if claim.outcome != "not applicable":
        found.set("type", claim.outcome)
        found.text = told
