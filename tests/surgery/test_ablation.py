"""Ablation of a direction: against explicit hooks, on a fact hidden behind one, and what it is taken from."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import Toy
from torch import Tensor, nn

from surgery import Fact, Model, Neighbour, SurgeryError, rate
from surgery.hooks import TraceDict, hidden, with_hidden
from surgery.tokens import ask, encode, pad
from surgery.verification.attacks.ablation import DirectionAblation, without
from surgery.verification.controls import with_subject


def last_state(model: Model, text: str, layer: int) -> Tensor:
    with TraceDict(model.hf, model.anatomy.names("state")) as seen, torch.no_grad():
        model.hf(**model.inputs(pad([encode(model.tokenizer, text).ids])))
    return hidden(seen[model.anatomy.names("state")[layer]].output, 1)[0, -1]


def test_scores_are_those_of_explicit_hooks(toy: Toy, unchanged: Callable[[Model], None]) -> None:
    model, facts = toy
    unchanged(model)
    attack = DirectionAblation(depths=(0.0, 1.0), most=4)
    cases = [facts[0], *(with_subject(facts[0], name) for name in ("old day", "They", "so long summer"))]
    found = attack(model, cases)
    assert found.forms == ("layer 0", "layer 3")
    names = [one.prompt.removesuffix(" lives in the city of") for one in facts[0].neighbours[:4]]
    for fact, row in zip(cases, found.scores, strict=True):
        for column, layer in enumerate((0, 3)):
            apart = []
            for text in (fact.prompt, *fact.paraphrases):
                others = [last_state(model, text.replace(fact.subject, name), layer) for name in names]
                apart.append(last_state(model, text, layer) - torch.stack(others).mean(0))
            along = torch.stack(apart).mean(0)
            along = along / along.norm()

            def project(module: nn.Module, given: Any, output: Any, along: Tensor = along) -> Any:
                states = hidden(output, 1)
                return with_hidden(output, states - (states @ along)[..., None] * along)

            blocks = [model.hf.get_submodule(name) for name in model.anatomy.names("state")]
            handles = [block.register_forward_hook(project) for block in blocks]
            by_hand = rate(model, [(fact.prompt, fact.target)])[0].probability
            for handle in handles:
                handle.remove()
            assert row[column] == pytest.approx(by_hand, abs=1e-4)
    plain = [one.probability for one in rate(model, [(fact.prompt, fact.target) for fact in cases])]
    assert np.abs(found.scores[:, 1] - plain).max() > 0.01


def test_a_fact_hidden_behind_a_direction_comes_back(toy: Toy) -> None:
    """A hook adds a direction of its own to one subject's states; the attack finds it and takes it out."""
    model, facts = toy
    fact = facts[0]
    ids = ask(model.tokenizer, fact.subject, "x").prompt_ids
    push = torch.randn(model.anatomy.d_model, generator=torch.Generator().manual_seed(0))
    block = model.hf.get_submodule(model.anatomy.names("state")[0])
    seen: list[Tensor] = []

    def look(module: nn.Module, args: Any, kwargs: Any) -> None:
        seen.append(kwargs["input_ids"])

    def hide(module: nn.Module, given: Any, output: Any) -> Any:
        states = hidden(output, len(seen[-1])).clone()
        named = (seen[-1][:, :-1] == ids[0]) & (seen[-1][:, 1:] == ids[1])
        states[named.any(1)] += 200 * push / push.norm()
        return with_hidden(output, states)

    handles = [model.hf.base_model.register_forward_pre_hook(look, with_kwargs=True), block.register_forward_hook(hide)]
    try:
        hidden_away = rate(model, [(fact.prompt, fact.target)])[0].probability
        found = DirectionAblation(depths=(0.0,))(model, [fact])
    finally:
        for handle in handles:
            handle.remove()
    assert hidden_away < 0.3
    assert found.scores[0, 0] > 0.6


def test_where_there_are_no_neighbours_the_others_of_the_wording_are_the_contrast(toy: Toy) -> None:
    model, facts = toy
    attack = DirectionAblation()
    bare = [with_subject(facts[0], name) for name in ("old day", "They", "summer")]
    found = attack.directions(model, bare, [1])
    states = [
        torch.stack([last_state(model, text, 1) for text in (one.prompt, *one.paraphrases)]).mean(0) for one in bare
    ]
    apart = states[0] - (states[1] + states[2]) / 2
    assert found[0] is not None
    torch.testing.assert_close(found[0][0], apart / apart.norm(), atol=1e-4, rtol=1e-3)
    alone = attack(model, bare[:1])
    assert np.isnan(alone.scores).all()


def test_other_subjects_are_never_attacked_ones(toy: Toy) -> None:
    model, facts = toy
    fact = facts[0].replace(
        neighbours=(
            Neighbour("Bero Castor lives in the city of", "Ravenna"),
            Neighbour("Edda Holm lives in the city of", "Umber"),
            Neighbour("The home town of Falk Brin is", "Tamsk"),
            Neighbour(" lives in the city of", "Tamsk"),
        )
    )
    attacked = with_subject(fact, "bero castor")
    frame = (fact.template,)
    assert DirectionAblation()._others(model, [fact, attacked], frame, [0, 1]) == ["Edda Holm"]
    assert DirectionAblation(most=1)._others(model, [fact], frame, [0]) == ["Bero Castor"]
    # a frame in which the model can read no other subject, and one in which this one only is too long
    assert DirectionAblation()._others(model, [fact], (*frame, "{} " + "was " * 60), [0]) == []
    long = fact.replace(neighbours=(Neighbour("was " * 60 + "lives in the city of", "Tamsk"), *fact.neighbours))
    assert DirectionAblation()._others(model, [long], frame, [0]) == ["Bero Castor", "Edda Holm"]
    plain = Fact(subject="", template="The summer was a", target="long", neighbours=fact.neighbours)
    assert np.isnan(DirectionAblation()(model, [plain]).scores).all()


def test_a_direction_of_nothing_changes_nothing(tiny: Model, tiny_fact: Fact) -> None:
    question = ask(tiny.tokenizer, tiny_fact.prompt, tiny_fact.target)
    plain = rate(tiny, [(tiny_fact.prompt, tiny_fact.target)])[0].probability
    zero = torch.zeros(1, tiny.anatomy.d_model)
    (same,) = without(tiny, [question], zero)
    assert math.log(same) == pytest.approx(math.log(plain), abs=2e-4)
    along = torch.nn.functional.normalize(
        torch.randn(1, tiny.anatomy.d_model, generator=torch.Generator().manual_seed(0))
    )
    (changed,) = without(tiny, [question], along)
    assert abs(math.log(changed / plain)) > 2e-3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"depths": ()}, "depths are shares of the model's depth, 0 to 1, not"),
        ({"depths": (0.5, 1.5)}, "not \\(0.5, 1.5\\)"),
        ({"most": 0}, "at least one other subject to differ from; give most=1 or more"),
    ],
)
def test_settings_that_give_no_direction_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(SurgeryError, match=message):
        DirectionAblation(**wrong)
