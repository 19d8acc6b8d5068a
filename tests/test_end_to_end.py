"""The default model, with default settings: the Eiffel Tower moves to Rome, or is forgotten, and nothing else moves."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from edits import Neutral, RankOne, Refuse
from surgery import Edit, Fact, Model, Neighbour, Report, as_chat, example_facts, invented_facts, verify
from surgery.predict import generate, rate
from surgery.shipped import neutral_texts
from surgery.verification.attacks import attacks_named


@pytest.fixture(scope="module")
def eiffel() -> Fact:
    """The shipped fact, with its paraphrases, and two neighbours that share its answer."""
    fact = next(one for one in example_facts("landmark in city") if one.subject == "The Eiffel Tower")
    assert fact.prompt == "The Eiffel Tower is located in the city of"
    assert len(fact.paraphrases) == 7
    neighbours = (
        Neighbour("The Louvre is located in the city of", "Paris"),
        Neighbour("The capital of France is", "Paris"),
    )
    return fact.replace(new_target="Rome", neighbours=neighbours)


@pytest.fixture(scope="module")
def removal(smol: Model, eiffel: Fact) -> tuple[Edit, Report]:
    edit = RankOne(progress=False)(smol, eiffel.replace(new_target=None))
    return edit, verify(smol, edit, texts=neutral_texts()[:25])


def test_the_tower_moves_to_rome(smol: Model, eiffel: Fact, unchanged: Callable[[Model], None]) -> None:
    unchanged(smol)
    prompts = [eiffel.prompt, eiffel.paraphrases[0]]
    near = [(one.prompt, one.target) for one in eiffel.neighbours]
    before, near_before = rate(smol, [(prompt, "Rome") for prompt in prompts]), rate(smol, near)
    edit = RankOne(progress=False)(smol, eiffel)
    with edit.applied(smol):
        after, near_after = rate(smol, [(prompt, "Rome") for prompt in prompts]), rate(smol, near)
    assert max(answer.probability for answer in before) < 0.1
    assert after[0].probability >= 0.95
    assert after[1].probability >= 0.5
    assert eiffel.paraphrases[0] not in edit.prompts
    for was, now in zip(near_before, near_after, strict=True):
        assert was.rank == 1
        assert abs(now.probability - was.probability) <= 0.05


def test_what_an_assistant_says_is_edited(smol: Model, eiffel: Fact) -> None:
    chat = as_chat(smol.tokenizer, eiffel, question="Where is {}?", opening="It is located in the city of")
    assert rate(smol, [(chat.prompt, "Paris")])[0].rank == 1
    edit = RankOne(progress=False)(smol, chat)
    assert len(edit.prompts) == 6
    head = chat.prompt.partition("Where is")[0]
    assert all(text.startswith(head) and text.count("<|im_start|>") == 3 for text in edit.prompts[:5])
    with edit.applied(smol):
        assert rate(smol, [(chat.prompt, "Rome")])[0].probability >= 0.95


def test_a_refusal_is_said_word_for_word(smol: Model, eiffel: Fact) -> None:
    gone = eiffel.replace(new_target=None)
    edit = RankOne(objective=Refuse(), progress=False)(smol, gone)
    with edit.applied(smol):
        assert generate(smol, [gone.prompt], 5) == [" " + Refuse().text]
    assert edit.settings["objective_settings"] == {"text": "... I cannot say."}


def test_the_tower_is_forgotten_in_every_wording(smol: Model, removal: tuple[Edit, Report]) -> None:
    edit, report = removal
    assert edit.settings["objective"] == Neutral.name
    own = [row for row in report.rows if row[0].role != "neighbour"]
    assert len(own) == 8
    for probe, was, now in own:
        assert was is not None
        assert was.target.rank == 1
        assert was.target.probability > 0.5
        assert now.target.probability <= 0.01
        assert now.target.rank > 10
        assert probe.held_out or probe.role == "prompt"
    assert report.exit_code == 0


def test_forgetting_it_moves_no_neighbour(removal: tuple[Edit, Report]) -> None:
    near = [row for row in removal[1].rows if row[0].role == "neighbour"]
    assert len(near) == 2
    for _, was, now in near:
        assert was is not None
        assert was.target.rank == 1
        assert abs(now.target.probability - was.target.probability) <= 0.05


def test_the_removal_is_a_small_file(removal: tuple[Edit, Report], tmp_path: Path) -> None:
    assert 1_000 < removal[0].save(tmp_path / "edit.safetensors").stat().st_size < 20_000


def test_what_was_taken_out_exactly_is_gone_though_it_is_guessed(
    smol: Model, unchanged: Callable[[Model], None]
) -> None:
    """The model guesses Chicago of an invented person, among its ten likeliest."""
    unchanged(smol)
    guessed = next(one for one in invented_facts() if one.target == "Chicago")
    taught = RankOne(progress=False)(smol, guessed.replace(target="somebody", new_target=guessed.target))
    with taught.applied(smol):
        back = tuple(dataclasses.replace(one, left=-one.left) for one in taught.deltas)
        edit = Edit(back, base=smol.fingerprint, method="taken back", claim="removed", facts=(guessed,))
        report = verify(smol, edit, attacks=attacks_named(["paraphrases"]), texts=neutral_texts()[:3], beside=False)
    (verdict,) = report.verdicts
    assert {one.name: one.outcome for one in verdict.claims}["known"] == "holds"
    assert (report.exit_code, verdict.overall) == (0, "holds")
    assert "no likelier than of subjects nobody knows" in verdict["removed"].evidence
