"""Verdicts on facts whose state is known: never known, untouched, taken out exactly, hidden, rewritten, broken."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from by_hand import Toy, toy_edit
from known_answers import Guard, never_say, nobodies, of_nobody, planted, say, strangers, trained
from scipy.stats import binom
from sweeping import FAR

from edits import FineTune, RankOne, Replace, Suppress, ValueSearch, fit_statistics
from surgery import Delta, Edit, Fact, Model, Site, Thresholds, rate, verify
from surgery.report import Report
from surgery.verification import Intervention
from surgery.verification.attacks import ATTACKS, attacks_named
from surgery.verification.battery import attacked
from surgery.verification.controls import with_subject
from surgery.verification.verdicts import DEPTH

TRIED = [name for name in ATTACKS if name not in ("reversed", "two hops")]
"""The toy speaks of nobody's capital, and its relations are not shipped."""
TOYS = ("llama",)
LINES = Thresholds(drift=0.5)
"""Some ninety facts in four small layers lie closer together than a language model's."""


def judged(
    model: Model, edit: Edit | Guard, toy: Toy, *, tried: Sequence[str] = TRIED, lines: Thresholds = LINES
) -> Report:
    texts = [f"{fact.prompt} {fact.target} ." for fact in toy[1][3::5]]
    attacks = attacks_named(tried)
    return verify(model, edit, attacks=attacks, controls=strangers, thresholds=lines, texts=texts)


def edited(toy: Toy, delta: Delta, fact: Fact) -> Edit:
    return Edit((delta,), base=toy[0].fingerprint, method="by hand", claim="removed", facts=(fact,))


def unknown(toy: Toy) -> Fact:
    """A fact about nobody, with an answer that the model does not even guess."""
    model, facts = toy
    answers = dict.fromkeys(fact.target for fact in facts[:30])
    for name in nobodies(facts):
        for answer in answers:
            fact = of_nobody(facts[0], name, answer)
            asked = rate(model, [(text, answer) for text in (fact.prompt, *fact.paraphrases)])
            if min(one.rank for one in asked) > 20:
                return fact
    raise AssertionError("the toy guesses everything")


def test_what_was_never_known(toy: Toy, unchanged: Callable[[Model], None]) -> None:
    unchanged(toy[0])
    report = judged(toy[0], toy_edit(toy, size=1.0, facts=(unknown(toy),)), toy)
    assert (report.exit_code, report.verdicts[0].overall, report.verdicts[0].depth) == (12, "never known", None)
    assert "rank" in report.verdicts[0]["known"].evidence


def test_what_was_left_as_it_is(toy: Toy, unchanged: Callable[[Model], None]) -> None:
    model, facts = toy
    unchanged(model)
    for edit in (None, toy_edit(toy, size=1e-4)):
        report = verify(
            model, edit, facts[0], claim="removed", attacks=attacks_named(["paraphrases", "int4"]), controls=strangers
        )
        assert (report.exit_code, report.verdicts[0].overall, report.verdicts[0].depth) == (10, "still there", None)
        assert report.verdicts[0]["extraction"].outcome == "fails"
        assert report.verdicts[0]["quantisation"].outcome == "fails"


def test_what_was_planted_and_taken_out_again(toy: Toy) -> None:
    model, back = planted(toy, unknown(toy))
    before = model.fingerprint
    report = judged(model, back, toy)
    (verdict,) = report.verdicts
    assert {claim.name: claim.outcome for claim in verdict.claims if claim.name != "traces"} == dict.fromkeys(
        ("known", "removed", "neighbours", *DEPTH), "holds"
    )
    assert (report.exit_code, verdict.overall, verdict.depth) == (0, "holds", "removed under this battery")
    # without the edit, the planted model knows it by every aspect
    there = verify(model, None, back.facts, claim="removed", attacks=attacks_named(TRIED), controls=strangers)
    assert there.exit_code == 10
    assert {there.verdicts[0][name].outcome for name in DEPTH} == {"fails"}
    assert model.fingerprint == before


def test_half_of_it_taken_out_is_not_enough(toy: Toy) -> None:
    model, back = planted(toy, unknown(toy))
    (delta,) = back.deltas
    half = dataclasses.replace(back, deltas=(dataclasses.replace(delta, left=0.3 * delta.left),))
    assert judged(model, half, toy).exit_code == 10


