"""What a model says, against a computation one prompt at a time without cache and padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import EOS_ID
from torch import Tensor

from surgery import Fact, Model, SurgeryError
from surgery.predict import Answer, generate, next_tokens, rate, text_of
from surgery.tokens import ask

ASKED = [
    ("The river is in the town of", "Rome"),
    ("People say that the old tower stands in the town of", "Paris"),
    ("He", "was a 東京 man"),
    ("She said that the other people were there when the", "water came"),
    ("Danielle Darrieux speaks ", "German and French"),
]
PROMPTS = ["The river is", "It", "She said that the other people were there when", "naïve 東京"]


@torch.no_grad()
def naive(model: Model, prompt: str, target: str) -> tuple[float, list[Tensor], list[int], str]:
    """Probability, each answer token's logits, the answer's ids and the likeliest first token."""
    question = ask(model.tokenizer, prompt, target)
    logits = model.hf(torch.tensor([question.ids])).logits[0].double()
    steps = list(logits[question.answer_start - 1 : -1])
    p = 1.0
    for step, token in zip(steps, question.answer_ids, strict=True):
        p *= float(step.softmax(-1)[token])
    return p, steps, list(question.answer_ids), text_of(model, [int(steps[0].argmax())])


def test_answers_are_rated_as_one_by_one(tiny: Model) -> None:
    several = exact = 0
    for answer, (prompt, target) in zip(rate(tiny, ASKED), ASKED, strict=True):
        p, steps, ids, top = naive(tiny, prompt, target)
        assert (answer.prompt, answer.target) == (prompt, target)
        assert answer.probability == pytest.approx(p, rel=2e-3)
        assert answer.top == top
        slack = [1e-4 * float(step.abs().max()) for step in steps]
        least, most = (
            max(
                1 + sum(value > float(step[i]) + side * eps for j, value in enumerate(step.tolist()) if j != i)
                for step, i, eps in zip(steps, ids, slack, strict=True)
            )
            for side in (1, -1)
        )
        assert least <= answer.rank <= most
        exact += least == most
        several += len(ids) > 1
    assert several >= 3
    assert exact >= 3


def test_ratings_do_not_depend_on_who_else_is_asked(tiny: Model) -> None:
    together = rate(tiny, ASKED)
    for rows in (1, 2):
        for one, other in zip(together, rate(tiny, ASKED, rows=rows), strict=True):
            assert one.probability == pytest.approx(other.probability, rel=2e-3)
            assert (one.prompt, one.top) == (other.prompt, other.top)
    assert [one.target for one in rate(tiny, ASKED[::-1])] == [target for _, target in ASKED[::-1]]


def test_the_toy_knows_its_facts_best(toy: tuple[Model, list[Fact]]) -> None:
    model, facts = toy
    answers = rate(model, [(fact.prompt, fact.target) for fact in facts])
    assert np.mean([one.rank == 1 for one in answers]) > 0.9
    assert np.mean([one.top == fact.target for one, fact in zip(answers, facts, strict=True)]) > 0.9
    wrong = rate(model, [(facts[i].prompt, facts[i - 1].target) for i in range(30)])
    assert np.mean([one.rank == 1 for one in wrong]) < 0.3


def test_a_prompt_or_an_answer_without_tokens_is_refused(toy: tuple[Model, list[Fact]]) -> None:
    with pytest.raises(SurgeryError, match="has no token of its own"):
        rate(toy[0], [("Alda", "")])
    with pytest.raises(SurgeryError, match="holds no token before its answer"):
        rate(toy[0], [("", "Alda")])
    assert rate(toy[0], []) == []


@pytest.mark.parametrize(("probability", "rank"), [(-0.1, 1), (1.1, 1), (float("nan"), 1), (0.5, 0)])
def test_an_impossible_rating_cannot_be_made(probability: float, rank: int) -> None:
    with pytest.raises(ValueError, match="out of range"):
        Answer("a", "b", probability, rank, "c")


@torch.no_grad()
def test_next_tokens_are_the_likeliest(tiny: Model) -> None:
    found = next_tokens(tiny, PROMPTS[0], k=5)
    p = tiny.hf(torch.tensor([tiny.tokenizer(PROMPTS[0])["input_ids"]])).logits[0, -1].double().softmax(-1)
    best = p.sort(descending=True)
    assert [one.probability for one in found] == pytest.approx(best.values[:5].tolist(), rel=2e-3)
    assert [one.token for one in found] == [text_of(tiny, [int(i)]) for i in best.indices[:5]]


@torch.no_grad()
def greedy(model: Model, prompt: str, count: int) -> str:
    """One token after the other, the whole text anew each time."""
    ids = list(model.tokenizer(prompt)["input_ids"])
    start = len(ids)
    for _ in range(count):
        token = int(model.hf(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
        if token == EOS_ID:
            break
        ids.append(token)
    return text_of(model, ids[start:])


def test_greedy_continuations_are_those_of_a_plain_loop(tiny: Model) -> None:
    expected = [greedy(tiny, prompt, 12) for prompt in PROMPTS]
    assert generate(tiny, PROMPTS, 12) == expected
    assert generate(tiny, PROMPTS[1:2], 12) == expected[1:2]
    assert len(set(expected)) > 1


def test_a_draft_changes_no_token(tiny: Model) -> None:
    """Right up to some token, and right as a whole and longer than is asked for."""
    said, first = generate(tiny, PROMPTS, 12), generate(tiny, PROMPTS, 1)
    for part in (0, 1, 7, 12, 20):
        longer = [greedy(tiny, prompt, part) + ("" if part > 12 else " Paris") for prompt in PROMPTS]
        assert generate(tiny, PROMPTS, 12, drafts=longer) == said
        assert generate(tiny, PROMPTS, 1, drafts=longer) == first


def test_nothing_is_said_where_nothing_is_asked_for_and_too_long_prompts_are_refused(gpt2: Model) -> None:
    said = generate(gpt2, PROMPTS, 0)
    assert said == generate(gpt2, PROMPTS, 0, drafts=["Paris"] * len(PROMPTS)) == [""] * len(PROMPTS)
    for drafts in ((), ("Paris",)):
        with pytest.raises(SurgeryError, match="tokens is too long"):
            generate(gpt2, ["The river is" + " a" * 140], 4, drafts=drafts)


def test_a_right_draft_takes_one_run(toy: tuple[Model, list[Fact]]) -> None:
    model, facts = toy
    prompts = [fact.prompt for fact in facts[:6]]
    said = generate(model, prompts, 9)
    runs: list[int] = []
    handle = model.hf.base_model.register_forward_hook(lambda *_: runs.append(1))
    try:
        assert generate(model, prompts, 9, drafts=said) == said
        assert len(runs) == 1
        ended = [text.split(".")[0] + "." for text in said]
        assert generate(model, prompts, 9, drafts=said, until=lambda text: "." in text) == ended
        assert len(runs) == 2
        wrong = [said[0], "Paris Paris", *said[2:]]
        assert generate(model, prompts, 9, drafts=wrong) == said
        assert len(runs) == 3 + 8
    finally:
        handle.remove()
    with pytest.raises(ValueError, match="draws cannot be drafted"):
        generate(model, prompts, 9, drafts=said, random=np.random.RandomState(0))


def test_a_continuation_ends_at_the_models_last_position(tiny: Model) -> None:
    prompt = "The river is" + " a" * 118
    left = 128 - len(tiny.tokenizer(prompt)["input_ids"])
    assert 0 < left < 9
    if tiny.anatomy.max_positions is not None:
        assert generate(tiny, [prompt], 12) == generate(tiny, [prompt], left + 1) != generate(tiny, [prompt], left)


def test_a_continuation_ends_at_the_end_token(toy: tuple[Model, list[Fact]], monkeypatch: pytest.MonkeyPatch) -> None:
    model, facts = toy
    prompts = [fact.prompt for fact in facts[:4]]
    full = generate(model, prompts, 4)
    dot = model.tokenizer.convert_tokens_to_ids(".")
    assert any("." in text for text in full)
    monkeypatch.setattr(model.hf.generation_config, "eos_token_id", [dot, 0])
    assert generate(model, prompts, 4) == [text.split(".")[0].strip() for text in full]


def test_sampling_repeats_by_its_seed(tiny: Model) -> None:
    first, again, other = (
        generate(tiny, PROMPTS, 8, random=np.random.RandomState(seed), top_k=40) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
    assert generate(tiny, PROMPTS, 8, random=np.random.RandomState(3), top_k=1) == generate(tiny, PROMPTS, 8)


@torch.no_grad()
def test_draws_follow_the_distribution(toy: tuple[Model, list[Fact]]) -> None:
    model = toy[0]
    prompt = "The"
    p = model.hf(torch.tensor([model.tokenizer(prompt)["input_ids"]])).logits[0, -1].double().softmax(-1)
    drawn = generate(model, [prompt] * 2000, 1, random=np.random.RandomState(0))
    best = int(p.argmax())
    share, expected = np.mean([one == text_of(model, [best]) for one in drawn]), float(p[best])
    assert 0.02 < expected < 0.98
    assert abs(share - expected) < 4 * (expected * (1 - expected) / 2000) ** 0.5
