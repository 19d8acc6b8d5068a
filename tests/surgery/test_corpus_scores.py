"""ROUGE-L, Min-K, AUC, PrivLeak, truth ratios and permutation tests, by hand and by their definitions."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from surgery import Fact, Model, SurgeryError
from surgery.corpus import Corpus, Person, Query, forget_quality, permutation_test, truth_ratio_test
from surgery.corpus.membership import auc, forget_auc, min_k, priv_leak
from surgery.corpus.muse import cut_answer, surprise
from surgery.corpus.rouge import longest_common, rouge_l, words_of
from surgery.corpus.tofu import log_truth_ratios
from surgery.tokens import ask, encode


@pytest.mark.parametrize(
    ("said", "expected", "score"),
    [
        ("police killed the gunman", "police kill the gunman", 3 / 4),
        ("the gunman kill police", "police kill the gunman", 2 / 4),
        ("the cat", "the cat sat on the mat", 2 * 2 / 8),
        ("Lisbon.", "lisbon", 1.0),
        ("a teacher, I think", "teacher", 2 * 1 / 5),
        ("Über-Straße", "über straße", 1.0),
        ("", "Lisbon", 0.0),
        ("...", "...", 0.0),
    ],
)
def test_rouge_l_of_known_pairs(said: str, expected: str, score: float) -> None:
    assert rouge_l(said, expected) == pytest.approx(score)
    assert rouge_l(expected, said) == pytest.approx(score)


def test_the_longest_common_subsequence_is_that_of_all_subsequences() -> None:
    random = np.random.RandomState(0)
    for _ in range(30):
        one, other = ([str(i) for i in random.randint(3, size=random.randint(1, 7))] for _ in range(2))
        parts = [
            {part for n in range(len(words) + 1) for part in itertools.combinations(words, n)} for words in (one, other)
        ]
        assert longest_common(one, other) == max(map(len, parts[0] & parts[1]))
    assert words_of("It's 3 o'clock_now") == ["it", "s", "3", "o", "clock", "now"]


def test_answers_end_where_a_sentence_or_line_does() -> None:
    assert cut_answer(" Lisbon. By profession") == "Lisbon"
    assert cut_answer("\n a teacher\nQuestion: who") == "a teacher"
    assert cut_answer(" tuba") == "tuba"
    assert cut_answer("") == ""


def test_an_auc_is_the_chance_of_a_right_order() -> None:
    random = np.random.RandomState(0)
    for _ in range(20):
        one, other = random.randint(6, size=7) / 2, random.randint(6, size=5) / 2
        wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a in one for b in other]
        assert auc(one, other) == pytest.approx(np.mean(wins))
    assert auc(np.array([2.0, 3.0]), np.array([1.0])) == 1
    assert forget_auc(np.array([-0.1, -0.2]), np.array([-3.0, -4.0])) == 0
    for wrong in (np.zeros(0), np.array([np.nan])):
        with pytest.raises(SurgeryError, match="an AUC needs scores on both sides, none of them nan"):
            auc(wrong, np.ones(2))


def test_priv_leak_is_0_for_the_reference_and_minus_100_for_what_leaks_all() -> None:
    assert priv_leak(0.48, 0.48) == 0
    assert priv_leak(0.0, 0.48) == -100
    assert priv_leak(0.96, 0.48) == pytest.approx(100)
    with pytest.raises(SurgeryError, match="a reference AUC of 0 belongs to a model that has seen the texts"):
        priv_leak(0.5, 0.0)


def test_min_k_is_the_mean_of_the_least_likely_tokens() -> None:
    told = np.array([-1.0, -5.0, -2.0, -4.0, -3.0])
    assert min_k(told) == pytest.approx(-4.5)
    assert min_k(told, 1.0) == pytest.approx(-3.0)
    assert min_k(told, 0.01) == -5.0
    with pytest.raises(SurgeryError, match=r"a share of 0\.0 of the tokens is none"):
        min_k(told, 0.0)
    with pytest.raises(SurgeryError, match="a text of a single token has no likelihood"):
        min_k(np.zeros(0))


def by_hand(model: Model, ids: tuple[int, ...], start: int) -> np.ndarray:
    with torch.no_grad():
        logits = model.hf(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return np.array([float(logits[i - 1, ids[i]]) for i in range(start, len(ids))])


def test_a_sentence_surprises_as_part_of_its_text(tiny: Model) -> None:
    first, second = "The old tower is in Paris.", "The river is in the town of Rome."
    query = Query("Where?", "Rome", "In Rome.", ("In Paris.",))
    fact = Fact(subject="The river", template="{} is in", target="Rome")
    found = surprise(tiny, [Person("The river", (first, second), (query,) * 2, (fact,) * 2)] * 2)
    encoded = encode(tiny.tokenizer, f"{first} {second}")
    border = next(i for i, (_, end) in enumerate(encoded.offsets) if end > len(first))
    told = by_hand(tiny, encoded.ids, 1)
    expected = [min_k(told[: border - 1]), min_k(told[border - 1 :])]
    assert found == pytest.approx(expected * 2, abs=1e-4)


def test_a_truth_ratio_is_that_of_the_paper(gpt2: Model) -> None:
    query = Query("Where is the river?", "Rome", "It is in Rome.", ("It is in Paris.", "It is in the old town."))
    fact = Fact(subject="The river", template="{} is in", target="Rome")
    person, others = Person("The river", ("The river is in Rome.",), (query,), (fact,)), []
    for name in ("The tower", "The house"):
        others.append((Person(name, ("It is in Rome.",), (query,), (fact,)),))
    corpus = Corpus((person,), others[0], others[1])

    def p(answer: str) -> float:
        question = ask(gpt2.tokenizer, "Question: Where is the river?\nAnswer:", answer)
        return math.exp(by_hand(gpt2, question.ids, question.answer_start).mean())

    ratio = (p("It is in Paris.") + p("It is in the old town.")) / 2 / p("It is in Rome.")
    assert log_truth_ratios(gpt2, corpus, corpus.forget) == pytest.approx([math.log(ratio)], abs=1e-4)


def test_forget_quality_is_1_for_the_same_sample_and_small_for_another() -> None:
    sample = np.random.RandomState(0).randn(20)
    assert forget_quality(sample, sample) == (0, 1)
    statistic, p = forget_quality(sample - 100, sample)
    assert statistic == 1
    assert p == pytest.approx(2 / math.comb(40, 20))
    with pytest.raises(SurgeryError, match="for a single fact, use truth_ratio_test"):
        forget_quality(sample[:1], sample)


def test_a_permutation_test_counts_all_ways() -> None:
    group, others = np.array([1.0, 2.0]), np.array([2.5, 3.0, 4.0])
    found = permutation_test(group, others)
    # of ten pairs only this one has so low a mean
    assert (found.p, found.draws) == (0.1, 10)
    assert found.effect == pytest.approx((1.5 - others.mean()) / others.std(ddof=1))
    assert permutation_test(group, others, side="above").p == 1
    means = [abs(np.mean(pair) - 2.5) for pair in itertools.combinations([1.0, 2.0, 2.5, 3.0, 4.0], 2)]
    assert permutation_test(group, others, side="either").p == np.mean([one >= 1.0 - 1e-9 for one in means])
    same = permutation_test(np.ones(1), np.ones(20))
    assert same.p == 1
    assert math.isnan(same.effect)


@pytest.mark.parametrize("side", ["below", "above", "either"])
def test_one_fact_among_50_is_called_out_by_chance_in_two_cases_of_51(side: str) -> None:
    values = np.random.RandomState(0).randn(51)
    ps = [permutation_test(values[[i]], np.delete(values, i), side=side).p for i in range(51)]
    assert sorted(ps) == pytest.approx([i / 51 for i in range(1, 52)])


def test_false_alarms_of_drawn_permutations_are_as_rare_as_they_should_be() -> None:
    random = np.random.RandomState(0)
    ps = [permutation_test(random.randn(8), random.randn(12), draws=199, seed=i).p for i in range(400)]
    # 20 expected; four standard deviations are 17
    assert sum(p <= 0.05 for p in ps) <= 37
    assert permutation_test(random.randn(8) - 3, random.randn(12), draws=199).p == pytest.approx(1 / 200)


def test_permutation_tests_refuse_what_is_no_sample() -> None:
    with pytest.raises(SurgeryError, match="a permutation test needs values on both sides"):
        permutation_test(np.zeros(0), np.ones(3))
    with pytest.raises(SurgeryError, match="there is no side 'left'; choose one of below, above, either"):
        permutation_test(np.ones(1), np.ones(3), side="left")


def test_the_test_of_one_fact_refuses_what_it_cannot_ask(gpt2: Model, tiny_fact: Fact) -> None:
    with pytest.raises(SurgeryError, match="needs wrong answers, 'Paris' not among them"):
        truth_ratio_test(gpt2, tiny_fact, ["Rome", "Paris"])
    with pytest.raises(SurgeryError, match="18 controls are too few for a p value; give at least 19"):
        truth_ratio_test(gpt2, tiny_fact, ["Rome"], [tiny_fact] * 18)
    with pytest.raises(SurgeryError, match="has no subject to put another in the place of"):
        truth_ratio_test(gpt2, Fact(subject="", template="The tower is in", target="Paris"), ["Rome"])
