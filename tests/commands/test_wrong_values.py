"""The command line: a wrong value ends it with one line and exit code 2, before anything is written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from command_line import Folder, Surgery

MODEL = ("--model", "model")
OUT = ("--out", "out")
REPORT = ("--report", "report")
STATS = ("--corpus", "corpus.txt")
EDIT = ("edit", *MODEL, "--facts", "rewrite.jsonl", *STATS, *OUT)
REMOVE = ("remove", *MODEL, "--facts", "known.jsonl", *STATS, *OUT, *REPORT)
LOCATE = ("locate", *MODEL, "--facts", "known.jsonl", *OUT)
BELOW = "a file/below"

WRONG: dict[str, tuple[tuple[str, ...], str]] = {
    "template without slot": (("edit", *MODEL, "--facts", "no slot.jsonl", *OUT), "no {} for the subject; write it"),
    "inline template without slot": (
        ("locate", *MODEL, "--subject", "Alda", "--template", "lives in", "--target", "Orvel", *OUT),
        "no {} for the subject; write it like",
    ),
    "empty target": (("edit", *MODEL, "--facts", "empty target.jsonl", *OUT), "target: is empty"),
    "inline empty target": (
        ("locate", *MODEL, "--subject", "Alda", "--template", "{} is", "--target", "", *OUT),
        "target: is empty; a fact needs some words there",
    ),
    "half a fact": (("locate", *MODEL, "--subject", "Alda", *OUT), "give --facts, or all of --subject"),
    "two facts": ((*LOCATE, "--subject", "Alda"), "not both"),
    "broken line": (("edit", *MODEL, "--facts", "broken.jsonl", *OUT), "broken.jsonl"),
    "no facts file": (("edit", *MODEL, "--facts", "absent.jsonl", *OUT), "absent.jsonl"),
    "nothing to say instead": (("edit", *MODEL, "--facts", "known.jsonl", *STATS, *OUT), "no new_target to replace"),
    "unknown method": ((*EDIT, "--method", "rome"), "there is no method 'rome'; choose one of alphaedit"),
    "unknown objective": ((*REMOVE, "--objective", "forget"), "there is no objective 'forget'; choose one of"),
    "objective that removes nothing": ((*REMOVE, "--objective", "replace"), "removes nothing; choose suppress"),
    "unknown kind": ((*LOCATE, "--kind", "neuron"), "there is no kind 'neuron' to patch; choose state"),
    "unknown format": ((*LOCATE, "--format", "bmp"), "there is no figure format 'bmp'; choose png"),
    "no samples": ((*LOCATE, "--samples", "0"), "at least 1"),
    "layer": ((*EDIT, "--layer", "9"), "there is no layer 9: LlamaForCausalLM has layers 0 to 3"),
    "layer of statistics": (("stats", *MODEL, *STATS, "--layers", "2-9", *OUT), "there is no layer 4"),
    "layers in words": (("stats", *MODEL, *STATS, "--layers", "some", *OUT), "write 4, 4-8 or 4,6,9, all or rec"),
    "no statistics": (("edit", *MODEL, "--facts", "rewrite.jsonl", *OUT), "give --corpus FILE"),
    "too little text": (("stats", *MODEL, "--corpus", "two words.txt", "--layers", "1", *OUT), "too few"),
    "no text file": (("stats", *MODEL, "--corpus", "absent.txt", "--layers", "1", *OUT), "cannot read the text file"),
    "not utf-8": (("stats", *MODEL, "--corpus", "latin.txt", "--layers", "1", *OUT), "not UTF-8"),
    "model without weights": (("edit", "--model", "no weights", *EDIT[3:]), "holds no weights (*.safetensors"),
    "no model folder": (("edit", "--model", "./absent", *EDIT[3:]), "there is no model folder absent; give a folder"),
    "unknown dtype": ((*EDIT, "--dtype", "float7"), "there is no dtype 'float7'; write 'float32'"),
    "unknown device": ((*EDIT, "--device", "toaster"), "there is no device 'toaster'; write 'cpu'"),
    "edit cut off": (("verify", *MODEL, "--edit", "cut off.edit", *REPORT), "damaged or cut off"),
    "no edit": (("verify", *MODEL, "--edit", "absent.edit", *REPORT), "there is no edit file"),
    "no edit but facts": (("verify", *MODEL, "--edit", "known.jsonl", *REPORT), "make the edit again"),
    "edit of other weights": (("verify", *MODEL, "--edit", "other weights.edit", *REPORT), "made for other weights"),
    "nothing to verify": (("verify", *MODEL, *REPORT), "give --facts, --edit or --ledger"),
    "edit below a file": ((*EDIT[:-2], "--out", BELOW), "is a file, not a folder; choose another place"),
    "traces below a file": ((*LOCATE[:-2], "--out", BELOW), "is a file, not a folder"),
    "unknown profile": ((*REMOVE, "--profile", "deep"), "there is no verification profile 'deep'; choose one of quick"),
    "unknown attack": (
        ("verify", *MODEL, "--edit", "crude.edit", *REPORT, "--attacks", "paraphrases,hypnosis"),
        "there is no attack 'hypnosis'; choose one of paraphrases, logit lens",
    ),
    "edit and ledger": (
        ("verify", *MODEL, "--edit", "crude.edit", "--ledger", "absent", *REPORT),
        "give --edit or --ledger, not both",
    ),
    "no ledger": (("verify", *MODEL, "--ledger", "absent", *REPORT), "there is no ledger in absent"),
    "key without certificate": ((*REMOVE, "--sign", "known.jsonl"), "--sign signs a certificate; give --certificate"),
    "no key": ((*REMOVE, "--certificate", "c.json", "--sign", "absent.pem"), "cannot read the key absent.pem"),
    "a key that is none": (
        (*REMOVE, "--certificate", "c.json", "--sign", "known.jsonl"),
        "holds no private key that can be used",
    ),
    "certificate below a file": ((*REMOVE, "--certificate", BELOW), "is a file, not a folder"),
    "junit below a file": (("verify", *MODEL, "--edit", "crude.edit", *REPORT, "--junit", BELOW), "is a file, not"),
    "no certificate": (("certificate", "check", "absent.json"), "cannot read the certificate absent.json"),
    "a certificate that is none": (("certificate", "check", "known.jsonl"), "is no certificate; give a file"),
    "key over a file": (("certificate", "keygen", "--out", "a file"), "is there already"),
    "key below a file": (("certificate", "keygen", "--out", BELOW), "cannot write to the folder"),
    "report without verify": (
        ("ledger", "add", *MODEL, "--facts", "rewrite.jsonl", "--ledger", "new", *REPORT),
        "--report is for what --verify finds; give --verify too",
    ),
    "profile without verify": (
        ("ledger", "add", *MODEL, "--facts", "rewrite.jsonl", "--ledger", "new", "--profile", "full"),
        "--profile is for what --verify finds; give --verify too",
    ),
    "certificate without verify": (
        ("ledger", "add", *MODEL, "--facts", "rewrite.jsonl", "--ledger", "new", "--certificate", "made.json"),
        "--certificate is for what --verify finds; give --verify too",
    ),
    "report below a file": ((*REMOVE[:-2], "--report", BELOW), "is a file, not a folder"),
    "verified below a file": (("verify", *MODEL, "--edit", "crude.edit", "--report", BELOW), "is a file, not a folder"),
    "statistics below a file": (("stats", *MODEL, *STATS, "--layers", "1", "--out", BELOW), "is a file, not a folder"),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=list(WRONG))
def test_a_wrong_value_ends_it_with_one_line_and_nothing_written(
    surgery: Surgery, given: Folder, arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    known = {path.name for path in given.path.iterdir()}
    here = [given[one] if one in known or one == BELOW else one for one in arguments[1:]]
    assert surgery(arguments[0], *here, "--quiet") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("surgery: ")
    assert err.count("\n") == 1
    assert message in err
    assert "Traceback" not in err
    assert list(Path().iterdir()) == []
    assert {path.name for path in given.path.iterdir()} == known


@pytest.mark.parametrize("arguments", [("operate",), ("edit", "--facts", "x"), ("verify", "--seed", "one")], ids=str)
def test_wrong_usage_exits_with_2(
    surgery: Surgery, arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert surgery(*arguments) == 2
    assert "Usage" in capsys.readouterr().err


def test_it_ends_so_in_a_process_of_its_own_as_well(given: Folder, tmp_path: Path) -> None:
    # also because the tests' own type checks would notice this value before the package does
    report = tmp_path / "report"
    command = [sys.executable, "-m", "surgery", "verify", "--model", given["model"], "--facts", given["known.jsonl"]]
    done = subprocess.run(
        [*command, "--profile", "deep", "--report", str(report), "--quiet"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "surgery: there is no verification profile 'deep'; choose one of quick, standard, full\n"
    assert not report.exists()