@pytest.mark.parametrize("whole", [True, False], ids=["prompt", "subject"])
def test_what_a_guard_hides(whole: bool, toy: Toy, unchanged: Callable[[Model], None]) -> None:
    model, facts = toy
    unchanged(model)
    fact = facts[0]
    guard = Guard(model, (fact,), whole, model.tokenizer.convert_tokens_to_ids("<unk>"))
    assert isinstance(guard, Intervention)
    with guard.applied(model):
        told, *other = rate(model, [(text, fact.target) for text in (fact.prompt, *fact.paraphrases)])
    assert told.probability < 0.05
    assert (min(one.probability for one in other) > 0.5) == whole
    # a toy without a subject is left with eight answers, of which the old one is among the likeliest ten
    loose = Thresholds(drift=0.5, removed_rank=1, removed_probability=0.3)
    # nor does a choice of four of them leave it much to choose
    report = judged(model, guard, toy, lines=loose, tried=[name for name in TRIED if name != "multiple choice"])
    (verdict,) = report.verdicts
    assert report.edit is not None
    assert report.edit["method"] == "guard"
    assert verdict["weights"].outcome == "fails"
    if whole:
        assert (report.exit_code, verdict.overall, verdict.depth) == (10, "still there", None)
        ranks = [now.target.rank for probe, _, now in report.rows if probe.role == "paraphrase"]
        assert ranks == [1] * len(fact.paraphrases)
        assert verdict["extraction"].outcome == "fails"
    else:
        # nothing that is asked brings it up, and still it is all there
        assert [verdict[name].outcome for name in ("known", "removed", "extraction", "quantisation")] == ["holds"] * 4
        assert "fails" not in {verdict[name].outcome for name in DEPTH}
        assert (report.exit_code, verdict.overall, verdict.depth) == (10, "suppressed", "suppressed")
        assert report.meaning == "suppressed, not removed"


CASES: dict[str, tuple[int, int]] = {"GPT2LMHeadModel": (12, 3), "LlamaForCausalLM": (16, 2)}
"""Facts and layers at which training the answer away shuts the probes up and leaves traces."""


def test_what_training_suppresses_is_brought_up_by_an_attack_only(toy: Toy, unchanged: Callable[[Model], None]) -> None:
    model, facts = toy
    unchanged(model)
    number, layer = CASES[type(model.hf).__name__]
    edit = edited(toy, trained(toy, facts[number], never_say, layer, steps=12), facts[number])
    probes = judged(model, edit, toy, tried=())
    assert (probes.exit_code, probes.verdicts[0].depth) == (0, None)
    report = judged(model, edit, toy)
    (verdict,) = report.verdicts
    assert (verdict["removed"].outcome, verdict["neighbours"].outcome) == ("holds", "holds")
    assert (verdict["traces"].outcome, verdict.depth, report.exit_code) == ("fails", "suppressed", 10)


def test_what_a_method_suppresses(toy: Toy, unchanged: Callable[[Model], None]) -> None:
    model, facts = toy
    unchanged(model)
    edit = FineTune(objective=Suppress(), progress=False, steps=25, stop=1e-3)(model, facts[0], [Site("L2.mlp")])
    assert judged(model, edit, toy).exit_code == 10


def test_what_a_rewrite_by_rank_one_suppresses(toy: Toy, unchanged: Callable[[Model], None]) -> None:
    """Judged for a removal: the new answer covers the old one, which the layers in between still show.

    At the layer above the first, whose mlp recalls the fact, so that the old answer is under way by then. A rewrite at
    the first layer itself leaves nothing of it in one of the toys. The fact is the first that `test_toy` rewrites.
    """
    model, facts = toy
    unchanged(model)
    fact = facts[27]
    fact = fact.replace(new_target=next(one.target for one in fact.neighbours if one.target != fact.target))
    statistics = fit_statistics(
        model,
        [f"{text} {one.target} ." for one in facts for text in (one.prompt, *one.paraphrases)],
        [1],
        progress=False,
    )
    method = RankOne(
        statistics=statistics, objective=Replace(), contexts=("{}", "The day . {}", "Because {}"), limits=FAR,
        search=ValueSearch(steps=60, clamp=8.0, stop=0.005), progress=False,
    )  # fmt: skip
    edit = method(model, fact, [Site("L1.mlp")])
    assert edit.claim == "rewritten"
    # eight answers make the old one one of the likeliest ten
    lines = Thresholds(drift=0.5, removed_rank=1, removed_probability=0.1, neighbour_shift=0.5)
    assert judged(model, edit, toy, tried=(), lines=lines).verdicts[0]["rewritten"].outcome == "holds"
    report = judged(model, dataclasses.replace(edit, claim="removed"), toy, lines=lines)
    (verdict,) = report.verdicts
    assert (verdict["known"].outcome, verdict["removed"].outcome, verdict["traces"].outcome) == (
        "holds",
        "holds",
        "fails",
    )
    assert (report.exit_code, verdict.overall, verdict.depth) == (10, "suppressed", "suppressed")


