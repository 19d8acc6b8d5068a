"""Where else a subject stands and who else stands there, in words; and what a removal gains by looking."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import edits
from edits.keys import read_ends
from edits.moment import SecondMoment
from edits.places import elsewhere_rows, other_rows, other_subjects
from surgery import Edit, Fact, Model, Neighbour, Site, SurgeryError
from surgery.shipped import example_facts

CONTEXTS = ("{}", "It rained. {}")
FACT = Fact(subject="The old tower", template="People say that {} stands in the town of", target="Paris")


def told(model: Model, rows: list[tuple[int, ...]]) -> list[str]:
    return [str(model.tokenizer.decode(list(row))).strip() for row in rows]


def test_elsewhere_the_subject_ends_other_texts(smol: Model) -> None:
    rows = elsewhere_rows(smol, FACT, CONTEXTS)
    assert told(smol, rows) == ["The old tower", "It rained. The old tower", "In The old tower"]
    first = FACT.replace(template="{} stands in the town of")
    assert told(smol, elsewhere_rows(smol, first, CONTEXTS)) == ["In The old tower"]


def test_a_subject_is_not_read_as_the_only_token_of_a_text(smol: Model) -> None:
    fact = FACT.replace(subject="France")
    assert told(smol, elsewhere_rows(smol, fact, CONTEXTS)) == ["It rained. France", "In France"]


def test_a_fact_without_a_subject_has_no_places(gpt2: Model) -> None:
    fact = Fact(subject="", template="The summer was a long", target="day")
    assert elsewhere_rows(gpt2, fact, CONTEXTS) == []
    assert other_rows(gpt2, [fact]) == []


def test_others_stand_behind_the_facts_own_words(smol: Model) -> None:
    rows = told(smol, other_rows(smol, [FACT]))
    assert len(rows) == len(set(rows)) == len(other_subjects([FACT]))
    assert all(row.startswith("People say that ") for row in rows)
    assert "People say that The Louvre" in rows


def test_others_are_neither_edited_nor_neighbours() -> None:
    fact = next(one for one in example_facts() if one.subject == "The Eiffel Tower")
    fact = fact.replace(neighbours=(Neighbour("The Louvre is located in the city of", "Paris"),))
    names = other_subjects([fact])
    assert not {"The Eiffel Tower", "The Louvre"} & set(names)
    assert "The Colosseum" in names


def test_many_wordings_share_the_others(gpt2: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edits.places.MOST", 40)
    facts = [FACT.replace(template=f"{word} {{}} stands in") for word in ("That", "This", "Here", "There")]
    rows = other_rows(gpt2, facts)
    assert len(rows) == 40
    # each wording its own tenth of the names
    names = {row[2:] for row in map(tuple, rows)}
    assert len(names) > 20


def test_keys_join_a_moment_as_their_weighted_mean() -> None:
    draw = torch.Generator().manual_seed(0)
    moment = SecondMoment(torch.rand(6, generator=draw) + 0.5, torch.randn(6, 2, generator=draw))
    keys = torch.randn(5, 6, generator=draw)
    wanted = moment.dense() + 3.0 * (keys.T @ keys).double() / 5
    torch.testing.assert_close(moment.plus(keys, 3.0).dense(), wanted, rtol=1e-5, atol=1e-6)


def test_a_change_answers_less_to_others_and_more_to_the_subject_elsewhere(
    smol: Model, unchanged: Callable[[Model], None]
) -> None:
    unchanged(smol)
    fact = next(one for one in example_facts("US state of city") if one.subject == "Philadelphia")
    search = edits.ValueSearch(steps=4)
    settings = {"objective": edits.Suppress(), "count": 2, "search": search, "progress": False}
    narrow = edits.RankOne(scope="prompt", **settings)(smol, fact)
    wide = edits.RankOne(**settings)(smol, fact)
    assert (narrow.settings["scope"], wide.settings["scope"]) == ("prompt", "subject")
    site, edited = Site.at(4, "mlp"), "The American city of"
    rows = [smol.tokenizer(text)["input_ids"] for text in (f"{edited} Phoenix", f"{edited} Chicago", "In Philadelphia")]
    keys, _ = read_ends(smol, rows, site)
    own, _ = read_ends(smol, [smol.tokenizer(f"{edited} Philadelphia")["input_ids"]], site)

    def responses(edit: Edit) -> list[float]:
        right = edit.deltas[0].right[:, 0]
        return (keys @ right / (own[0] @ right)).tolist()

    before, after = responses(narrow), responses(wide)
    assert abs(after[0]) < 0.7 * abs(before[0])
    assert abs(after[1]) < 0.7 * abs(before[1])
    assert after[2] > before[2]


def test_a_rewrite_looks_at_its_prompt_as_published_unless_told() -> None:
    method = edits.RankOne(search=edits.ValueSearch(steps=1), count=0, progress=False)
    assert method._scope(edits.Replace()) == "prompt"
    assert method._scope(edits.Neutral()) == "subject"
    with pytest.raises(SurgeryError, match="there is no scope 'all'"):
        edits.RankOne(scope="all")  # type: ignore[arg-type]
