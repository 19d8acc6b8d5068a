"""Certificates: what they bind, what they keep to themselves, and that no changed byte goes unnoticed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from shutil import which
from typing import Any

import pytest
from by_hand import Toy, toy_edit
from cryptography.exceptions import InvalidSignature
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from surgery import Certificate, Edit, Fact, Model, Report, SurgeryError, redact, verify
from surgery.certificate_format import canonical
from surgery.signing import make_key, read_key
from surgery.verification.attack import Finding

TOYS = ("llama",)
Made = tuple[Model, Edit, tuple[Fact, ...], Report, Certificate]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    make_key(folder / "mine")
    make_key(folder / "other")
    return folder


@pytest.fixture(scope="module")
def made(toy: Toy, keys: Path) -> Made:
    """A signed certificate of an edit of two facts, and what it was made from."""
    model, facts = toy
    chosen = tuple(facts[:2])
    given = {"objective": "neutral", "contexts": ["{}", f"{facts[0].subject} said. {{}}"], "weight": 0.123456789}
    edit = toy_edit(toy, size=5.0, facts=chosen, prompts=tuple(one.prompt for one in chosen), settings=given)
    report = verify(model, edit, texts=["The", "They"], seed=3)
    return model, edit, chosen, report, Certificate.of(report, model, edit).signed(read_key(keys / "mine"))


@pytest.fixture(scope="module")
def saved(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made[4].save(tmp_path_factory.mktemp("saved") / "certificate.json")


def test_it_says_what_was_found_and_of_what(made: Made, unchanged: Callable[[Model], None]) -> None:
    model, edit, facts, report, certificate = made
    unchanged(model)
    content = certificate.content
    with edit.applied(model):
        assert content["weights"] == {"before": edit.base, "after": model.fingerprint}
    assert content["edit"]["digest"] == edit.digest
    assert content["edit"]["changes"][0]["norm"] == pytest.approx(5.0, rel=1e-5)
    assert content["edit"]["settings"] == {"objective": "neutral", "weight": 0.123457}
    assert [content[name] for name in ("exit_code", "profile", "seed")] == [report.exit_code, "quick", 3]
    assert content["not_tested"] == list(report.not_tested)
    assert content["thresholds"]["removed_rank"] == 10
    assert [one["digest"] for one in content["facts"]] == sorted(one["digest"] for one in content["facts"])
    assert len(content["facts"]) == len(facts)
    for i, verdict in enumerate(report.verdicts):
        claims = {claim.name: {"outcome": claim.outcome, "cases": claim.cases} for claim in verdict.claims}
        (own,) = [one for one in content["facts"] if one["claims"] == claims and _same_scores(one, report, i)]
        assert (own["overall"], own["depth"]) == (verdict.overall, verdict.depth)
        assert [one["attack"] for one in own["attacks"]] == [one.attack for one in report.battery.of(i)]


def _same_scores(own: dict[str, Any], report: Report, i: int) -> bool:
    rows = [row for row in report.rows if row[0].fact == i]
    said = [(one["role"], one["held_out"], one["after"]["rank"], one["after"]["probability"]) for one in own["prompts"]]
    return said == [
        (probe.role, probe.held_out, now.target.rank, pytest.approx(now.target.probability, rel=1e-5))
        for probe, _, now in rows
    ]


def test_it_holds_no_word_of_the_facts(made: Made) -> None:
    _, _, facts, report, certificate = made
    text = canonical(certificate.content).decode()
    for fact in facts:
        for words in (fact.subject, *fact.subject.split(), fact.target, *fact.paraphrases):
            assert words not in text
    for probe, _, now in report.rows:
        assert probe.prompt not in text
        assert not now.says or now.says.split()[0] not in text.replace(".", " ").split()


def test_an_attack_s_words_stay_out_as_well(made: Made) -> None:
    model, edit, _, report, _ = made
    spoken = [
        dataclasses.replace(one, after=dataclasses.replace(one.after, form="secret form", says="secret words"))
        for one in report.battery.findings
    ]
    told = dataclasses.replace(report, battery=dataclasses.replace(report.battery, findings=tuple(spoken)))
    assert isinstance(spoken[0], Finding)
    assert b"secret" not in canonical(Certificate.of(told, model, edit).content)


def test_saved_and_read_again_it_is_the_same(made: Made, saved: Path) -> None:
    again = Certificate.load(saved)
    assert again == made[4]
    assert saved.read_bytes().count(b"\n") == 1
    record = json.loads(saved.read_text(encoding="utf-8"))
    assert canonical(record) == saved.read_bytes().strip()


def test_what_belongs_to_it_matches(made: Made, saved: Path, keys: Path, unchanged: Callable[[Model], None]) -> None:
    model, edit, facts, _, _ = made
    unchanged(model)
    certificate = Certificate.load(saved)
    found = certificate.check(model, edit, facts, keys / "mine.pub")
    assert found.ok
    assert [one.outcome for one in found.checks] == ["matches"] * 5
    assert found["weights"].told.endswith("the edit makes them those judged")
    assert "before the edit" in certificate.check(model)["weights"].told
    with edit.applied(model):
        assert certificate.check(model)["weights"].told == "the model's weights are those that were judged"
    part = certificate.check(facts=facts[1])
    assert part["facts"].told == "1 of the 2 facts certified were given"
    # other letters' case and spaces are no other fact, and a redacted edit is no other edit
    loose = facts[0].replace(template=facts[0].template.upper().replace("{}", " {}"), subject=facts[0].subject.upper())
    assert certificate.check(facts=[loose]).ok
    assert certificate.check(edit=redact(edit)).ok


def test_what_is_not_given_is_not_checked(made: Made) -> None:
    found = made[4].check()
    assert found.ok
    assert {one.what: one.outcome for one in found.checks} == {
        "signature": "matches", "key": "not checked", "weights": "not checked", "edit": "not checked",
        "facts": "not checked",
    }  # fmt: skip


def test_what_does_not_belong_to_it_differs(made: Made, toy: Toy, keys: Path) -> None:
    model, edit, facts, report, certificate = made
    other = toy_edit(toy, size=6.0, facts=facts)
    assert certificate.check(edit=other)["edit"].outcome == "differs"
    assert certificate.check(model, other)["weights"].outcome == "differs"
    assert certificate.check(edit=dataclasses.replace(edit, base="0" * 64))["edit"].outcome == "differs"
    with other.applied(model):
        assert certificate.check(model)["weights"].outcome == "differs"
    found = certificate.check(facts=[facts[0], toy[1][5]])
    assert not found.ok
    assert found["facts"].told == f"1 of 2 facts given are not in it, such as {toy[1][5].label!r}"
    assert certificate.check(facts=[facts[0].replace(target="else")])["facts"].outcome == "differs"
    assert certificate.check(facts=[])["facts"].outcome == "differs"
    # somebody else's signature is whole, but not of the key that the reader trusts
    again = certificate.signed(read_key(keys / "other"))
    assert again.check()["signature"].outcome == "matches"
    assert again.check(public_key=keys / "mine.pub")["key"].outcome == "differs"
    assert Certificate.of(report, model, edit).check(public_key=keys / "mine.pub")["key"].outcome == "differs"


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_changed_byte_goes_unnoticed(saved: Path, tmp_path: Path, data: st.DataObject) -> None:
    whole = saved.read_bytes().strip()
    at = data.draw(st.integers(0, len(whole) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda one: one != whole[at]))
    changed = whole[:at] + bytes([byte]) + whole[at + 1 :]
    if data.draw(st.booleans()):
        changed = whole[:at] + whole[at + 1 :] if data.draw(st.booleans()) else whole[:at] + bytes([byte]) + whole[at:]
    if changed.strip() == whole:
        return
    path = tmp_path / "changed.json"
    path.write_bytes(changed)
    with contextlib.suppress(SurgeryError):
        assert not Certificate.load(path).check().ok


def test_a_digit_that_changes_no_number_is_noticed_as_well(saved: Path, tmp_path: Path) -> None:
    text = saved.read_text(encoding="utf-8")
    for changed in (text.replace('"weight":0.123457', '"weight":0.1234570'), text.replace(",", ", ", 1)):
        assert changed != text
        (tmp_path / "changed.json").write_text(changed, encoding="utf-8")
        with pytest.raises(SurgeryError, match="was changed or laid out anew"):
            Certificate.load(tmp_path / "changed.json")


def test_a_signature_taken_away_is_missed(saved: Path, tmp_path: Path, keys: Path) -> None:
    record = json.loads(saved.read_text(encoding="utf-8"))
    for gone in ({"signature": None}, {"public_key": None}, {"signature": "0"}):
        (tmp_path / "cut.json").write_bytes(canonical({**record, **gone}))
        with pytest.raises(SurgeryError, match="signature"):
            Certificate.load(tmp_path / "cut.json")
    (tmp_path / "cut.json").write_bytes(canonical({**record, "signature": None, "public_key": None}))
    bare = Certificate.load(tmp_path / "cut.json")
    assert bare.check()["signature"].outcome == "not checked"
    assert not bare.check(public_key=keys / "mine.pub").ok


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no certificate; give a file"),
        (b"[1]", "is no certificate; give a file"),
        (b'{"signature":NaN}', "is no certificate; give a file"),
        (b'"\\ud800"', "is no certificate; give a file"),
        (b"[" * 100_000, "is no certificate; give a file"),
        (b'{"signature":null}', "no certificate of this package .format: Field required."),
        (b'{"signature": null}', "was changed or laid out anew"),
    ],
)
def test_what_is_no_certificate_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(SurgeryError, match=message):
        Certificate.load(tmp_path / "file")


def test_other_formats_and_fields_are_refused(made: Made) -> None:
    content = dict(made[4].content)
    for wrong in ({"format": "knowledge-surgery certificate 9"}, {"more": 1}, {"salt": "0"}):
        with pytest.raises(SurgeryError, match="no certificate of this package"):
            Certificate({**content, **wrong}, made[4].signature)
    with pytest.raises(SurgeryError, match="cannot read the certificate"):
        Certificate.load("absent.json")


def test_a_report_of_other_facts_or_another_edit_is_refused(made: Made, toy: Toy) -> None:
    model, edit, facts, report, _ = made
    with pytest.raises(SurgeryError, match="about other facts than these"):
        Certificate.of(report, model, edit, facts[:1])
    # by the same name
    other = facts[0].replace(target=facts[1].target, id=facts[0].label)
    named = [fact.replace(id=fact.label) for fact in facts]
    told = verify(model, edit, named, attacks=())
    assert Certificate.of(told, model, edit, named)
    with pytest.raises(SurgeryError, match="about other facts than these"):
        Certificate.of(told, model, edit, [other, *named[1:]])
    with pytest.raises(SurgeryError, match="about another edit or other weights"):
        Certificate.of(report, model, toy_edit(toy, size=6.0, facts=facts))


def test_two_certificates_of_one_fact_name_it_differently(made: Made) -> None:
    model, edit, _, report, certificate = made
    other = Certificate.of(report, model, edit)
    assert not {one["digest"] for one in other.content["facts"]} & {
        one["digest"] for one in certificate.content["facts"]
    }


def test_a_model_judged_as_it_is_has_one_too(toy: Toy, made: Made) -> None:
    model, facts = toy
    report = verify(model, None, facts[0], attacks=())
    certificate = Certificate.of(report, model, None, facts[0])
    assert certificate.content["weights"] == {"before": None, "after": model.fingerprint}
    assert certificate.check(model, facts=facts[0]).ok
    assert certificate.check(edit=made[1])["edit"].told.startswith("the certificate is about a model as it was")


@pytest.mark.skipif(which("openssl") is None, reason="there is no openssl to check the signature by")
def test_openssl_checks_the_signature_too(made: Made, keys: Path, tmp_path: Path) -> None:
    (tmp_path / "content").write_bytes(canonical(made[4].content))
    (tmp_path / "signature").write_bytes(bytes.fromhex(str(made[4].signature)))
    asked = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", str(keys / "mine.pub"), "-rawin"]
    done = subprocess.run(
        [*asked, "-in", "content", "-sigfile", "signature"], cwd=tmp_path, capture_output=True, text=True
    )
    assert "Signature Verified Successfully" in done.stdout


def test_the_document_s_way_of_checking_works(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = (Path(__file__).parents[2] / "docs" / "certificate.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", document, re.DOTALL)
    code = code.replace('open("removal.json", encoding="utf-8")', "file")
    monkeypatch.chdir(tmp_path)
    with made[4].save("removal.json").open(encoding="utf-8") as file:
        exec(code, {"file": file})
    changed = {**json.loads(Path("removal.json").read_text(encoding="utf-8")), "meaning": "else"}
    Path("removal.json").write_text(json.dumps(changed), encoding="utf-8")
    with Path("removal.json").open(encoding="utf-8") as file, pytest.raises(InvalidSignature):
        exec(code, {"file": file})


def test_without_cryptography_it_says_what_to_install(made: Made, keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("surgery.signing.find_spec", lambda name: None)
    for call in (made[4].check, lambda: make_key(keys / "third"), lambda: read_key(keys / "mine")):
        with pytest.raises(SurgeryError, match=r"pip install 'knowledge-surgery\[sign\]'"):
            call()
