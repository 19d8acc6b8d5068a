"""How the keys of contexts become one."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from edits.keys import one_key
from edits.moment import SecondMoment


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
