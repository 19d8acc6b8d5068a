"""What puts one question puts it in words the edit has not seen: which words, the battery by them, free answers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from by_hand import Toy, toy_edit
from known_answers import strangers
from listening import Keen, Listening

from surgery import Edit, Fact, Model, verify
from surgery.predict import rate
from surgery.privacy import redact
from surgery.verification.attacks.lens import LogitLens
from surgery.verification.attacks.quantised import Int8
from surgery.verification.baseline import Baseline
from surgery.verification.generation import generation
from surgery.verification.unseen import in_unseen_words, prompts_seen

TOYS = ("llama",)


def test_a_fact_is_asked_where_most_is_known_of_what_was_not_seen(toy: Toy) -> None:
    model, facts = toy
    fact = facts[0]
    chances = [one.probability for one in rate(model, [(text, fact.target) for text in fact.paraphrases])]
    best = fact.paraphrases[chances.index(max(chances))]
    found = in_unseen_words(Baseline(model), fact, [fact.prompt])
    assert (found.prompt, found.subject, found.target) == (best, fact.subject, fact.target)
    assert found.paraphrases == tuple(text for text in fact.paraphrases if text != best)
    # the best was seen too: the next one
    again = in_unseen_words(Baseline(model), fact, [fact.prompt, best])
    assert again.prompt in fact.paraphrases
    assert again.prompt != best
    assert best not in again.paraphrases


def test_neighbours_are_asked_in_the_same_words(toy: Toy) -> None:
    model, facts = toy
    found = in_unseen_words(Baseline(model), facts[0], [facts[0].prompt])
    of = {fact.prompt: fact for fact in facts}
    assert found.neighbours
    for near, was in zip(found.neighbours, facts[0].neighbours, strict=True):
        assert near.prompt == found.template.replace("{}", of[was.prompt].subject)
        assert near.target == was.target


def test_a_fact_keeps_its_prompt_where_it_was_not_seen_or_has_no_other(toy: Toy) -> None:
    base, fact = Baseline(toy[0]), toy[1][0]
    assert in_unseen_words(base, fact, ["something else"]) == fact
    assert in_unseen_words(base, fact, fact.paraphrases[:1]) == fact.replace(paraphrases=fact.paraphrases[1:])
    for others in ((), ("It is in",), (f"{fact.subject} and {fact.subject} live in",), (f"{fact.subject} {{}} in",)):
        alone = fact.replace(paraphrases=others)
        assert in_unseen_words(base, alone, [fact.prompt]) == alone


def test_without_a_subject_any_other_words_do(toy: Toy) -> None:
    fact = Fact(subject="", template="The summer was a long", target="day", paraphrases=("It was a long",))
    found = in_unseen_words(Baseline(toy[0]), fact, [fact.prompt])
    assert (found.prompt, found.paraphrases) == ("It was a long", ())


def test_an_edit_without_its_facts_has_seen_their_prompts(toy: Toy) -> None:
    edit, fact = toy_edit(toy, size=1.0, prompts=("a", "b")), toy[1][0]
    assert prompts_seen(edit, [fact]) == ("a", "b")
    assert prompts_seen(None, [fact]) == ()
    assert prompts_seen(redact(edit, "none"), [fact]) == (fact.prompt,)


def test_attacks_get_facts_and_controls_in_the_same_words(toy: Toy) -> None:
    model, facts = toy
    Listening.heard.clear()
    Keen.heard.clear()
    edit = toy_edit(toy, size=1.0, facts=tuple(facts[:2]), prompts=(facts[0].prompt,))
    report = verify(model, edit, attacks=[Listening(), Keen()], beside=False, controls=strangers)
    first = in_unseen_words(Baseline(model), facts[0], edit.prompts)
    assert report.battery.prompts == {0: first.prompt}
    assert [one for one in dict.fromkeys(Listening.heard) if one.subject == facts[0].subject] == [first]
    assert facts[1] in Listening.heard
    assert {one.template for one in Listening.heard} == {first.template, facts[1].template}
    assert facts[0] in Keen.heard
    assert first not in Keen.heard
    assert len(report.battery.findings) == 4


@dataclass(frozen=True)
class OwnPromptOnly:
    """Says nothing of a fact where its own prompt is all that stands there, and leaves the rest as it was."""

    model: Model
    facts: tuple[Fact, ...]

    claim: ClassVar[str] = "removed"

    @property
    def prompts(self) -> tuple[str, ...]:
        return tuple(fact.prompt for fact in self.facts)

    @property
    def base(self) -> str:
        return self.model.fingerprint

    def summary(self) -> dict[str, Any]:
        return {"method": "own prompt", "claim": "removed", "facts": 1, "weights": {}, "settings": {}, "log": []}

    @contextmanager
    def applied(self, model: Model) -> Iterator[Model]:
        tokenizer = model.tokenizer
        ends = [tuple(tokenizer(fact.prompt)["input_ids"]) for fact in self.facts]

        def blank(module: Any, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
            ids = (named.get("input_ids") if "input_ids" in named else given[0]).clone()
            for row in ids:
                for end in ends:
                    for at in range(len(row) - len(end) + 1):
                        if tuple(row[at : at + len(end)].tolist()) == end:
                            row[at : at + len(end) - 1] = row[at + len(end) - 1]
            if "input_ids" in named:
                return given, {**named, "input_ids": ids}
            return (ids, *given[1:]), named

        handle = model.hf.base_model.register_forward_pre_hook(blank, with_kwargs=True)
        try:
            yield model
        finally:
            handle.remove()


def test_hiding_the_prompt_of_the_edit_deceives_no_attack(toy: Toy) -> None:
    model, facts = toy
    fact = facts[0]
    hiding = OwnPromptOnly(model, (fact,))
    with hiding.applied(model):
        hidden = rate(model, [(fact.prompt, fact.target)])[0].probability
    assert hidden < 0.5 < rate(model, [(fact.prompt, fact.target)])[0].probability
    report = verify(model, hiding, [fact], attacks=[LogitLens()], controls=strangers)
    assert report.battery.findings[0].outcome == "succeeds"
    # in the words of the edit it would have seemed to hold
    bare = fact.replace(paraphrases=())
    report = verify(model, hiding, [bare], attacks=[LogitLens()], controls=strangers)
    assert report.battery.findings[0].outcome == "resisted"
    assert report.battery.prompts == {}


class Unsaid(OwnPromptOnly):
    """The same without telling what it was made from."""

    @property
    def prompts(self) -> tuple[str, ...]:
        return ()


def test_the_prompt_of_the_edit_lends_no_power(toy: Toy) -> None:
    model, facts = toy
    # a paraphrase in which the toy does not know the answer
    fact = facts[0].replace(paraphrases=(f"They {facts[0].subject} They",))
    for hiding, outcome in ((Unsaid, "resisted"), (OwnPromptOnly, "no power")):
        report = verify(model, hiding(model, (fact,)), [fact], attacks=[Int8()], controls=strangers)
        assert report.battery.findings[0].outcome == outcome
    # without any other wording there is none to have power
    bare = fact.replace(paraphrases=())
    report = verify(model, OwnPromptOnly(model, (bare,)), [bare], attacks=[Int8()], controls=strangers)
    assert report.battery.findings[0].outcome == "no power"
    assert "nan" not in report.battery.findings[0].evidence


@pytest.mark.parametrize("seen", [True, False])
def test_free_answers_are_to_words_the_edit_has_not_seen(seen: bool, toy: Toy) -> None:
    model, facts = toy
    fact = facts[0]
    edit: Edit = toy_edit(toy, size=1.0, prompts=(fact.prompt,) if seen else ())
    (one,) = generation(model, edit, [fact.replace(neighbours=())], forms=["plain"], most=4).spoken
    wanted = in_unseen_words(Baseline(model), fact, [fact.prompt]) if seen else fact
    assert (one.prompt, one.held_out) == (wanted.prompt, True)
    (one,) = generation(model, edit, [fact.replace(neighbours=(), paraphrases=())], forms=["plain"], most=4).spoken
    assert (one.prompt, one.held_out) == (fact.prompt, not seen)
