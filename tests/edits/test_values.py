"""The search for a value: its first step by hand, its bounds, and that it leaves the model alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer

from edits import MaximumEntropy, Neutral, Objective, Replace, Suppress, ValueSearch
from edits.keys import by_key
from edits.values import Value, find_values
from surgery import Fact, Model, Site, SurgeryError, load

SITE = Site("L1.mlp")
CONTEXTS = ("{}", "It rained. {}")


def search(model: Model, fact: Fact, objective: Objective | None = None, **settings: Any) -> Value:
    return find_values(model, [fact], SITE, objective or Replace(), CONTEXTS, ValueSearch(**settings))[0]


def by_hand(model: Model, fact: Fact, shift: torch.Tensor) -> torch.Tensor:
    """Replace's loss with `shift` added at the subject's last token, row by row, with a plain hook; no essence."""
    module, losses = model.hf.get_submodule(model.anatomy.name(SITE)), []
    for context in CONTEXTS:
        prompt = context.replace("{}", fact.prompt)
        encoded = model.tokenizer(prompt, return_offsets_mapping=True)
        end = prompt.index(fact.subject) + len(fact.subject)
        last = max(i for i, (a, _) in enumerate(encoded["offset_mapping"]) if a < end)
        ids = model.tokenizer(f"{prompt} {fact.new_target}")["input_ids"]
        first = len(encoded["input_ids"])

        def add(module: Any, args: Any, output: torch.Tensor, last: int = last, width: int = len(ids)) -> torch.Tensor:
            return output + torch.nn.functional.one_hot(torch.tensor(last), width)[:, None] * shift

        handle = module.register_forward_hook(add)
        try:
            logits = model.hf(torch.tensor([ids])).logits[0, first - 1 : -1]
        finally:
            handle.remove()
        losses.append(-logits.log_softmax(-1).gather(1, torch.tensor(ids[first:])[:, None]).mean())
    return torch.stack(losses).mean()


@pytest.fixture
def pure() -> dict[str, Any]:
    """Settings that leave the objective alone in the loss."""
    return {"kl": 0.0, "decay": 0.0, "stop": 0.0}


@pytest.mark.parametrize("rule", ["steepest", "adam"])
def test_the_first_step_goes_down_the_gradient_by_its_length(
    tiny: Model, tiny_fact: Fact, pure: dict[str, Any], rule: str
) -> None:
    value = search(tiny, tiny_fact, steps=1, step=0.02, rule=rule, **pure)
    shift = torch.zeros(tiny.anatomy.d_model, requires_grad=True)
    loss = by_hand(tiny, tiny_fact, shift)
    (gradient,) = torch.autograd.grad(loss, shift)
    assert value.losses[0] == pytest.approx(float(loss.detach()), abs=1e-4)
    clear = gradient.abs() > 1e-4
    assert clear.sum() > 10
    direction = gradient.sign() if rule == "adam" else gradient / gradient.norm()
    wanted = -0.02 * float(value.old.norm()) * direction
    torch.testing.assert_close(value.shift[clear], wanted[clear], rtol=1e-3, atol=0)
    assert value.losses[1] == pytest.approx(float(by_hand(tiny, tiny_fact, value.shift).detach()), abs=1e-3)


def test_key_and_old_value_are_the_mean_over_contexts(tiny: Model, tiny_fact: Fact) -> None:
    keys: list[torch.Tensor] = []
    d_ff = tiny.anatomy.d_ff
    module = tiny.hf.get_submodule(tiny.anatomy.name(SITE))
    handle = module.register_forward_pre_hook(lambda _, args: keys.append(args[0].reshape(-1, d_ff)[-1].double()))
    for context in CONTEXTS:
        upto = context.replace("{}", tiny_fact.prompt.split(" stands")[0])
        assert upto.endswith(tiny_fact.subject)
        with torch.no_grad():
            tiny.hf(torch.tensor([tiny.tokenizer(upto)["input_ids"]]))
    handle.remove()
    key = torch.stack(keys).mean(0)
    value = search(tiny, tiny_fact, steps=1)
    torch.testing.assert_close(value.key.double(), key, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(value.old.double(), tiny.anatomy.matrix(SITE).double() @ key, rtol=1e-3, atol=1e-3)
    cosines = [float(torch.cosine_similarity(one, key, dim=0)) for one in keys]
    assert value.agreement == pytest.approx(min(cosines), abs=1e-4)
    assert value.prompts == (*(one.replace("{}", tiny_fact.prompt) for one in CONTEXTS), f"{tiny_fact.subject} is a")


def test_the_shift_stays_within_its_clamp(gpt2: Model, tiny_fact: Fact, pure: dict[str, Any]) -> None:
    free = search(gpt2, tiny_fact, steps=10, step=0.2, clamp=100.0, **pure)
    held = search(gpt2, tiny_fact, steps=10, step=0.2, clamp=0.3, **pure)
    norm = float(held.old.norm())
    assert float(held.shift.norm()) == pytest.approx(0.3 * norm, rel=1e-4)
    assert float(free.shift.norm()) > 0.6 * norm


def test_the_search_stops_early_and_only_when_told(gpt2: Model, tiny_fact: Fact, pure: dict[str, Any]) -> None:
    long = search(gpt2, tiny_fact, steps=12, step=0.1, **pure)
    assert len(long.losses) == 13
    line = (long.losses[4] + min(long.losses[:4])) / 2
    early = search(gpt2, tiny_fact, steps=12, step=0.1, **{**pure, "stop": line})
    assert early.losses == long.losses[:5]
    at_once = search(gpt2, tiny_fact, steps=12, **{**pure, "stop": 1e6})
    assert len(at_once.losses) == 1
    assert not at_once.shift.any()


@pytest.mark.parametrize("rule", ["steepest", "adam"])
@pytest.mark.parametrize(("architecture", "layer"), [("llama", 3), ("mistral", 2)])
def test_what_no_shift_can_change_is_refused(architecture: str, layer: int, rule: Any, tiny_fact: Fact) -> None:
    """The last layer does not look back; nor does one whose window ends before the subject.

    There the only gradient is rounding's, of the essence prompt, and a step along it is as long as any other.
    """
    model, site = load((tiny_model(architecture), tiny_tokenizer())), Site.at(layer, "mlp")
    told = rf"to 'People say that The old tower .* does not depend on L{layer}\.mlp at .*; choose a lower layer"
    with pytest.raises(SurgeryError, match=told):
        find_values(model, [tiny_fact], site, Replace(), CONTEXTS, ValueSearch(steps=3, rule=rule))
    reached = ValueSearch(steps=3, rule=rule, stop=1e6)
    assert not find_values(model, [tiny_fact], site, Replace(), CONTEXTS, reached)[0].shift.any()


def test_decay_and_essence_hold_the_shift_back(gpt2: Model, tiny_fact: Fact, pure: dict[str, Any]) -> None:
    settings = {**pure, "steps": 15, "step": 0.1, "clamp": 100.0}
    free = float(search(gpt2, tiny_fact, **settings).shift.norm())
    for weights in ({"decay": 10.0}, {"kl": 100.0}):
        held = search(gpt2, tiny_fact, **{**settings, **weights})
        assert float(held.shift.norm()) < 0.9 * free


@pytest.mark.parametrize("objective", [Suppress(), Neutral(generic=("It", "This"))], ids=lambda one: one.name)
def test_the_loss_falls_on_a_model_that_knows_the_fact(toy: tuple[Model, list[Fact]], objective: Objective) -> None:
    model, facts = toy
    (value,) = find_values(model, [facts[0]], SITE, objective, ("{}",), ValueSearch(steps=20, clamp=8.0))
    assert value.losses[-1] < 0.5 * value.losses[0]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("call", [1, 2, 4])
def test_a_search_leaves_weights_flags_and_hooks_alone_however_it_ends(
    gpt2: Model, tiny_fact: Fact, error: type[BaseException], call: int, unchanged: Callable[[Model], None]
) -> None:
    unchanged(gpt2)
    weights = list(gpt2.hf.parameters())
    for weight in weights[::2]:
        weight.requires_grad_(True)
    calls = iter(range(1, 100))

    def interrupt(module: Any, args: Any, output: Any) -> None:
        if next(calls) == call:
            raise error("in the middle")

    # inside the edited layer, so that the pass which only reads keys gets there too
    handle = gpt2.hf.get_submodule(gpt2.anatomy.layers[1].attention).register_forward_hook(interrupt)
    try:
        with pytest.raises(error, match="in the middle"):
            search(gpt2, tiny_fact, steps=3)
        handle.remove()
        search(gpt2, tiny_fact, steps=3)
        assert [weight.requires_grad for weight in weights] == [i % 2 == 0 for i in range(len(weights))]
        assert all(weight.grad is None for weight in weights)
    finally:
        handle.remove()
        gpt2.hf.requires_grad_(False)


@pytest.mark.parametrize("settings", [{"steps": 0}, {"step": 0.0}, {"clamp": -1.0}], ids=str)
def test_settings_without_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(SurgeryError, match="above 0"):
        ValueSearch(**settings)


@pytest.mark.parametrize("essence", ["It is a", "{} and {}"])
def test_an_essence_prompt_needs_one_subject(essence: str) -> None:
    with pytest.raises(SurgeryError, match=r"exactly one {} for the subject"):
        ValueSearch(essence=essence)


def test_contexts_have_to_end_with_the_prompt(gpt2: Model, tiny_fact: Fact) -> None:
    for context in ("It rained.", "{} is what it is"):
        with pytest.raises(SurgeryError, match=r"does not end with {}"):
            find_values(gpt2, [tiny_fact], SITE, Replace(), (context,), ValueSearch(steps=1))
    with pytest.raises(SurgeryError, match="at least one context"):
        find_values(gpt2, [tiny_fact], SITE, Replace(), (), ValueSearch(steps=1))


def test_many_facts_are_found_as_each_is_alone(toy: tuple[Model, list[Fact]], pure: dict[str, Any]) -> None:
    """Also when some are reached, and left out, before others."""
    model, known = toy
    answers = sorted({fact.target for fact in known})
    facts = [fact.replace(new_target=next(a for a in answers if a != fact.target)) for fact in known[:5]]
    contexts = ("{}", "The day . {}")
    settings = {"steps": 6, "step": 0.2, "clamp": 8.0, "kl": 0.0, "decay": 0.0}
    unstopped = find_values(model, facts, SITE, Replace(), contexts, ValueSearch(**settings, stop=0.0))
    settings["stop"] = sorted(value.losses[3] for value in unstopped)[2] + 1e-3
    together = find_values(model, facts, SITE, Replace(), contexts, ValueSearch(**settings))
    assert [value.facts for value in together] == [(fact,) for fact in facts]
    assert len({len(value.losses) for value in together}) > 1
    for fact, value in zip(facts, together, strict=True):
        (alone,) = find_values(model, [fact], SITE, Replace(), contexts, ValueSearch(**settings))
        assert len(alone.losses) == len(value.losses)
        torch.testing.assert_close(value.shift, alone.shift, rtol=1e-2, atol=1e-3 * float(alone.shift.norm()))
        torch.testing.assert_close(value.key, alone.key)


def test_the_end_is_judged_by_the_objective_alone(toy: tuple[Model, list[Fact]]) -> None:
    model, facts = toy
    fact = facts[0].replace(new_target=next(one.target for one in facts if one.target != facts[0].target))
    settings = ValueSearch(steps=40, step=0.2, clamp=8.0, stop=0.5, decay=0.1)
    (value,) = find_values(model, [fact], SITE, Replace(), ("{}", "The day . {}"), settings)
    assert len(value.losses) < 41
    assert value.losses[-1] > 0.5


def test_facts_of_one_subject_share_a_value(
    gpt2: Model, tiny_fact: Fact, other_fact: Fact, pure: dict[str, Any]
) -> None:
    second = tiny_fact.replace(template="In the town of {} they speak", new_target="German")
    free = Fact(subject="", template="The river is in the town of", target="Rome", new_target="Paris")
    facts = [tiny_fact, other_fact, second, free]
    assert by_key(facts) == [[tiny_fact, second], [other_fact], [free]]
    shared, _, last = find_values(gpt2, facts, SITE, Replace(), CONTEXTS, ValueSearch(steps=6, **pure))
    assert shared.facts == (tiny_fact, second)
    alone = [search(gpt2, one, steps=6, **pure) for one in (tiny_fact, second)]
    torch.testing.assert_close(shared.key, torch.stack([one.key for one in alone]).mean(0))
    # the first loss is the mean of the two
    assert shared.losses[0] == pytest.approx(sum(one.losses[0] for one in alone) / 2, rel=1e-4)
    assert shared.losses[-1] < shared.losses[0]
    # without a subject, the last token of the prompt is shifted, and no essence prompt is read
    assert last.prompts == tuple(context.replace("{}", free.prompt) for context in CONTEXTS)
    assert last.losses[-1] < last.losses[0]


def test_an_objective_can_look_at_deeper_states(gpt2: Model, tiny_fact: Fact, pure: dict[str, Any]) -> None:
    """The loss is the mean over depths, each read as the output is."""
    found = {
        layers: search(gpt2, tiny_fact, MaximumEntropy(layers=layers), steps=1, **pure).losses[0]
        for layers in ((), (1,), (2,))
    }
    both = search(gpt2, tiny_fact, MaximumEntropy(layers=(1, 2)), steps=1, **pure).losses[0]
    assert len(set(found.values())) == 3
    # each of them is (depth + output) / 2, and both together (depth + depth + output) / 3
    assert 3 * both == pytest.approx(2 * found[1,] + 2 * found[2,] - found[()], rel=1e-3)


@pytest.mark.parametrize("layers", [(0,), (9,)])
def test_depths_an_edit_cannot_reach_are_refused(gpt2: Model, tiny_fact: Fact, layers: tuple[int, ...]) -> None:
    with pytest.raises(
        SurgeryError, match=f"looks at layers {layers[0]}, but an edit of layer 1 changes layers 1 to 3"
    ):
        search(gpt2, tiny_fact, Suppress(layers=layers))
