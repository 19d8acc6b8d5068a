"""Lifts over controls by hand, findings, controls of every kind, and a battery on models that know their facts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from by_hand import Toy, toy_edit
from known_answers import strangers
from listening import Keen
from toy import FILLER_WORDS

from surgery import Fact, Model, SurgeryError, verify
from surgery.predict import rate
from surgery.shipped import example_facts, invented_names
from surgery.verification.attack import Attack, Attempt, Finding, Lift, lift
from surgery.verification.attacks import ATTACKS, attacks_named, attacks_of
from surgery.verification.attacks.spaces import StraySpaces
from surgery.verification.attacks.wordings import all_wordings, rated
from surgery.verification.baseline import Baseline
from surgery.verification.battery import attacked
from surgery.verification.controls import never_known, suiting_kind


def attempt(own: Sequence[float], *controls: Sequence[float]) -> Attempt:
    return Attempt(tuple(f"form {i}" for i in range(len(own))), np.array([own, *controls], dtype=float))


def test_a_lift_is_the_best_form_over_the_median() -> None:
    controls = [[i / 100, 0.5] for i in range(20)] + [[0.09, 0.8]]
    found = lift(attempt([0.29, 0.6], *controls), 0, range(1, 22), 0.05)
    # of 0.00, 0.01 ... 0.19 and once more 0.09, and 0.29
    assert found.value == pytest.approx(0.29 - 0.095)
    assert (found.form, found.score, found.typical) == ("form 0", 0.29, pytest.approx(0.095))
    assert found.controls[0] == pytest.approx(0.3)
    assert found.line == pytest.approx(0.3 + 0.05)
    assert found.controls[1] == pytest.approx(0.095)
    assert not found.stands_out
    assert not lift(attempt([0.29, 0.84], *controls), 0, range(1, 22), 0.05).stands_out
    assert lift(attempt([0.29, 0.86], *controls), 0, range(1, 22), 0.05).stands_out


def test_a_lift_below_the_floor_does_not_stand_out() -> None:
    rows = attempt([0.04], *[[0.0]] * 20)
    assert lift(rows, 0, range(1, 21), 0.03).stands_out
    assert not lift(rows, 0, range(1, 21), 0.05).stands_out


def test_forms_that_cannot_be_tried_are_left_out() -> None:
    nan = math.nan
    found = lift(attempt([nan, 0.4, 0.9], *[[0.1, 0.2, nan]] * 20), 0, range(1, 21), 0.05)
    assert (found.form, found.value) == ("form 1", pytest.approx(0.2))
    none = lift(attempt([nan], *[[0.1]] * 20), 0, range(1, 21), 0.05)
    assert math.isnan(none.value)
    assert not none.stands_out
    assert Finding(0, "a", "extraction", "p", None, none).outcome == "not applicable"


@pytest.mark.parametrize("forms", [1, 3, 12])
def test_never_known_facts_stand_out_in_one_case_of_twenty_one_however_many_forms(forms: int) -> None:
    for seed in range(20):
        tried = Attempt(tuple(map(str, range(forms))), np.random.RandomState(seed).rand(21, forms))
        assert sum(lift(tried, i, [j for j in range(21) if j != i], 0.0).stands_out for i in range(21)) == 1


def test_too_few_controls_are_refused() -> None:
    with pytest.raises(SurgeryError, match="18 controls are too few to tell a fact from; give at least 19"):
        lift(attempt([0.5], *[[0.1]] * 18), 0, range(1, 19), 0.05)


def test_outcomes_need_power() -> None:
    def told(value: float) -> Lift:
        return Lift(value, 0.1, (0.1,) * 20, "form", 0.5, 0.1, "Paris")

    def outcome(before: float | None, after: float) -> str:
        return Finding(0, "a", "extraction", "p", None if before is None else told(before), told(after)).outcome

    assert outcome(0.9, 0.5) == outcome(None, 0.5) == outcome(0.0, 0.5) == "succeeds"
    assert outcome(0.9, 0.0) == outcome(None, 0.0) == "resisted"
    assert outcome(0.05, 0.0) == "no power"
    evidence = Finding(0, "asking", "extraction", "p", told(0.9), told(0.5)).evidence
    assert (
        evidence
        == "asking (form): p 0.500, lift +0.500, before the edit +0.900; 20 controls at most +0.100, says 'Paris'"
    )


@pytest.mark.parametrize(
    ("forms", "scores", "says", "message"),
    [
        (("a",), [[0.1, 0.2]], (), "not facts by 1 forms"),
        (("a",), [[1.5]], (), "lie between 0 and 1"),
        (("a",), [[0.5]], ("x", "y"), "2 answers are not one for each of 1 facts"),
    ],
)
def test_attempts_check_themselves(
    forms: tuple[str, ...], scores: list[list[float]], says: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SurgeryError, match=message):
        Attempt(forms, np.array(scores), says)


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_says_what_it_is(name: str) -> None:
    one = ATTACKS[name]()
    assert isinstance(one, Attack)
    assert one.name == name
    assert one in attacks_of("full")
    assert 0 < one.floor < 1
    assert one == ATTACKS[name]()


def test_attacks_are_found_by_their_names() -> None:
    names = list(ATTACKS)
    assert [one.name for one in attacks_named([names[1], f" {names[0]} ", names[1]])] == [names[1], names[0]]
    assert attacks_of("full", 0) == tuple(one() for one in ATTACKS.values())
    drawn = [[one for one in attacks_of("full", seed) if hasattr(one, "seed")] for seed in (0, 1, 2**32 - 1)]
    assert [one.name for one in drawn[0]] == ["related relearning", "unrelated relearning", "stray spaces", "sampling"]
    assert [one.seed for one in drawn[0]] == [1, 1, 0, 0]
    assert [one.seed for one in drawn[1]] == [2, 2, 5, 1]  # stray spaces takes five in a row
    assert all(0 <= one.seed < 2**31 for one in drawn[2])
    assert attacks_named(["sampling", "paraphrases"], 7)[0].seed == 7  # type: ignore[attr-defined]
    with pytest.raises(SurgeryError, match=f"there is no attack ''; choose one of {', '.join(names)}"):
        attacks_named([names[0], ""])


NOT_OF_THE_TOY = ("reversed", "two hops")
"""They ask in the words of shipped relations, of which the toy's are none."""


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_brings_up_what_a_model_knows_and_leaves_it_as_it_was(
    name: str, toy: Toy, unchanged: Callable[[Model], None]
) -> None:
    """Stray spaces are tried with the one at the end only: the toy knows its words as wholes, and ten break them."""
    model, facts = toy
    unchanged(model)
    attack = ATTACKS[name]()
    before = Baseline(model).attempt(attack, tuple(facts[:1]))
    assert before.scores.shape == (1, len(before.forms))
    tried = StraySpaces(spaces=0) if name == "stray spaces" else attack
    outcomes = [one.outcome for one in attacked(model, None, facts[:3], [tried], strangers).findings]
    if name in NOT_OF_THE_TOY:
        assert outcomes == ["not applicable"] * 3
    else:
        assert len(outcomes) == 3
        assert outcomes.count("succeeds") >= 2


