"""How the keys of contexts become one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sweeping import CONTEXTS, FAR, SEARCH, Toy

from edits import ClosedForm, Emmet, Mass, RankOne, Statistics
from edits.keys import one_key, with_elsewhere
from edits.moment import SecondMoment
from surgery import Fact, Model, Site
from surgery.hooks import Trace, hidden
from surgery.tokens import ask_fact

SITES = [Site.at(layer, "mlp") for layer in range(3)]


def test_a_balanced_key_by_hand() -> None:
    """Of C = I and the keys (1, 0) and (0, 2): four parts of the first, one of the second."""
    keys = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    key = one_key(keys, SecondMoment(torch.ones(2), torch.zeros(2, 1)), slack=0.0)
    torch.testing.assert_close(key, torch.tensor([0.8, 0.4]))
    torch.testing.assert_close(one_key(keys, None), torch.tensor([0.5, 1.0]))


@given(seed=st.integers(0, 10_000), contexts=st.integers(1, 6))
def test_all_contexts_respond_to_a_balanced_key_alike(seed: int, contexts: int) -> None:
    """To the change a key makes, and to no other of the same cost more."""
    draw = torch.Generator().manual_seed(seed)
    keys = torch.randn(contexts, 16, generator=draw) + torch.randn(16, generator=draw)
    moment = SecondMoment(torch.rand(16, generator=draw) + 0.1, torch.randn(16, 3, generator=draw))
    key = one_key(keys, moment, slack=0.0)
    white = moment.solve(key)
    responses = keys.double() @ white / (key.double() @ white)
    torch.testing.assert_close(responses, torch.ones(contexts, dtype=torch.float64), rtol=1e-4, atol=1e-4)
    mean = keys.mean(0)
    assert float(key.double() @ white) <= float(mean.double() @ moment.solve(mean)) * (1 + 1e-6)


def test_a_subject_that_is_hardly_read_elsewhere_is_left_out_there() -> None:
    keys = torch.tensor([[3.0, 0.0], [0.0, 5.0]])  # 4 long on average
    elsewhere = torch.tensor([[0.0, -1.01], [0.99, 0.0], [-6.0, 0.0]])
    kept = with_elsewhere(keys, elsewhere)
    torch.testing.assert_close(kept, torch.cat([keys, elsewhere[[0, 2]]]))
    torch.testing.assert_close(with_elsewhere(keys, elsewhere[:0]), keys)


def test_the_plain_mean_can_leave_a_context_out() -> None:
    """What balance is for: one key far from the others, as a bare prompt's is."""
    keys = torch.tensor([[0.3, 1.0, 0.0], [1.0, 0.0, 0.05], [1.0, 0.0, -0.05], [1.0, 0.05, 0.0]])
    moment = SecondMoment(torch.ones(3), torch.zeros(3, 1))
    responses = {}
    for name, key in {"mean": one_key(keys, None), "balanced": one_key(keys, moment)}.items():
        responses[name] = float(keys[0] @ key / (key @ key))
    assert responses["mean"] < 0.75 < 0.9 < responses["balanced"]


def test_keys_that_are_all_but_the_same_keep_their_mean() -> None:
    keys = torch.ones(3, 4) + 1e-4 * torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    moment = SecondMoment(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.ones(4, 1))
    torch.testing.assert_close(one_key(keys, moment), keys.mean(0), rtol=0, atol=1e-5)


@torch.no_grad()
def ends(model: Model, fact: Fact) -> torch.Tensor:
    """States above the highest site at the subject's last token, a row a context."""
    states = []
    for context in CONTEXTS:
        question, span = ask_fact(model.tokenizer, fact, str(fact.new_target), context)
        with Trace(model.hf, model.anatomy.names("state")[SITES[-1].layer]) as trace:
            model.hf(torch.tensor([question.ids]))
        states.append(hidden(trace.output, 1)[0, span.last])
    return torch.stack(states).double()


@pytest.mark.parametrize("made", [RankOne, Emmet, Mass])
def test_balanced_keys_reach_contexts_that_the_mean_leaves_out(
    toy: Toy, facts: list[Fact], statistics: Statistics, made: type[ClosedForm]
) -> None:
    """The state above the highest layer moves by more nearly the same in all contexts."""
    model, _ = toy
    sites = SITES if made is Mass else SITES[-1:]
    uneven = {}
    for key in ("mean", "balanced"):
        method = made(statistics=statistics, contexts=CONTEXTS, key=key, search=SEARCH, progress=False, limits=FAR)
        (value,) = method.find(model, facts[:1], sites)
        before = ends(model, facts[0])
        with method.solve(model, [value], sites).applied(model):
            moved = ends(model, facts[0]) - before
        responses = moved @ value.shift.double() / value.shift.double().square().sum()
        uneven[key] = float((responses - 1).abs().max())
    assert uneven["balanced"] < 0.7 * uneven["mean"]
