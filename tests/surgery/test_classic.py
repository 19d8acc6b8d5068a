"""Classic scores against hand computations; entropies, cosines and bootstraps with known values."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from by_hand import Toy
from scipy import stats

from surgery import Fact, Model, SurgeryError
from surgery.predict import generate
from surgery.tokens import ask, encode
from surgery.verification.classic import (
    COLUMNS,
    Classic,
    bootstrapped,
    consistency,
    fluency,
    harmonic,
    likelihoods,
    ngram_entropy,
    score,
    told_on,
)

TOYS = ("llama",)
NAN = math.nan


@torch.no_grad()
def loss(model: Model, prompt: str, answer: str) -> float:
    """Mean negative log-likelihood a token, one run for one answer."""
    question = ask(model.tokenizer, prompt, answer)
    said = model.hf(torch.tensor([question.ids])).logits[0].double().log_softmax(-1)
    at = range(question.answer_start, len(question.ids))
    return -float(np.mean([float(said[i - 1, question.ids[i]]) for i in at]))


def test_scores_by_hand(toy: Toy, unchanged: Callable[[Model], None]) -> None:
    model, facts = toy
    unchanged(model)
    # the model's own answer as the new one: rewritten; another one: not; and one of two words
    chosen = [
        facts[0].replace(target=facts[1].target, new_target=facts[0].target),
        facts[1].replace(new_target=facts[0].target),
        facts[2].replace(target="some old friends", new_target="harp", neighbours=()),
        facts[3].replace(new_target="flute", paraphrases=()),
    ]
    found = score(model, chosen)
    for row, fact in enumerate(chosen):
        assert fact.new_target is not None
        olds, news = (
            [loss(model, prompt, answer) for prompt in (fact.prompt, *fact.paraphrases)]
            for answer in (fact.target, fact.new_target)
        )
        near = [(loss(model, n.prompt, n.target), loss(model, n.prompt, fact.new_target)) for n in fact.neighbours]
        wins = [float(new < old) for old, new in zip(olds, news, strict=True)]
        gaps = [math.exp(-new) - math.exp(-old) for old, new in zip(olds, news, strict=True)]
        kept = [float(own <= new) for own, new in near]
        said = generate(model, [fact.prompt], 1)[0].strip() == fact.new_target
        expected = [wins[0], float(said), np.mean(wins[1:] or NAN), np.mean(kept or NAN)]
        assert found.successes[row] == pytest.approx(expected, nan_ok=True)
        rest = [np.mean(gaps[1:] or NAN), np.mean([math.exp(-own) - math.exp(-new) for own, new in near] or NAN)]
        assert found.magnitudes[row] == pytest.approx([gaps[0], *rest], abs=1e-4, nan_ok=True)
    assert found.successes[0, 0] == found.successes[0, 1] == 1
    assert found.successes[1, 0] == 0
    assert np.isnan(found.successes[2, 3])
    assert np.isnan(found.successes[3, 2])


def test_likelihoods_share_rows_and_keep_their_order(toy: Toy) -> None:
    model, facts = toy
    asked = [
        (fact.prompt, answer) for fact in facts[:3] for answer in (fact.target, "harp", "some old friends", "harp")
    ]
    for (prompt, answer), (found, _) in zip(asked, likelihoods(model, asked), strict=True):
        assert found == pytest.approx(loss(model, prompt, answer), rel=1e-4, abs=1e-5)


def test_a_rewrite_needs_a_new_answer(toy: Toy) -> None:
    with pytest.raises(SurgeryError, match="'mine' has no new_target, so it was not rewritten; give one"):
        score(toy[0], [toy[1][0].replace(id="mine")])


def test_the_summary_has_an_interval_for_everything() -> None:
    successes = np.array([[1, 1, 0.5, 0.8], [1, 0, 1, NAN], [0, 0, 0.5, 0.4]])
    made = Classic(successes, np.array([[0.5, 0.2, 0.1], [0.7, 0.4, NAN], [-0.2, 0.0, 0.3]]))
    found = made.summary()
    assert list(found) == [
        *COLUMNS, "rewrite magnitude", "paraphrase magnitude", "neighbourhood magnitude", "harmonic"
    ]  # fmt: skip
    known = stats.binomtest(2, 3).proportion_ci(method="wilson")
    assert (found["rewrite"].low, found["rewrite"].high) == pytest.approx((known.low, known.high))
    assert (found["neighbourhood"].mean, found["neighbourhood"].cases) == (pytest.approx(0.6), 2)
    low, high = stats.t.interval(0.95, 2, 1 / 3, stats.sem([0.5, 0.7, -0.2]))
    assert (found["rewrite magnitude"].low, found["rewrite magnitude"].high) == (max(low, -1), min(high, 1))
    assert found["harmonic"].mean == pytest.approx(3 / (3 / 2 + 3 / 2 + 1 / 0.6))
    assert 0 <= found["harmonic"].low <= found["harmonic"].mean <= found["harmonic"].high <= 1
    assert found == made.summary(seed=0)
    assert json.loads(json.dumps(made.as_record()))["neighbourhood"]["cases"] == 2
    with pytest.raises(SurgeryError, match="3 successes are not of 1 facts"):
        Classic(successes, np.zeros((1, 3)))


def test_the_harmonic_mean_is_bought_with_nothing() -> None:
    assert harmonic(np.array([[1, 1, 1, 0.0]])) == 0
    assert math.isnan(harmonic(np.array([[1, 1, NAN, 1]])))
    assert harmonic(np.array([[1, 0, 0.5, 0.5]])) == pytest.approx(3 / 5)
    assert math.isnan(bootstrapped(np.array([[1, 0, 0.5, 0.5]])).low)
    same = bootstrapped(np.array([[1, 0, 0.5, 0.5]] * 4))
    assert (same.mean, same.low, same.high) == pytest.approx((0.6, 0.6, 0.6))


@pytest.mark.parametrize(
    ("text", "entropy"),
    [
        # of eight different words: seven bigrams, six trigrams, all once
        ("a b c d e f g h", 100 * (2 / 3 * math.log2(7) + 4 / 3 * math.log2(6)) / 2),
        ("x x x x x", 0.0),
        # ab, ba, ab, b. and aba, bab, ab.: entropies 1.5 and log2 3
        ("a b a b.", 100 * (2 / 3 * 1.5 + 4 / 3 * math.log2(3)) / 2),
        ("one", 0.0),
        ("", 0.0),
    ],
)
def test_entropies_are_in_hundredths_of_a_bit(text: str, entropy: float) -> None:
    assert ngram_entropy(text) == pytest.approx(entropy)


def test_fluency_is_the_mean_over_texts() -> None:
    texts = ["a b c d e f g h", "x x x x x", "a b a b."]
    each = [ngram_entropy(text) for text in texts]
    found = fluency(texts)
    assert (found.mean, found.cases) == (pytest.approx(np.mean(each)), 3)
    assert found.high == pytest.approx(stats.t.interval(0.95, 2, np.mean(each), stats.sem(each))[1])
    assert found.low == 0


def test_consistency_is_the_cosine_of_weighted_counts() -> None:
    # rome is in both documents, ln(3/3) + 1; forum and museum in one each, ln(3/2) + 1
    rare = math.log(3 / 2) + 1
    expected = (2 * 1 + 1 * rare**2) / math.sqrt(1 + rare**2) / math.sqrt(4 + 2 * rare**2)
    assert consistency(["Rome's forum"], ["The Rome forum a", "Rome museum"], ["rome forum", "rome museum"]) == (
        pytest.approx((2 + rare**2) / (math.sqrt(1 + rare**2) * math.sqrt(4 + 2 * rare**2 + (math.log(3) + 1) ** 2)))
    )
    assert consistency(["rome forum"], ["rome forum", "rome museum"]) == pytest.approx(expected)
    assert consistency(["rome forum"], ["forum, Rome"]) == pytest.approx(1)
    assert consistency(["paris"], ["rome"]) == 0
    assert consistency([""], ["rome"]) == 0
    with pytest.raises(SurgeryError, match="there are no reference texts"):
        consistency(["rome"], [])


def test_texts_have_their_length_with_the_prompt(toy: Toy) -> None:
    model, facts = toy
    prompts = [facts[0].prompt, "The", f"{facts[1].prompt} {facts[1].target} ."]
    texts = told_on(model, prompts, length=14)
    for prompt, text in zip(prompts, texts, strict=True):
        assert text.startswith(prompt)
        assert len(encode(model.tokenizer, text).ids) <= 14
    whole = told_on(model, prompts[:1], length=14)
    assert whole == texts[:1]
    rest = 14 - len(encode(model.tokenizer, prompts[0]).ids)
    assert whole[0].split() == f"{prompts[0]} {generate(model, prompts[:1], rest)[0]}".split()
    drawn = [told_on(model, prompts, length=14, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert told_on(model, prompts, length=14, seed=0, top_k=1) == texts


def test_an_example_of_the_documentation_reads_as_prose(smol: Model) -> None:
    fact = Fact(subject="The Eiffel Tower", template="{} is located in the city of", target="Paris")
    (text,) = told_on(smol, [fact.prompt], length=40)
    assert 300 < ngram_entropy(text) < 700