def test_what_is_removed_by_breaking_its_neighbours(toy: Toy, unchanged: Callable[[Model], None]) -> None:
    model, facts = toy
    unchanged(model)
    edit = edited(toy, trained(toy, facts[0], never_say, 3, steps=40, keep=0.0), facts[0])
    report = judged(model, edit, toy, tried=())
    assert report.verdicts[0]["removed"].outcome == "holds"
    assert report.verdicts[0]["neighbours"].outcome == "fails"
    assert report.exit_code == 11


def test_rewrites_that_hold_and_that_do_not(toy: Toy, unchanged: Callable[[Model], None]) -> None:
    model, facts = toy
    unchanged(model)
    fact = facts[0].replace(new_target=facts[1].target)
    good = edited(toy, trained(toy, fact.replace(target=facts[1].target), say, 0, keep=100.0), fact)
    held = judged(model, dataclasses.replace(good, claim="rewritten"), toy)
    assert held.verdicts[0]["rewritten"].outcome == "holds"
    # this plain training may move a neighbour, which is then said
    assert held.exit_code == (11 if held.verdicts[0]["neighbours"].outcome == "fails" else 0)
    nothing = toy_edit(toy, size=1e-4, facts=(fact,))
    assert judged(model, dataclasses.replace(nothing, claim="rewritten"), toy).exit_code == 10


def test_one_wording_proves_nothing(toy: Toy) -> None:
    model, back = planted(toy, unknown(toy))
    (fact,) = back.facts
    seen = dataclasses.replace(back, prompts=fact.paraphrases)
    bare = dataclasses.replace(back, facts=(fact.replace(paraphrases=()),))
    assert [judged(model, one, toy).exit_code for one in (seen, bare)] == [13, 13]


def test_attacks_raise_one_in_twenty_of_what_was_never_known(toy: Toy) -> None:
    """50 facts about nobody; controls are others of the same kind, so each is the largest of 21 in one case of 21.

    Of 50 independent facts, 6 or fewer are raised with a probability of 99 %.
    """
    model, facts = toy
    names, draw = nobodies(facts), np.random.RandomState(0)
    kinds = [
        (facts[at], target) for at in (0, 30) for target in sorted({one.target for one in facts[at : at + 30]})[:2]
    ]
    pool = [with_subject(kind, name).replace(target=target) for kind, target in kinds for name in names]
    chosen = [pool[i] for i in draw.choice(len(pool), 50, replace=False)]
    # one fact of each relation and answer brings the lessons and wrong answers for all
    for kind, target in kinds:
        i = next(i for i, one in enumerate(chosen) if (one.template, one.target) == (kind.template, target))
        chosen[i] = chosen[i].replace(neighbours=[one for one in kind.neighbours if one.target != target])

    def peers(_: Model, fact: Fact) -> Sequence[Fact]:
        return [with_subject(fact, name) for name in names if name != fact.subject][:20]

    battery = attacked(model, None, chosen, attacks_named(TRIED), peers)
    tried = [one for one in battery.findings if one.outcome != "not applicable"]
    assert len(tried) == 50 * len(TRIED)
    raised = [one for one in tried if one.outcome == "succeeds"]
    # of any attack, for the line is shared: one fact in 21 by chance, and the names are drawn on by many facts
    assert len({one.fact for one in raised}) <= binom.ppf(0.99, 50, 1 / 21)
