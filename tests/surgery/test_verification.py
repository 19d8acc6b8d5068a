"""Probes, drift by hand, and the whole way from an edit to a report on a model that knows its facts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from by_hand import Toy, toy_edit
from known_answers import strangers

from surgery import Fact, Model, Neighbour, SurgeryError, Thresholds, WrongWeights, verify
from surgery.predict import rate
from surgery.verification import Baseline
from surgery.verification.attacks import attacks_named
from surgery.verification.attacks.sampling import Sampling
from surgery.verification.drift import drift, log_probs, perplexity
from surgery.verification.probes import Probe, measure, probes_of
from surgery.verification.verify import NEVER_SEEN

TOYS = ("llama",)
FACT = Fact(
    subject="Ann",
    template="{} lives in",
    target="Rome",
    new_target="Oslo",
    paraphrases=("The home of Ann is", "Ann has a house in"),
    neighbours=(
        Neighbour("Bob lives in", "Paris"),
        Neighbour("Cid lives in", "Bonn"),
        Neighbour("Dan lives in", "Ulm"),
    ),
)


def test_probes_mark_what_was_seen_and_leave_edited_neighbours_out() -> None:
    other = FACT.replace(subject="Cid", paraphrases=(), neighbours=())
    seen = ("Ann lives in", "Ann has a house in", "Dan lives in", "something else")
    probes, left_out = probes_of([FACT, other], "rewritten", seen)
    assert left_out == 1
    assert [dataclasses.astuple(one) for one in probes] == [
        (0, "prompt", "Ann lives in", "Rome", "Oslo", False),
        (0, "paraphrase", "The home of Ann is", "Rome", "Oslo", True),
        (0, "paraphrase", "Ann has a house in", "Rome", "Oslo", False),
        (0, "neighbour", "Bob lives in", "Paris", None, True),
        (0, "neighbour", "Dan lives in", "Ulm", None, False),
        (1, "prompt", "Cid lives in", "Rome", "Oslo", True),
    ]
    assert {one.new_target for one in probes_of([FACT], "removed", ())[0]} == {None}


def test_probes_are_measured_in_their_order(toy: Toy) -> None:
    model, facts = toy
    chosen = [fact.replace(new_target=facts[i + 1].target) for i, fact in enumerate(facts[:3])]
    probes, _ = probes_of(chosen, "rewritten", ())
    for probe, found in zip(probes, measure(model, probes), strict=True):
        (old,) = rate(model, [(probe.prompt, probe.target)])
        assert found.target.probability == pytest.approx(old.probability, rel=1e-3)
        assert found.target.rank == old.rank
        assert (found.new_target is None) == (found.says is None) == (probe.role == "neighbour")
        if probe.new_target is not None and found.new_target is not None and found.says is not None:
            (new,) = rate(model, [(probe.prompt, probe.new_target)])
            assert found.new_target.probability == pytest.approx(new.probability, rel=1e-3)
            assert found.says.split()[0] == old.top


@torch.no_grad()
def test_drift_is_the_mean_divergence_a_token(toy: Toy) -> None:
    model, facts = toy
    texts = [f"{fact.prompt} {fact.target} ." for fact in facts[:20]] + ["The", "They went home in summer"]
    rows = [torch.tensor([model.tokenizer(text)["input_ids"]]) for text in texts]
    before = log_probs(model, texts)
    p = [model.hf(ids).logits[0].double().softmax(-1) for ids in rows]
    with toy_edit(toy, size=40.0).applied(model):
        moved = drift(model, texts, before, log_probs(model, texts))
        q = [model.hf(ids).logits[0].double().softmax(-1) for ids in rows]
    sums = [float((a * (a / b).log()).sum()) for a, b in zip(p, q, strict=True)]
    counts = [len(a) for a in p]
    mean = sum(sums) / sum(counts)
    changed = sum(int((a.argmax(-1) != b.argmax(-1)).sum()) for a, b in zip(p, q, strict=True))
    assert (moved.texts, moved.tokens) == (len(texts), sum(counts))
    assert mean > 0.01
    assert changed > 0
    assert moved.divergence == pytest.approx(mean, rel=1e-3)
    losses = [
        sum(float((a[i, ids[0, i + 1]] / b[i, ids[0, i + 1]]).log()) for i in range(len(a) - 1))
        for a, b, ids in zip(p, q, rows, strict=True)
    ]
    scored = [len(a) - 1 for a in p]
    change = sum(losses) / sum(scored)
    rest = sum((loss - change * count) ** 2 for loss, count in zip(losses, scored, strict=True))
    n = len(texts)
    assert math.log(moved.perplexity[1] / moved.perplexity[0]) == pytest.approx(change, rel=1e-3)
    assert moved.loss_error == pytest.approx((rest * n / (n - 1)) ** 0.5 / sum(scored), rel=1e-3)
    assert moved.changed == pytest.approx(changed / sum(counts))
    # the error of a mean of texts, by leaving each text out once
    left = [(sum(sums) - s) / (sum(counts) - c) for s, c in zip(sums, counts, strict=True)]
    n, middle = len(left), sum(left) / len(left)
    assert moved.error == pytest.approx((sum((one - middle) ** 2 for one in left) * (n - 1) / n) ** 0.5, rel=0.1)
    said = [(a, torch.tensor(model.tokenizer(text)["input_ids"])[1:]) for a, text in zip(q, texts, strict=True)]
    surprise = torch.cat([-a[:-1].gather(1, ids[:, None]).log() for a, ids in said])
    assert moved.perplexity[1] == pytest.approx(float(surprise.mean().exp()), rel=1e-3)
    assert moved.perplexity[0] == pytest.approx(perplexity(model, texts))
    same = drift(model, texts, before, before)
    assert (same.divergence, same.error, same.changed) == (0, 0, 0)
    assert same.perplexity[0] == same.perplexity[1]


def test_a_baseline_is_measured_once_and_changes_no_number(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    model, edits = toy[0], [toy_edit(toy, size=size) for size in (1.0, 40.0)]
    alone = [verify(model, edit, attacks=()).as_record() for edit in edits]
    baseline = Baseline(model)
    together = [verify(model, edits[0], attacks=(), baseline=baseline).as_record()]
    asked: list[Probe] = []
    monkeypatch.setattr("surgery.verification.baseline.measure", lambda _, probes, rating: asked.extend(probes) or [])
    together.append(verify(model, edits[1], attacks=(), baseline=baseline).as_record())
    assert not asked
    for one, other in zip(alone, together, strict=True):
        assert {**one, "seconds": 0, "costs": 0} == {**other, "seconds": 0, "costs": 0}


def test_a_baseline_of_other_weights_is_refused(toy: Toy) -> None:
    model, edit = toy[0], toy_edit(toy, size=1.0)
    baseline = Baseline(model)
    with edit.applied(model), pytest.raises(SurgeryError, match="the model's weights changed since its baseline"):
        baseline.log_probs(["A text"])
    with pytest.raises(SurgeryError, match="measured on another model"):
        verify(Model(model.hf, model.tokenizer, model.anatomy, source="twin"), edit, baseline=baseline)


def test_an_edit_that_changes_nothing_of_note_is_found_out(toy: Toy, unchanged: Callable[[Model], None]) -> None:
    model = toy[0]
    unchanged(model)
    report = verify(model, toy_edit(toy, size=1e-4), attacks=())
    assert (report.exit_code, report.ok, report.meaning) == (10, False, "the fact is still there")
    (verdict,) = report.verdicts
    assert [(one.name, one.outcome) for one in verdict.claims] == [
        ("known", "holds"),
        ("removed", "fails"),
        ("neighbours", "holds"),
    ]
    assert report.drift_claim.outcome == "holds"
    assert report.drift is not None
    assert 0 <= report.drift.divergence < 1e-4
    assert report.drift.texts > 20


def test_an_edit_that_changes_too_much_is_collateral_damage(toy: Toy, unchanged: Callable[[Model], None]) -> None:
    unchanged(toy[0])
    lines = Thresholds(removed_probability=1.0, removed_rank=0)
    texts = [fact.prompt for fact in toy[1][:20]]
    report = verify(toy[0], toy_edit(toy, size=50.0), thresholds=lines, texts=texts, attacks=())
    assert report.verdicts[0]["removed"].outcome == "holds"
    assert (report.exit_code, report.drift_claim.outcome) == (11, "fails")


def test_what_the_edit_saw_judges_nothing(toy: Toy) -> None:
    fact = toy[1][0]
    report = verify(toy[0], toy_edit(toy, size=1e-4, prompts=(fact.prompt, *fact.paraphrases)), texts=["The", "They"])
    assert report.verdicts[0]["removed"].cases == 1
    assert report.verdicts[0]["known"].cases == 3


def test_a_model_is_judged_as_it_is_without_an_edit(toy: Toy, unchanged: Callable[[Model], None]) -> None:
    model, facts = toy
    unchanged(model)
    report = verify(model, None, facts[0], attacks=())
    assert (report.exit_code, report.drift, report.edit) == (10, None, None)
    assert report.base == model.fingerprint
    assert [one.outcome for one in report.verdicts[0].claims] == ["not applicable", "fails", "not applicable"]
    assert all(was is None for _, was, _ in report.rows)
    # the fact is what a rewrite from something else would have left
    planted = facts[0].replace(target=facts[1].target, new_target=facts[0].target)
    as_rewritten = verify(model, None, planted)
    assert (as_rewritten.claim, as_rewritten.exit_code) == ("rewritten", 0)
    # of eight towns the wrong one is still among the likeliest ten: by the lines alone; beside controls it is a guess
    assert verify(model, None, planted, claim="removed", attacks=()).exit_code == 10
    assert verify(model, None, planted, claim="removed").exit_code == 13
    lines = Thresholds(removed_rank=1, removed_probability=0.1)
    unsaid = verify(model, None, planted, claim="removed", thresholds=lines, attacks=())
    assert (unsaid.exit_code, unsaid.verdicts[0].depth) == (0, "not shown to be removed")
    assert unsaid.meaning == "it is not said; whether it ever was is not shown"
    assert NEVER_SEEN in unsaid.not_tested
    assert "nothing shows whether it was ever known" in unsaid.verdicts[0]["known"].evidence
    assert NEVER_SEEN not in as_rewritten.not_tested


def test_what_cannot_be_verified_is_refused(toy: Toy) -> None:
    model, facts = toy
    with pytest.raises(SurgeryError, match="there is no fact to verify; give at least one"):
        verify(model, None)
    with pytest.raises(SurgeryError, match="has no new_target, so it cannot be verified as rewritten"):
        verify(model, None, facts[0], claim="rewritten")
    with pytest.raises(WrongWeights):
        verify(model, toy_edit(toy, size=1.0, base="0" * 64))
    for edit in (None, toy_edit(toy, size=1.0)):
        with pytest.raises(SurgeryError, match="there is no text to measure drift on; give at least one, or None for"):
            verify(model, edit, facts[0], texts=[])


def test_another_seed_draws_anew_and_the_same_repeats(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sampling, "profile", "quick")
    edit = toy_edit(toy, size=20.0, facts=tuple(toy[1][:3]))
    default, again, other = (
        verify(toy[0], edit, controls=strangers, beside=True, **more) for more in ({}, {"seed": 0}, {"seed": 3})
    )
    assert (default.seed, again.seed, other.seed, other.as_record()["seed"]) == (0, 0, 3, 3)
    name = Sampling.name
    said = [
        [(one.after.says, one.after.score, one.after.controls) for one in report.battery.findings if one.attack == name]
        for report in (default, again, other)
    ]
    assert len(said[0]) == 3
    assert said[0] == said[1]
    assert said[0] != said[2]
    effects = [report.beside.effects for report in (default, again, other)]
    assert [one and one.seed for one in effects] == [0, 0, 3]
    assert [row[2] for row in default.rows] == [row[2] for row in other.rows]  # which draws nothing


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_nothing_draws_by_is_refused(toy: Toy, seed: int) -> None:
    with pytest.raises(SurgeryError, match=f"a seed is a whole number from 0 to 4294967295, not {seed}"):
        verify(toy[0], toy_edit(toy, size=1.0), seed=seed)


@pytest.mark.parametrize("place", [1, 4, 6])
def test_a_checkpoint_that_says_it_in_any_paraphrase_still_has_it(place: int, toy: Toy) -> None:
    """Six paraphrases, of which the model knows one only; in the others it guesses."""
    model, facts = toy
    known = facts[0]
    asked = [f"{one} {known.subject}" for one in ("The", "They and", "Because it was", "so", "was", "who had")]
    asked[place - 1] = known.paraphrases[0]
    fact = known.replace(template="In summer {} went home to", paraphrases=asked)
    lines = Thresholds(removed_probability=0.2, removed_rank=1)
    report = verify(model, None, fact, claim="removed", attacks=attacks_named(["paraphrases"]), controls=strangers,
                    thresholds=lines)  # fmt: skip
    left = [probe.prompt for probe, _, now in report.rows if probe.role != "neighbour" and now.target.rank <= 1]
    assert known.paraphrases[0] in left
    assert (report.exit_code, report.verdicts[0].overall) == (10, "still there")
    merely = report.battery.asked[0]
    assert len(merely.wordings) == 7
    assert len(merely.scores) == 21
    found = merely.lift([known.paraphrases[0]])
    assert found is not None
    assert (found.form, found.stands_out) == (f"paraphrase {place}", True)
    assert merely.lift(["It is in"]) is None
