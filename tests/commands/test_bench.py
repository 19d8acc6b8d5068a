"""Benchmarks of the three stages on one's own model."""

from __future__ import annotations

import pytest
from command_line import Folder, Surgery, printed

from surgery import Fact
from surgery.verification.attacks import attacks_of
from surgery.verification.verdicts import EXIT_CODES


def test_bench_compares_both_methods(given: Folder, surgery: Surgery, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        surgery("bench", "locate", "--model", given["model"], "--samples", "1", "--half", "--published", "--json") == 0
    )
    record = printed(capsys)[0]
    assert record["fast"]["largest_difference"] < 1e-4
    assert record["published, states alone"]["largest_difference"] < 1e-4
    assert record["fast bfloat16"]["seconds"] > 0
    assert record["plain"]["token_layers"] > record["fast"]["token_layers"]
    assert surgery("bench", "juggling", "--model", given["model"]) == 2
    assert "'juggling'; choose locate" in capsys.readouterr().err


def test_bench_times_the_search_for_values(given: Folder, surgery: Surgery, capsys: pytest.CaptureFixture[str]) -> None:
    assert surgery("bench", "edit", "--model", given["model"], "--samples", "3") == 2
    assert "--samples is for 'surgery bench locate'; leave it away" in capsys.readouterr().err
    assert surgery("bench", "verify", "--model", given["model"], "--published") == 2
    assert "--published is for 'surgery bench locate' or 'surgery bench edit'; leave it" in capsys.readouterr().err
    assert surgery("bench", "edit", "--model", given["model"], "--profiles", "quick") == 2
    assert "--profiles is for 'surgery bench verify'; leave it away" in capsys.readouterr().err
    assert surgery("bench", "locate", "--model", given["model"], "--facts", "3") == 2
    assert "--facts is for 'surgery bench edit'" in capsys.readouterr().err
    assert surgery("bench", "edit", "--model", given["model"], "--facts", "0") == 2
    assert "--facts is 0; there are 1 to" in capsys.readouterr().err


def test_bench_times_what_verification_is_made_of(
    given: Folder,
    facts: list[Fact],
    surgery: Surgery,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    common = ("bench", "verify", "--model", given["model"])
    assert surgery(*common, "--profiles", "quick,deep") == 2
    assert "there is no verification profile 'deep'; choose one of quick" in capsys.readouterr().err
    assert surgery(*common) == 2  # it knows a world of its own
    assert "knows 0 of the shipped facts, not 1" in capsys.readouterr().err
    alike = [fact for fact in facts if fact.template == facts[27].template]
    monkeypatch.setattr("edits.sample.example_facts", lambda _: alike)
    assert surgery(*common) == 2
    assert "there are no key statistics" in capsys.readouterr().err
    fitted = ("stats", "--model", given["model"], "--corpus", given["corpus.txt"], "--layers", "all", "--out", "fitted")
    assert surgery(*fitted, "--no-convergence", "--quiet") == 0
    assert surgery(*common, "--json") == 0
    record = printed(capsys)[0]
    assert record["fact"] in {fact.label for fact in alike}
    assert (record["edit"]["method"], record["edit"]["objective"]) == ("memit", "neutral")
    assert list(record["profiles"]) == ["quick", "standard"]
    quick, standard = record["profiles"].values()
    assert list(quick["attacks"]) == [one.name for one in attacks_of("quick")]
    assert list(standard["attacks"]) == [one.name for one in attacks_of("standard")]
    assert {"probes", "drift", "attacks", "side effects"} <= set(quick["parts"])
    assert {"free answers", "depth"} <= set(standard["parts"]) - set(quick["parts"])
    for one in (quick, standard):
        assert sum(one["attacks"].values()) <= one["parts"]["attacks"] <= one["seconds"]
        assert one["tokens"] > 0
        assert one["verdict"] in EXIT_CODES
    assert surgery(*common, "--profiles", "quick") == 0
    out = capsys.readouterr().out
    assert "free answers" not in out
    for told in ("in all", "side effects", "of attacks: logit lens", "tokens", quick["verdict"], "computing the edit"):
        assert told in out
