"""Objectives: their losses by hand, and the neutral distribution they are built on."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from edits import OBJECTIVES, MaximumEntropy, Neutral, Objective, Replace, Suppress, objective_named
from surgery import Fact, Model, SurgeryError
from surgery.tokens import ask

CONTEXTS, VOCAB = 3, 11
IDS = torch.tensor([[4, 7]] * CONTEXTS)


@pytest.fixture
def log_probs() -> torch.Tensor:
    """[contexts, answer, vocab], float64 so that the comparison is by the formula alone."""
    logits = torch.randn(CONTEXTS, 2, VOCAB, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return logits.log_softmax(-1)


def p_answer(log_probs: torch.Tensor) -> list[float]:
    return [float(log_probs[i, 0, 4].exp() * log_probs[i, 1, 7].exp()) for i in range(CONTEXTS)]


def test_replace_is_the_mean_surprise_per_token(gpt2: Model, tiny_fact: Fact, log_probs: torch.Tensor) -> None:
    wanted = sum(-math.log(p) for p in p_answer(log_probs)) / CONTEXTS / 2
    assert float(Replace().loss(gpt2, tiny_fact)(log_probs, IDS)) == pytest.approx(wanted, rel=1e-6)


def test_suppress_is_the_surprise_at_anything_else(gpt2: Model, tiny_fact: Fact, log_probs: torch.Tensor) -> None:
    wanted = sum(-math.log(1 - p) for p in p_answer(log_probs)) / CONTEXTS
    assert float(Suppress(weight=1.0).loss(gpt2, tiny_fact)(log_probs, IDS)) == pytest.approx(wanted, rel=1e-4)
    assert float(Suppress().loss(gpt2, tiny_fact)(log_probs, IDS)) == pytest.approx(20 * wanted, rel=1e-4)


def test_maximum_entropy_is_what_the_next_token_lacks_of_it(
    gpt2: Model, tiny_fact: Fact, log_probs: torch.Tensor
) -> None:
    loss = MaximumEntropy().loss(gpt2, tiny_fact)
    entropies = [-sum(p * math.log(p) for p in row.exp().tolist()) for row in log_probs[:, 0]]
    assert float(loss(log_probs, IDS)) == pytest.approx(math.log(VOCAB) - sum(entropies) / CONTEXTS, rel=1e-6)
    assert float(loss(torch.zeros_like(log_probs).log_softmax(-1), IDS)) == pytest.approx(0, abs=1e-6)


def test_neutral_is_divergence_and_hinge(gpt2: Model, tiny_fact: Fact) -> None:
    vocab = gpt2.anatomy.vocab
    logits = torch.randn(CONTEXTS, 2, vocab, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([[4, 7], [4, 7], [4, 7]])
    logits[0, :, :] = 0.0
    logits[0, 0, 4] = logits[0, 1, 7] = 8.0  # far above the floor
    log_probs = logits.log_softmax(-1)
    objective = Neutral(floor=1e-3, weight=0.7, tolerance=0.0)
    wanted = objective.distribution(gpt2, tiny_fact).double()
    p = log_probs.double()
    total, hinges, far = 0.0, [], []
    for i in range(CONTEXTS):
        divergence = sum(
            w * (math.log(max(w, 1e-12)) - q) for w, q in zip(wanted.tolist(), p[i, 0].tolist(), strict=True) if w
        )
        hinges.append(max(0.0, float(p[i, 0, 4] + p[i, 1, 7]) - math.log(1e-3)))
        far.append(divergence)
        total += divergence + 0.7 * hinges[-1]
    assert hinges[0] > 1
    assert 0.0 in hinges
    assert float(objective.loss(gpt2, tiny_fact)(log_probs, ids)) == pytest.approx(total / CONTEXTS, rel=1e-5)
    near = dataclasses.replace(objective, tolerance=sum(far) / CONTEXTS)
    assert min(far) < near.tolerance < max(far)
    wanted_near = sum(max(0.0, d - near.tolerance) + 0.7 * h for d, h in zip(far, hinges, strict=True)) / CONTEXTS
    assert float(near.loss(gpt2, tiny_fact)(log_probs, ids)) == pytest.approx(wanted_near, rel=1e-4)


@pytest.mark.parametrize("objective", [one() for one in OBJECTIVES.values()], ids=list(OBJECTIVES))
def test_gradients_are_finite_and_not_zero_where_the_answer_is_certain(
    gpt2: Model, tiny_fact: Fact, objective: Objective
) -> None:
    logits = torch.zeros(1, 2, gpt2.anatomy.vocab)
    logits[0, 0, 4] = logits[0, 1, 7] = 30.0  # its probability rounds to 1
    logits.requires_grad_()
    ids = torch.tensor([[4, 7]])
    log_probs = logits.log_softmax(-1)
    assert float(log_probs[0, 0, 4].detach().exp()) == 1.0
    loss = objective.loss(gpt2, tiny_fact.replace(new_target="Rome"))(log_probs, ids)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert math.isfinite(float(loss.detach()))
    assert gradient.isfinite().all()


def test_suppress_has_a_way_down_where_the_answer_is_nearly_certain(gpt2: Model, tiny_fact: Fact) -> None:
    logits = torch.zeros(1, 1, gpt2.anatomy.vocab)
    logits[0, 0, 4] = 12.0
    logits.requires_grad_()
    loss = Suppress().loss(gpt2, tiny_fact)(logits.log_softmax(-1), torch.tensor([[4]]))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient[0, 0, 4] > 0.1


def generic_distributions(model: Model, objective: Neutral, fact: Fact) -> torch.Tensor:
    """Next-token distributions of the generic prompts, one by one."""
    with torch.no_grad():
        prompts = [fact.template.replace("{}", subject) for subject in objective.generic]
        rows = [model.hf(torch.tensor([model.tokenizer(prompt)["input_ids"]])).logits[0, -1] for prompt in prompts]
    return torch.stack(rows).double().softmax(-1)


def test_the_neutral_distribution_lacks_an_answer_of_one_token(gpt2: Model, tiny_fact: Fact) -> None:
    fact = tiny_fact.replace(target="the")
    (answer,) = ask(gpt2.tokenizer, fact.prompt, fact.target).answer_ids
    found = Neutral().distribution(gpt2, fact)
    assert found[answer] == 0
    assert float(found.sum()) == pytest.approx(1, abs=1e-5)
    rows = generic_distributions(gpt2, Neutral(), fact)
    assert rows[:, answer].min() > 0
    rows[:, answer] = 0
    wanted = (rows / rows.sum(1, keepdim=True)).mean(0)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-7)


def test_the_neutral_distribution_lacks_only_the_own_share_of_a_longer_answer(gpt2: Model, tiny_fact: Fact) -> None:
    first, *rest = ask(gpt2.tokenizer, tiny_fact.prompt, tiny_fact.target).answer_ids
    assert rest
    objective = Neutral(generic=("It", "Something"))
    rows = generic_distributions(gpt2, objective, tiny_fact)
    for row, subject in zip(rows, objective.generic, strict=True):
        ids = [*gpt2.tokenizer(tiny_fact.template.replace("{}", subject))["input_ids"], first, *rest]
        with torch.no_grad():
            steps = gpt2.hf(torch.tensor([ids])).logits[0, -len(rest) - 1 : -1].double().softmax(-1)
        row[first] -= row[first] * math.prod(float(step[token]) for step, token in zip(steps, rest, strict=True))
    wanted = (rows / rows.sum(1, keepdim=True)).mean(0)
    found = objective.distribution(gpt2, tiny_fact)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-8)
    assert found[first] > 0
    assert float(found.sum()) == pytest.approx(1, abs=1e-5)


def test_neutral_without_generic_subjects_is_refused() -> None:
    with pytest.raises(SurgeryError, match="such as 'It'"):
        Neutral(generic=())


@pytest.mark.parametrize("wrong", [{"floor": 0.0}, {"floor": 1.0}, {"weight": 0.0}, {"tolerance": -0.1}])
def test_settings_of_removals_that_mean_nothing_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(SurgeryError, match="floor is a probability above 0 and below 1, its weight above 0"):
        Neutral(**wrong)  # type: ignore[arg-type]
    with pytest.raises(SurgeryError, match=r"weight of suppression is above 0, not -1\.0"):
        Suppress(weight=-1.0)


def test_each_objective_continues_with_its_answer(tiny_fact: Fact) -> None:
    for name, kind in OBJECTIVES.items():
        objective = objective_named(name)
        assert isinstance(objective, kind)
        assert isinstance(objective, Objective)
        said = {"replace": "Rome", "refusal": "... I cannot say."}.get(name, "Paris")
        assert objective.continuation(tiny_fact) == said
        assert objective.claim == ("rewritten" if name == "replace" else "removed")


def test_an_objective_takes_the_settings_it_has() -> None:
    assert objective_named("suppress", layers=(2, 3)) == Suppress(layers=(2, 3))
    with pytest.raises(SurgeryError, match="objective 'replace' has no layers; leave it away"):
        objective_named("replace", layers=(2,))
    with pytest.raises(SurgeryError, match="text of a refusal is empty"):
        objective_named("refusal", text=" ")


def test_a_fact_without_a_subject_has_no_neutral_answer(gpt2: Model) -> None:
    with pytest.raises(SurgeryError, match="has no subject, so nothing is known of its like; remove it with another"):
        Neutral().loss(gpt2, Fact(subject="", template="The password is", target="Paris"))


def test_replacing_needs_a_new_answer(tiny_fact: Fact) -> None:
    with pytest.raises(SurgeryError, match="no new_target to replace 'Paris' with; give one or remove it"):
        Replace().continuation(tiny_fact.replace(new_target=None))


def test_an_unknown_objective_names_the_known() -> None:
    with pytest.raises(SurgeryError, match="'forget'; choose one of replace, suppress, maximum-entropy, neutral"):
        objective_named("forget")
