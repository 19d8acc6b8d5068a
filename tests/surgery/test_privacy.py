"""Edits without the words of their facts: nothing of them is in the file, and hashes still answer."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from by_hand import delta_of, edit_of

from surgery import Edit, Fact, Model, Neighbour, SurgeryError, privacy, redact, verify

FACT = Fact(
    subject="Quintus Zebra",
    template="The birthplace of {} is",
    target="Ouagadougou",
    new_target="Reykjavik",
    paraphrases=("Quintus Zebra was born in the town of",),
    neighbours=(Neighbour("The birthplace of Livia is", "Tashkent"),),
    aliases=("Wagadugu",),
    id="case Ypsilon",
)
PLAIN = FACT.replace(subject="Octavia Heron", id=None)
CONTEXT = "Therefore it rained on Wednesday. {}"
SETTINGS = {
    "sites": ["L1.mlp"],
    "objective": "replace",
    "solver": {"name": "least-squares", "ridge": 0.5, "Ouagadougou": 1},
    "Zebra": True,
    "contexts": ["{}", CONTEXT],
    "refusal": "I cannot say",
    "kind": "Reykjavik",
    "mode": "wagadugu",
    "token_ids": [17, 4],
    "steps": 25,
}
LOG = (
    {"fact": "case Ypsilon", "loss": 0.25, "says": "Quintus Zebra lives"},
    {"fact": PLAIN.label, "loss": 0.5, "Tashkent": 1},
)
PROMPTS = (FACT.prompt, CONTEXT.replace("{}", FACT.prompt), "Quintus Zebra is a", PLAIN.prompt)
WORDS = (
    "Quintus", "Zebra", "birthplace", "Ouagadougou", "Reykjavik", "born in", "Tashkent", "Livia", "Ypsilon", "Octavia",
    "Therefore", "Wednesday", "cannot say", "token_ids", "Wagadugu",
)  # fmt: skip


@pytest.fixture
def made(small: Model) -> Edit:
    delta = delta_of(small, "transformer.h.1.mlp.c_proj")
    return edit_of(small, delta, facts=(FACT, PLAIN), settings=SETTINGS, log=LOG, prompts=PROMPTS)


def test_no_word_of_the_facts_is_in_the_file(made: Edit, tmp_path: Path) -> None:
    plain = made.save(tmp_path / "plain").read_bytes()
    assert all(word.encode() in plain for word in WORDS)
    for keep in ("hashed", "none"):
        whole = redact(made, keep).save(tmp_path / keep).read_bytes()
        assert not [word for word in WORDS if word.encode().lower() in whole.lower()]


@pytest.mark.parametrize("keep", ["hashed", "none"])
def test_what_is_not_about_the_facts_stays(made: Edit, keep: privacy.Keep, tmp_path: Path, small: Model) -> None:
    loaded = Edit.load(redact(made, keep).save(tmp_path / "an.edit"))
    assert (loaded.base, loaded.method, loaded.claim) == (made.base, made.method, made.claim)
    assert loaded.settings == {
        "sites": ["L1.mlp"],
        "objective": "replace",
        "solver": {"name": "least-squares", "ridge": 0.5},
        "steps": 25,
    }
    assert loaded.log == ({"fact": 1, "loss": 0.25}, {"fact": 2, "loss": 0.5})
    assert (loaded.facts, loaded.prompts, loaded.summary()["facts"]) == ((), (), 2)
    assert torch.equal(loaded.deltas[0].dense(), made.deltas[0].dense())
    loaded.apply(small)()


def test_hashes_answer_and_nothing_does_not(made: Edit, tmp_path: Path) -> None:
    hashed = Edit.load(redact(made).save(tmp_path / "an.edit"))
    for edit in (made, hashed):
        assert edit.mentions(FACT)
        assert edit.mentions(FACT.replace(subject="quintus  ZEBRA", paraphrases=(), new_target=None))
        assert edit.mentions("Octavia Heron")
        assert not edit.mentions("Octavia")
        assert not edit.mentions("")
        assert not edit.mentions(FACT.replace(target="Paris"))
        assert not edit.mentions(FACT.replace(subject="Livia"))
    assert hashed.hidden is not None
    assert hashed.hidden.seen([FACT.prompt, *FACT.paraphrases, "Quintus Zebra is a"]) == (
        FACT.prompt,
        "Quintus Zebra is a",
    )
    with pytest.raises(SurgeryError, match="keeps nothing of its facts, so nobody can tell"):
        redact(made, "none").mentions(FACT)


def test_equal_facts_of_two_files_look_different(made: Edit) -> None:
    one, other = redact(made).hidden, redact(made).hidden
    assert one is not None
    assert other is not None
    assert not {*one.subjects, *one.facts, *one.prompts} & {*other.subjects, *other.facts, *other.prompts}
    assert (len(one.subjects), len(one.facts), len(one.prompts)) == (2, 2, 3)
    assert len(one.salt) == 32


def test_words_are_taken_out_in_one_direction_only(made: Edit) -> None:
    assert redact(made, "plain") is made
    hashed = redact(made)
    assert redact(hashed) is hashed
    bare = redact(hashed, "none")
    assert bare.hidden == privacy.Hidden("none", 2)
    for edit, keep, says in ((hashed, "plain", "hashed already"), (bare, "hashed", "nothing to hash")):
        with pytest.raises(SurgeryError, match=f"{says}; make the edit again"):
            redact(edit, keep)
    with pytest.raises(SurgeryError, match="facts are hidden cannot hold them as well"):
        dataclasses.replace(bare, facts=(FACT,))


@pytest.mark.parametrize("keep", ["hashed", "none"])
def test_verifying_needs_the_facts_and_says_so(small: Model, made: Edit, keep: privacy.Keep) -> None:
    edit = redact(made, keep)
    with pytest.raises(SurgeryError, match=f"the edit's file keeps its facts {keep}.*give them, as --facts FILE"):
        verify(small, edit)
    seen = "Quintus Zebra is a"
    report = verify(small, edit, FACT.replace(paraphrases=(seen, "Where is Quintus Zebra from?")))
    held_out = {probe.prompt: probe.held_out for probe, _, _ in report.rows}
    assert held_out[seen] == (keep == "none")
    assert any("which prompts the edit was made from" in one for one in report.not_tested) == (keep == "none")


def test_there_is_no_other_way_to_keep_facts() -> None:
    with pytest.raises(SurgeryError, match="no way to keep facts 'secret'; choose one of plain, hashed, none"):
        privacy.check_keep("secret")
