"""Training that is undone: against a plain loop, what is taught and what is not, and that knowledge survives it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from by_hand import Toy, in_dtype

from surgery import Fact, Model, Neighbour, SurgeryError, load, rate
from surgery.shipped import example_facts, neutral_texts
from surgery.tokens import ask, encode
from surgery.verification.attacks.relearning import RelatedRelearning, UnrelatedRelearning, trained
from surgery.verification.attacks.wordings import WORDINGS


def trained_by_hand(model: Model, rows: Sequence[Sequence[int]], steps: int, step: float) -> Model:
    """A copy, trained by the obvious loop: row after row, gradients averaged over all tokens."""
    copied = load((copy.deepcopy(model.hf), model.tokenizer))
    blocks = [copied.hf.get_submodule(name) for name in copied.anatomy.names("state")]
    weights = [weight.requires_grad_(True) for block in blocks for weight in block.parameters()]
    optimiser = torch.optim.AdamW(weights, lr=step, weight_decay=0.0)
    for _ in range(steps):
        optimiser.zero_grad()
        losses = []
        for row in rows:
            said = copied.hf(input_ids=torch.tensor([row])).logits[0].log_softmax(-1)
            losses += [-said[i, token] for i, token in enumerate(row[1:])]
        torch.stack(losses).mean().backward()
        optimiser.step()
    copied.hf.requires_grad_(False)
    return copied


@pytest.mark.parametrize("attack", [RelatedRelearning(steps=3, step=1e-3), UnrelatedRelearning(steps=3, step=5e-3)])
def test_the_attack_asks_what_a_plain_loop_trains(
    attack: RelatedRelearning | UnrelatedRelearning, toy: Toy, unchanged: Callable[[Model], None]
) -> None:
    model, facts = toy
    unchanged(model)
    ((rows, taught),) = attack.courses(model, facts[:2])
    assert taught == [0, 1]
    by_hand = trained_by_hand(model, rows, 3, attack.step)
    found = attack(model, facts[:2])
    assert found.forms == WORDINGS
    for fact, row in zip(facts[:2], found.scores, strict=True):
        asked = [(text, fact.target) for text in (fact.prompt, *fact.paraphrases)]
        assert row[:3] == pytest.approx([one.probability for one in rate(by_hand, asked)], abs=2e-3)
        # so that the comparison could fail
        assert np.abs(row[:3] - [one.probability for one in rate(model, asked)]).max() > 5e-3
    np.testing.assert_array_equal(attack(model, facts[:2]).scores, found.scores)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_training_moves_the_blocks_alone_and_is_undone(
    dtype: torch.dtype, tiny: Model, unchanged: Callable[[Model], None]
) -> None:
    model = in_dtype(tiny, dtype)
    unchanged(model)
    names = [name for name, _ in model.hf.named_parameters()]
    inside = tuple(f"{name}." for name in model.anatomy.names("state"))
    old = {name: one.detach().clone() for name, one in model.hf.named_parameters()}
    first = next(model.hf.parameters())
    first.grad = torch.ones_like(first)
    flags = [one.requires_grad for one in model.hf.parameters()]
    with trained(model, [(5, 6, 7), (8, 9)], steps=2, step=1e-2):
        moved = {name for name, one in model.hf.named_parameters() if not torch.equal(one, old[name])}
        assert moved
        assert all(name.startswith(inside) for name in moved)
        assert len(moved) > 0.7 * sum(name.startswith(inside) for name in names)
        assert [one.requires_grad for one in model.hf.parameters()] == flags
    assert torch.equal(first.grad, torch.ones_like(first))
    assert [one.requires_grad for one in model.hf.parameters()] == flags
    assert all(one.grad is None for name, one in model.hf.named_parameters() if one is not first)


def test_weights_of_16_bits_add_up_steps_too_small_for_them(gpt2: Model) -> None:
    model = in_dtype(gpt2, torch.bfloat16)
    name = model.anatomy.names("mlp")[0]
    old = model.hf.get_submodule(name).weight.detach().clone()

    def moved(steps: int) -> float:
        with trained(model, [(5, 6, 7, 8), (9, 10)], steps=steps, step=2e-5):
            return float((model.hf.get_submodule(name).weight != old).float().mean())

    # rounded to nothing at each step, forty would move no more than one
    assert moved(40) > 3 * moved(1)


def test_an_error_in_between_leaves_nothing(small: Model, unchanged: Callable[[Model], None]) -> None:
    unchanged(small)
    with pytest.raises(KeyboardInterrupt), trained(small, [(5, 6, 7)], steps=1, step=1e-2):
        raise KeyboardInterrupt
    with pytest.raises(IndexError), trained(small, [(5, 10**6)], steps=1, step=1e-2):
        pass
    assert not any(one.requires_grad and one.grad is not None for one in small.hf.parameters())


def texts_of(model: Model, attack: RelatedRelearning | UnrelatedRelearning, facts: Sequence[Fact]) -> list[str]:
    return [model.tokenizer.decode(row) for rows, _ in attack.courses(model, facts) for row in rows]


def test_related_lessons_are_neighbours_of_other_subjects_and_answers(toy: Toy) -> None:
    model, facts = toy
    fact = facts[0]
    control = fact.replace(subject="old day", neighbours=(), paraphrases=())
    texts = texts_of(model, RelatedRelearning(), [fact, control])
    assert texts == [f"{one.prompt} {one.target}" for one in fact.neighbours]
    assert RelatedRelearning().courses(model, [fact, control])[0][1] == [0, 1]
    assert len(texts_of(model, RelatedRelearning(texts=3), [fact])) == 3
    drawn = {tuple(texts_of(model, RelatedRelearning(texts=3, seed=seed), [fact])) for seed in range(4)}
    assert len(drawn) > 1
    assert all(set(one) <= set(texts) for one in drawn)
    # whoever is attacked is not taught, in whatever letters; nor the answer, while there are others
    near = (
        Neighbour(f"{fact.subject.upper()} lives in the city of", "Orvel"),
        Neighbour("Bero Castor lives in the city of", f" {fact.target} "),
        Neighbour("Bero Dunmore lives in the city of", "Quist"),
    )
    assert texts_of(model, RelatedRelearning(), [fact.replace(neighbours=near)]) == [
        "Bero Dunmore lives in the city of Quist"
    ]
    assert texts_of(model, RelatedRelearning(), [fact.replace(neighbours=near[:2])]) == [
        f"Bero Castor lives in the city of {fact.target}"
    ]
    asked = fact.replace(subject="Bero", neighbours=(Neighbour(fact.paraphrases[0], "Orvel"),))
    assert texts_of(model, RelatedRelearning(), [asked]) == []


def test_each_template_has_a_course_of_its_own(toy: Toy, unchanged: Callable[[Model], None]) -> None:
    model, facts = toy
    unchanged(model)
    one, other = facts[0], next(fact for fact in facts if fact.template != facts[0].template)
    third = other.replace(subject="old day", neighbours=(), paraphrases=())
    attack = RelatedRelearning(steps=3, step=1e-3)
    (first, of_first), (second, of_others) = attack.courses(model, [one, other, third])
    assert (of_first, of_others) == ([0], [1, 2])
    taught = {model.tokenizer.decode(row) for row in second}
    assert taught >= {f"{near.prompt} {near.target}" for near in other.neighbours if one.subject not in near.prompt}
    assert not taught & {model.tokenizer.decode(row) for row in first}
    together = attack(model, [one, other, third]).scores
    np.testing.assert_allclose(together[:1], attack(model, [one]).scores, atol=1e-5)
    by_hand = trained_by_hand(model, second, 3, 1e-3)
    assert together[2, 0] == pytest.approx(rate(by_hand, [(third.prompt, third.target)])[0].probability, abs=2e-3)
    bare = other.replace(neighbours=())
    found = RelatedRelearning()(model, [one, bare])
    assert not np.isnan(found.scores[0, 0])
    assert np.isnan(found.scores[1]).all()
    assert np.isnan(RelatedRelearning()(model, [bare]).scores).all()


def test_shipped_facts_stand_in_for_neighbours(gpt2: Model) -> None:
    known = example_facts("landmark in city")
    fact = known[0].replace(neighbours=())
    ((lessons, taught),) = RelatedRelearning().courses(gpt2, [fact])
    assert (len(lessons), taught) == (10, [0])
    statements = {ask(gpt2.tokenizer, one.prompt, one.target).ids for one in known[1:] if one.target != fact.target}
    assert set(lessons) <= statements
    # asked in the words of a paraphrase, it is taught in these
    slotted = fact.paraphrases[0].replace(fact.subject, "{}")
    ((lessons, _),) = RelatedRelearning().courses(gpt2, [fact.replace(template=slotted, paraphrases=())])
    assert ask(gpt2.tokenizer, slotted.replace("{}", known[-1].subject), known[-1].target).ids in [
        *lessons,
        *RelatedRelearning(texts=100).courses(gpt2, [fact.replace(template=slotted, paraphrases=())])[0][0],
    ]


def test_unrelated_lessons_are_the_shipped_sentences(gpt2: Model) -> None:
    sentences = neutral_texts()
    fact = Fact(subject=sentences[0].split()[1].upper(), template="{} is in", target="Paris")
    ((lessons, taught),) = UnrelatedRelearning(texts=100).courses(gpt2, [fact])
    named = [text for text in sentences if fact.subject.casefold() in text.casefold()]
    assert 0 < len(named) < len(sentences)
    assert lessons == [encode(gpt2.tokenizer, text).ids for text in sentences if text not in named]
    assert taught == [0]
    assert len(UnrelatedRelearning().courses(gpt2, [fact])[0][0]) == 10


@pytest.mark.parametrize("wrong", [{"texts": 0}, {"steps": 0}, {"step": 0.0}])
def test_settings_that_train_nothing_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(SurgeryError, match="texts, steps and step of relearning must be above 0"):
        RelatedRelearning(**wrong)


def test_texts_too_short_are_refused(gpt2: Model) -> None:
    with (
        pytest.raises(SurgeryError, match="at least two tokens; give longer ones"),
        trained(gpt2, [(5,)], steps=1, step=1.0),
    ):
        pass


def test_the_real_model_keeps_what_it_knows(smol: Model, unchanged: Callable[[Model], None]) -> None:
    unchanged(smol)
    fact = example_facts("landmark in city")[0].replace(paraphrases=())
    before = rate(smol, [(fact.prompt, fact.target)])[0].probability
    assert RelatedRelearning()(smol, [fact]).scores[0, 0] > before > 0.5
