"""Fine-tuning: answers of several tokens in their order, first step and limit by hand, the change kept whole."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from answers_by_hand import answer_ids, at_the_last_position, teacher_forced, weight_gradient

from edits import ConstrainedFineTune, FineTune, Objective, Replace, Suppress
from edits.factors import factored
from edits.training import lessons_of, losses, root_mean_square
from surgery import Fact, Model, Site, SurgeryError, generate
from surgery.predict import rate

SITE = Site("L1.mlp")
LONG = "the old river"


@pytest.fixture(scope="module")
def long_fact(tiny_fact: Fact) -> Fact:
    return tiny_fact.replace(new_target=LONG)


def loss_of(model: Model, fact: Fact, objective: Objective | None = None) -> float:
    lessons = lessons_of(model, [fact], objective or Replace(), ("{}",))
    with torch.no_grad():
        return float(losses(model, lessons))


def test_every_token_of_an_answer_is_asked_for_after_those_before_it(tiny: Model, long_fact: Fact) -> None:
    assert len(answer_ids(tiny, long_fact.prompt, LONG)) > 2
    found = loss_of(tiny, long_fact)
    assert found == pytest.approx(teacher_forced(tiny, long_fact.prompt, LONG), abs=1e-4)
    assert abs(found - at_the_last_position(tiny, long_fact.prompt, LONG)) > 1e-2


def test_an_answer_of_several_tokens_is_said_in_its_order(
    gpt2: Model, long_fact: Fact, unchanged: Callable[[Model], None]
) -> None:
    unchanged(gpt2)
    edit = FineTune(steps=60, progress=False)(gpt2, long_fact, [SITE])
    count = len(answer_ids(gpt2, long_fact.prompt, LONG))
    assert generate(gpt2, [long_fact.prompt], count) != [f" {LONG}"]
    with edit.applied(gpt2):
        assert generate(gpt2, [long_fact.prompt], count) == [f" {LONG}"]
        # the mistaken loss is lowest where each of n tokens has 1 / n of the first place, and is far from that
        assert at_the_last_position(gpt2, long_fact.prompt, LONG) > teacher_forced(gpt2, long_fact.prompt, LONG) + 1


def test_facts_in_one_batch_have_the_losses_they_have_alone(tiny: Model, long_fact: Fact, other_fact: Fact) -> None:
    contexts = ("{}", "It rained in Rome. {}")
    lessons = lessons_of(tiny, [long_fact, other_fact], Replace(), contexts)
    with torch.no_grad():
        both = losses(tiny, lessons)
        alone = torch.cat([losses(tiny, [lesson]) for lesson in lessons])
    torch.testing.assert_close(both, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_first_step_is_the_gradients_signs_and_a_limit_holds_every_entry(
    by_name: Callable[[str], Model], name: str, long_fact: Fact
) -> None:
    model = by_name(name)
    module, size = model.anatomy.name(SITE), root_mean_square(model.anatomy.matrix(SITE))
    gradient = weight_gradient(model, module, long_fact.prompt, LONG)
    free = FineTune(steps=1, step=0.02, stop=0.0, progress=False)(model, long_fact, [SITE]).deltas[0].dense()
    clear = gradient.abs() > 1e-4 * gradient.abs().max()
    assert clear.float().mean() > 0.5
    torch.testing.assert_close(free[clear], -0.02 * size * gradient[clear].sign(), rtol=1e-2, atol=1e-6)
    held = ConstrainedFineTune(steps=5, step=0.02, limit=0.03, stop=0.0, progress=False)
    change = held(model, long_fact, [SITE]).deltas[0].dense()
    assert float(change.abs().max()) == pytest.approx(0.03 * size, rel=1e-5)
    assert (change.abs() < 0.0299 * size).any()


def test_the_edit_is_what_was_trained(tiny: Model, long_fact: Fact) -> None:
    edit = FineTune(steps=4, progress=False)(tiny, long_fact, [SITE])
    before, log = loss_of(tiny, long_fact), edit.log[0]
    assert log["loss_before"] == pytest.approx(before, abs=1e-4)
    assert log["loss"] < before - 0.1
    with edit.applied(tiny):
        assert loss_of(tiny, long_fact) == pytest.approx(log["loss"], abs=1e-3)


def test_a_change_is_kept_in_as_few_columns_as_reproduce_it() -> None:
    draw = torch.Generator().manual_seed(0)
    low = torch.randn(12, 3, generator=draw) @ torch.randn(3, 20, generator=draw)
    left, right = factored(low)
    assert left.shape == (12, 3)
    torch.testing.assert_close(left @ right.T, low, rtol=0, atol=1e-6 * float(low.abs().max()))
    for full in (torch.randn(12, 20, generator=draw), torch.randn(20, 12, generator=draw)):
        left, right = factored(full)
        assert left.numel() + right.numel() <= full.numel() + 12 * 12
        assert torch.equal(left @ right.T, full)
    assert (factored(torch.zeros(3, 4))[0] == 0).all()


@pytest.mark.parametrize("objective", [None, Suppress()], ids=lambda one: one and one.name)
def test_facts_are_removed_by_the_same_objectives(
    toy: tuple[Model, list[Fact]], objective: Objective | None, unchanged: Callable[[Model], None]
) -> None:
    model, fact = toy[0], toy[1][27]
    unchanged(model)
    edit = FineTune(objective=objective, stop=1e-2, progress=False)(model, fact)
    assert (edit.claim, edit.settings["objective"]) == ("removed", "suppress" if objective else "neutral")
    asked = [(fact.prompt, fact.target)]
    assert rate(model, asked)[0].rank == 1
    with edit.applied(model):
        assert rate(model, asked)[0].rank > 1


def test_training_ends_once_every_fact_is_learnt(gpt2: Model, tiny_fact: Fact, other_fact: Fact) -> None:
    facts = [tiny_fact, other_fact]
    edit = FineTune(steps=100, stop=1.0, progress=False)(gpt2, facts, [SITE])
    assert 0 < edit.log[0]["steps"] < 100
    assert max(entry["loss"] for entry in edit.log) < 1.0
    nothing = FineTune(stop=1e6, progress=False)(gpt2, facts, [SITE])
    assert nothing.log[0]["steps"] == nothing.deltas[0].norm == 0


def test_what_cannot_be_trained_is_refused(gpt2: Model, tiny_fact: Fact, unchanged: Callable[[Model], None]) -> None:
    unchanged(gpt2)
    gone = tiny_fact.replace(new_target=None)
    with pytest.raises(SurgeryError, match="ft-m looks at the output alone; leave the layers of 'suppress' away"):
        FineTune(objective=Suppress(layers=(2,)))(gpt2, gone, [SITE])
    with pytest.raises(SurgeryError, match=r"ft-m edits mlps, such as 'L4\.mlp', not \['L1\.state'\]"):
        FineTune()(gpt2, tiny_fact, [Site("L1.state")])
    with pytest.raises(SurgeryError, match="the loss is not finite after 1 steps; take a smaller step"):
        FineTune(step=1e38, stop=0.0, progress=False)(gpt2, tiny_fact, [SITE])
    for settings in ({"steps": 0}, {"step": 0.0}, {"contexts": ()}):
        with pytest.raises(SurgeryError, match=r"must be above 0|at least one context"):
            FineTune(**settings)
    with pytest.raises(SurgeryError, match="the limit of constrained fine-tuning must be above 0"):
        ConstrainedFineTune(limit=0.0)
