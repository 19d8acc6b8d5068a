"""Side effects: outcomes and repetition by hand, every axis against single questions to a model that knows facts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from by_hand import Toy, toy_edit
from scipy import stats

from surgery import Edit, Fact, Model, SurgeryError
from surgery.numbers import Interval
from surgery.predict import generate, rate
from surgery.shipped import example_facts
from surgery.tokens import ask, encode
from surgery.verification import Baseline
from surgery.verification.drift import Drift, drift, log_probs
from surgery.verification.effect import AXES, QUICK, Effect, Effects
from surgery.verification.effect_figure import plot_effects
from surgery.verification.effects import effects, repeated
from surgery.verification.surroundings import (
    OPENINGS,
    REVERSED,
)

TOYS = ("llama",)
NAN = math.nan
DRIFT = Drift(0.1, 0.01, 0.1, 9, 90, (2.0, 3.0))
WORDS = ["They went home in summer when people", "It was a long day so we", "I see some old friends"]


@pytest.fixture(scope="module")
def changed(toy: Toy) -> Edit:
    """An edit that shows on everything."""
    return toy_edit(toy, size=40.0)


def probability(model: Model, prompt: str, answer: str, edit: Edit) -> tuple[float, float]:
    (before,) = rate(model, [(prompt, answer)])
    with edit.applied(model):
        (after,) = rate(model, [(prompt, answer)])
    return before.probability, after.probability


@pytest.mark.parametrize(
    ("axis", "low", "high", "outcome"),
    [
        ("unrelated facts", -0.4, -0.06, "moved"),
        ("unrelated facts", -0.4, -0.04, "unclear"),
        ("unrelated facts", -0.05, 0.9, "kept"),
        ("same subject", 0.2, 0.3, "moved"),
        ("same subject", 0.0, 0.3, "unclear"),
        ("same subject", 0.0, 0.1, "kept"),
        ("reversed", -0.4, -0.2, "moved"),
        ("reversed", 0.2, 0.4, "moved"),
        ("reversed", -0.4, 0.2, "unclear"),
        ("reversed", -0.1, 0.05, "kept"),
        ("perplexity", NAN, NAN, "unclear"),
    ],
)
def test_an_outcome_is_where_the_interval_lies(axis: str, low: float, high: float, outcome: str) -> None:
    assert Effect(axis, Interval((low + high) / 2, low, high, 9), 0.5, 0.5, "cases").outcome == outcome


def test_results_check_themselves() -> None:
    one = Effect("perplexity", Interval(0.0, 0.0, 0.0, 3), 0.5, 0.5, "texts")
    with pytest.raises(SurgeryError, match="there is no axis 'taste'; there are same subject, "):
        Effect("taste", Interval(0.0, 0.0, 0.0, 3), 0.5, 0.5, "texts")
    for left_out in ({}, {"perplexity": "twice"}):
        with pytest.raises(SurgeryError, match="each axis has one effect, or is left out"):
            Effects((one,) * (1 if left_out else 2), left_out, (1, 1), 0, 0.1)


@pytest.mark.parametrize(
    ("ids", "n", "share"),
    [([1, 2, 1, 2, 1], 2, 0.5), ([1, 2, 3], 2, 0.0), ([7] * 6, 4, 2 / 3), ([1, 2], 4, 0.0), ([], 2, 0.0)],
)
def test_repetition_is_the_share_of_ngrams_said_before(ids: list[int], n: int, share: float) -> None:
    assert repeated(ids, n) == pytest.approx(share)


def test_every_axis_by_single_questions(toy: Toy, changed: Edit, unchanged: Callable[[Model], None]) -> None:
    model, facts = toy
    unchanged(model)
    fact = facts[0]
    before = log_probs(model, WORDS)
    with changed.applied(model):
        moved = drift(model, WORDS, before, log_probs(model, WORDS))
    found = effects(model, changed, [fact], pool=facts, texts=WORDS, drift=moved)
    made = {one.axis for one in found.effects}
    assert made == set(AXES) - set(found.left_out)
    assert found.left_out == {
        "same relation, same answer": "there is nothing to ask",
        "reversed, new answer": "there is no new answer",
        "two hops": "there is nothing to ask",  # the toy's relations are not shipped
        "two hops, new answer": "there is no new answer",
    }
    others = [one for one in facts if one.subject == fact.subject and one.template != fact.template]
    for axis, asked in (
        ("same subject, other facts", [(one.prompt, one.target) for one in others]),
        ("same relation, other answer", [(one.prompt, one.target) for one in fact.neighbours]),
    ):
        pairs = [probability(model, *pair, changed) for pair in asked]
        changes = [b - a for a, b in pairs]
        assert found[axis].change.mean == pytest.approx(np.mean(changes), abs=1e-4)
        assert (found[axis].change.cases, found[axis].over) == (len(asked), "cases")
        low, high = stats.t.interval(0.95, len(asked) - 1, np.mean(changes), stats.sem(changes))
        assert (found[axis].change.low, found[axis].change.high) == pytest.approx((low, high), abs=1e-3)
        assert found[axis].before == pytest.approx(np.mean([a for a, _ in pairs]), abs=1e-4)
        worst = asked[int(np.argmin(changes))]
        assert found[axis].worst == f"{min(changes):+.3g} in {f'{worst[0]} {worst[1]}'!r}"
    asked = [(text.replace("{}", fact.target), fact.subject) for text in REVERSED]
    changes = [math.log(b / a) / 2 for a, b in (probability(model, *pair, changed) for pair in asked)]
    assert found["reversed"].change.mean == pytest.approx(np.mean(changes), abs=1e-3)
    assert (found["neutral text"].change.mean, found["neutral text"].over) == (moved.divergence, "texts")
    assert found["perplexity"].change.mean == pytest.approx(math.log(moved.perplexity[1] / moved.perplexity[0]))


@torch.no_grad()
def test_openings_statements_and_repetition_by_hand(toy: Toy, changed: Edit) -> None:
    model, facts = toy
    fact = facts[0]
    found = effects(model, changed, [fact], pool=facts, texts=WORDS)
    starts = [" ".join(text.split()[:6]) for text in WORDS]
    rows = [torch.tensor([model.tokenizer(text.replace("{}", fact.subject))["input_ids"]]) for text in OPENINGS]
    p = [model.hf(ids).logits[0, -1].double().log_softmax(-1) for ids in rows]
    said = [generate(model, [text], 40)[0] for text in starts]
    with changed.applied(model):
        q = [model.hf(ids).logits[0, -1].double().log_softmax(-1) for ids in rows]
        said += [generate(model, [text], 40)[0] for text in starts]
        (answer,) = generate(model, [fact.prompt], 1)
    kl = [float((a.exp() * (a - b)).sum()) for a, b in zip(p, q, strict=True)]
    assert found["same subject"].change.mean == pytest.approx(np.mean(kl), rel=1e-3)
    assert found["same subject"].change.mean > 0.01
    shares = [repeated(encode(model.tokenizer, text).ids, 2) for text in said]
    assert found["repeated bigrams"].before == pytest.approx(np.mean(shares[:3]))
    assert found["repeated bigrams"].after == pytest.approx(np.mean(shares[3:]))
    told = next(one.worst for one in found.effects if one.axis == "statement in front")
    assert f"in '{fact.prompt} {answer.strip()}" in told


def test_of_a_rewrite_the_new_answer_is_stated_and_asked_back(toy: Toy) -> None:
    model, facts = toy
    fact = facts[0].replace(new_target=facts[1].target)
    edit = toy_edit(toy, size=5.0, claim="rewritten", facts=(fact,))
    found = effects(model, edit, [fact], pool=facts, texts=WORDS, reverse={fact.template: ["The home of {} is"]})
    statement = f"{fact.prompt} {fact.new_target}."
    asked = [(f"{statement} {one.prompt}", one.target) for one in fact.neighbours]
    changes = [b - a for a, b in (probability(model, *pair, edit) for pair in asked)]
    assert found["statement in front"].change.mean == pytest.approx(np.mean(changes), abs=1e-4)
    a, b = probability(model, f"The home of {fact.new_target} is", fact.subject, edit)
    assert found["reversed, new answer"].change.mean == pytest.approx(math.log(b / a) / 2, abs=1e-3)
    assert math.isnan(found["reversed, new answer"].change.low)
    assert found["reversed, new answer"].outcome == "unclear"


def test_the_shipped_question_is_what_counts_as_reversed(gpt2: Model) -> None:
    (fact,) = (one for one in example_facts() if one.subject == "The Colosseum")
    edit = toy_edit((gpt2, [fact]), size=5.0)
    found = effects(gpt2, edit, [fact], texts=WORDS)["reversed"]
    asked = ("A famous landmark in the city of Rome is the", "Colosseum")
    a, b = probability(gpt2, *asked, edit)
    count = len(ask(gpt2.tokenizer, *asked).answer_ids)
    assert found.change.mean == pytest.approx(math.log(b / a) / count, abs=1e-3)
    assert (found.change.cases, abs(found.change.mean) > 1e-3) == (1, True)


def test_what_follows_is_asked_through_the_old_answer_and_the_new_one(gpt2: Model) -> None:
    fact = next(one for one in example_facts("landmark in city") if one.subject == "The Louvre")
    fact = fact.replace(new_target=" Berlin", neighbours=())
    question = "Whoever lives in the city where the Louvre stands lives in the capital of"
    edit = toy_edit((gpt2, [fact]), size=40.0, claim="rewritten")
    found = effects(gpt2, edit, [fact], texts=WORDS)
    for axis, end in (("two hops", "France"), ("two hops, new answer", "Germany")):
        a, b = probability(gpt2, question, end, edit)
        assert (found[axis].before, found[axis].after) == pytest.approx((a, b), rel=1e-3)
        assert found[axis].change.mean == pytest.approx(b - a, rel=1e-3)
        assert a != b
        assert found[axis].worst.endswith(f"in '{question} {end}'")
    removal = effects(gpt2, toy_edit((gpt2, [fact]), size=40.0), [fact], texts=WORDS)
    assert removal.left_out["two hops, new answer"] == "there is no new answer"
    assert removal["two hops"].change.mean == found["two hops"].change.mean


def test_the_interval_of_many_facts_is_over_facts(toy: Toy, changed: Edit) -> None:
    model, facts = toy
    chosen = facts[:6]
    found = effects(model, changed, chosen, pool=facts, profile="quick")
    subjects = [fact.subject for fact in chosen]
    each = []
    for fact in chosen:
        asked = [(n.prompt, n.target) for n in fact.neighbours if not any(s in n.prompt for s in subjects)]
        each.append(np.mean([b - a for a, b in (probability(model, *pair, changed) for pair in asked)]))
    effect = found["same relation, other answer"]
    assert (effect.over, effect.change.cases) == ("facts", 6)
    assert effect.change.mean == pytest.approx(np.mean(each), abs=1e-4)


def test_the_quick_profile_asks_less(toy: Toy, changed: Edit) -> None:
    model, facts = toy
    found = effects(model, changed, facts[:1], pool=facts, profile="quick", drift=DRIFT)
    assert {one.axis for one in found.effects} <= set(QUICK)
    assert found["unrelated facts"].change.cases == 10
    assert found.left_out["same subject"] == "not in the quick profile"
    assert effects(model, changed, facts[:1], pool=facts).left_out["neutral text"] == "no drift was given"


def test_of_many_facts_some_are_drawn(toy: Toy, changed: Edit) -> None:
    model, facts = toy
    one, same, other = (
        effects(model, changed, facts[:12], pool=facts, profile="quick", most_facts=2, seed=seed) for seed in (0, 0, 1)
    )
    assert one.facts == (2, 12)
    assert one.effects == same.effects != other.effects


def test_a_kept_baseline_is_asked_once(toy: Toy, changed: Edit, monkeypatch: pytest.MonkeyPatch) -> None:
    model, facts = toy
    base = Baseline(model)
    first = effects(model, changed, facts[:1], pool=facts, texts=WORDS, baseline=base)
    monkeypatch.setattr(Baseline, "_check", lambda _: pytest.fail("the base model was asked again"))
    again = effects(model, changed, facts[:1], pool=facts, texts=WORDS, baseline=base)
    assert again.effects == first.effects


def test_a_baseline_refuses_new_questions_under_an_edit(toy: Toy, changed: Edit) -> None:
    base = Baseline(toy[0])
    base.rate([("The", "summer")])
    with changed.applied(toy[0]):
        assert base.rate([("The", "summer")])
        for ask in (
            lambda: base.rate([("The", "day")]),
            lambda: base.next_log_probs(["The"]),
            lambda: base.speak(["The"], 3),
            lambda: base.continued(["The"], 3),
        ):
            with pytest.raises(SurgeryError, match="weights changed since its baseline was made"):
                ask()


def test_there_has_to_be_a_fact(toy: Toy, changed: Edit) -> None:
    with pytest.raises(SurgeryError, match="no facts whose surroundings could be asked"):
        effects(toy[0], changed, [])
    with pytest.raises(SurgeryError, match="there is no verification profile 'slow'; choose one of quick"):
        effects(toy[0], changed, toy[1][:1], profile="slow")


def test_a_fact_without_a_subject_has_fewer_axes(toy: Toy, changed: Edit) -> None:
    model, facts = toy
    plain = Fact(subject="", template="The summer was a long", target="day")
    found = effects(model, changed, [plain], pool=facts, texts=WORDS)
    assert {one.axis for one in found.effects} == {"unrelated facts", "repeated bigrams", "repeated 4-grams"}


def test_effects_are_json_and_told(toy: Toy, changed: Edit) -> None:
    model, facts = toy
    found = effects(model, changed, facts[:1], pool=facts, texts=WORDS)
    record = json.loads(json.dumps(found.as_record()))
    assert {one["axis"] for one in record["effects"]} == {one.axis for one in found.effects}
    assert record["effects"][0]["before"] is None  # a divergence has no before
    assert {"change", "unit", "harm", "floor", "outcome", "worst"} <= set(record["effects"][0])
    calm = Effects((Effect("perplexity", Interval(0.0, -0.001, 0.001, 3), 1.0, 1.0, "texts"),), {}, (1, 1), 0, 0.1)
    assert calm.told == "nothing else moved on 1 axes"
    assert calm.effects[0].told == "perplexity: +0 (-0.001 to +0.001) nats a token, 3 texts, kept"
    assert "moved: " in found.told or "unclear: " in found.told


def test_the_picture_has_harm_to_the_right() -> None:
    made = (
        Effect("same subject", Interval(0.5, 0.2, 0.8, 8), NAN, NAN, "cases"),
        Effect("unrelated facts", Interval(-0.2, -0.3, -0.1, 20), 0.8, 0.6, "cases"),
        Effect("perplexity", Interval(0.001, NAN, NAN, 1), 1.0, 1.0, "texts"),
    )
    ax = plot_effects(Effects(made, {}, (1, 1), 0, 0.1))
    dots = [float(line.get_xdata()[0]) for line in ax.lines if line.get_marker() == "o"]
    assert dots == pytest.approx([5.0, 4.0, 0.1])
    ends = [sorted(map(float, line.get_xdata())) for line in ax.lines if line.get_linewidth() == 2]
    assert ends == [pytest.approx([2.0, 8.0]), pytest.approx([2.0, 6.0])]
    assert [one.get_text() for one in ax.get_yticklabels()] == [one.axis for one in made]
    assert ax.texts[1].get_text() == "-0.2 (-0.3 to -0.1) probability, 20 cases"
    _, own = plt.subplots()
    assert plot_effects(Effects(made, {}, (1, 1), 0, 0.1), own) is own
    with pytest.raises(SurgeryError, match="there are no effects to draw"):
        plot_effects(Effects((), {}, (1, 1), 0, 0.1))