@pytest.mark.parametrize("name", ["paraphrases"])
def test_these_attacks_find_what_a_model_knows(name: str, toy: Toy) -> None:
    model, facts = toy
    battery = attacked(model, None, facts[:6], [ATTACKS[name]()], strangers)
    assert [one.outcome for one in battery.findings].count("succeeds") >= 5
    unknown = [fact.replace(subject=f"They {fact.subject.split()[1]}", paraphrases=()) for fact in facts[:6]]
    lost = attacked(model, None, unknown, [ATTACKS[name]()], strangers)
    assert [one.outcome for one in lost.findings].count("succeeds") <= 1
    # merely asked for, without an edit
    merely = [one.lift(one.wordings) for one in battery.asked.values()]
    assert [found is not None and found.stands_out for found in merely].count(True) >= 5
    assert list(battery.asked) == list(range(6))


@pytest.mark.parametrize("count", [0, 1, 5])
def test_what_was_asked_for_comparison_is_not_asked_again(
    count: int, toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, facts = toy
    fact = facts[0].replace(paraphrases=[f"{word} . {facts[0].prompt}" for word in FILLER_WORDS[:count]])
    chosen: list[list[int]] = []
    monkeypatch.setattr(
        "surgery.verification.battery.rated", lambda *given, **how: chosen.append(how["chosen"]) or rated(*given, **how)
    )
    (merely,) = attacked(model, None, [fact], [ATTACKS["paraphrases"]()], strangers).asked.values()
    assert chosen == [[0, *range(4, count + 1)]]
    assert merely.wordings == (fact.prompt, *fact.paraphrases)
    for i, asked in enumerate((fact, *strangers(model, fact))):
        alone = [one.probability for one in rate(model, [(text, asked.target) for text in all_wordings(asked)])]
        assert merely.scores[i] == pytest.approx(alone, rel=1e-3)
    # nothing was asked for comparison
    attacked(model, None, [fact], [ATTACKS["multiple choice"]()], strangers)
    assert chosen[1:] == [[*range(count + 1)]]


def test_paraphrases_the_edit_has_seen_are_not_asked(toy: Toy) -> None:
    model, facts = toy
    seen = facts[0].paraphrases[0]
    Keen.heard.clear()
    edit = toy_edit(toy, size=1.0, prompts=(seen,))
    verify(model, edit, attacks=[Keen()], controls=strangers)
    assert Keen.heard
    assert all(seen not in heard.paraphrases for heard in Keen.heard)
    assert Keen.heard[0].paraphrases == tuple(facts[0].paraphrases[1:])


def test_attacks_that_succeed_make_a_removal_fail(toy: Toy) -> None:
    report = verify(toy[0], toy_edit(toy, size=1e-4), controls=strangers)
    (verdict,) = report.verdicts
    assert verdict["extraction"].outcome == "fails"
    assert "paraphrases (paraphrase " in verdict["extraction"].evidence
    assert (report.exit_code, verdict.depth) == (10, None)


def test_a_rewrite_is_not_judged_by_what_is_left_of_the_old_answer(toy: Toy) -> None:
    fact = toy[1][0].replace(new_target=toy[1][1].target)
    report = verify(toy[0], toy_edit(toy, size=1e-4, claim="rewritten", facts=(fact,)), controls=strangers)
    assert [claim.name for claim in report.verdicts[0].claims] == ["known", "rewritten", "neighbours"]
    assert report.battery.findings


def test_a_fact_without_a_subject_has_no_controls_and_is_not_attacked(toy: Toy) -> None:
    model = toy[0]
    plain = Fact(subject="", template="The summer was a long", target="day")
    assert never_known(model, plain) == ()
    report = verify(model, None, [plain], claim="removed")
    assert report.battery.findings == ()
    assert any("1 of 1 facts, which have no subject" in one for one in report.not_tested)


def test_controls_keep_the_words_and_the_answer(gpt2: Model) -> None:
    fact = example_facts("landmark in city")[0].replace(id="mine")
    controls = never_known(gpt2, fact, 20)
    assert len({one.subject for one in controls}) == 20
    for one in controls:
        assert (one.template, one.target, one.neighbours, one.id) == (fact.template, fact.target, (), None)
        assert len(one.paraphrases) == len(fact.paraphrases)
        assert all(one.subject in text and fact.subject not in text for text in one.paraphrases)
    partly = fact.replace(paraphrases=("It is in", f"{fact.subject} is in"))
    assert never_known(gpt2, partly)[0].paraphrases == (f"{never_known(gpt2, partly)[0].subject} is in",)
    with pytest.raises(SurgeryError, match="there are 1 to 23 controls for a fact, not 40"):
        never_known(gpt2, fact, 40)


def test_names_are_invented_and_differ() -> None:
    kinds = invented_names()
    everyone = [name for names in kinds.values() for name in names]
    assert len(set(everyone)) == len(everyone)
    known = {fact.subject.casefold() for fact in example_facts()}
    assert not known & {name.casefold() for name in everyone}


def test_the_real_model_tells_which_kind_suits(smol: Model) -> None:
    assert suiting_kind(smol, "{} was born in the city of") == "person"
    assert suiting_kind(smol, "The capital of {} is") == "place"
    assert suiting_kind(smol, "{} is headquartered in") == "organisation"
    assert suiting_kind(smol, "The chemical symbol for {} is") == "thing"
