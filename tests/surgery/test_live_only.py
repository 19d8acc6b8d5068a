"""Modules are given the tokens that are read, no padding, and put their outputs where they belong."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from surgery.live_only import LiveOnly, mlps
from surgery.model import Model

LENGTHS, WIDTH = [3, 1, 2], 3


class Seen(nn.Module):
    """A map of each token that notes what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.map, self.shapes = nn.Linear(4, 5), list[tuple[int, ...]]()

    def forward(self, states: Tensor) -> Tensor:
        self.shapes.append(tuple(states.shape))
        made: Tensor = self.map(states).tanh()
        return made


class Both(Seen):
    """One that wants a second thing of the same shape."""

    def forward(self, states: Tensor, residual: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(states) + residual


def drawn(rows: int = 3, width: int = WIDTH) -> Tensor:
    return torch.randn(rows, width, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()


def live(rows: list[int]) -> Tensor:
    return torch.arange(WIDTH) < torch.tensor(rows)[:, None]


def test_what_is_read_is_the_same_and_so_are_gradients() -> None:
    module, states = Seen(), drawn()
    usual = module(states)
    with LiveOnly([module], LENGTHS, WIDTH, states.device):
        found = module(states)
    assert module.shapes == [(3, 3, 4), (1, 6, 4)]
    torch.testing.assert_close(found[live(LENGTHS)], usual[live(LENGTHS)])
    assert not found[~live(LENGTHS)].any()
    (own,) = torch.autograd.grad(found.square().sum(), states)
    (wanted,) = torch.autograd.grad(usual[live(LENGTHS)].square().sum(), states)
    torch.testing.assert_close(own, wanted)


def test_it_can_be_entered_again_with_fewer_rows_and_leaves_nothing_behind() -> None:
    module, states = Seen(), drawn()
    block = LiveOnly([module], LENGTHS, WIDTH, states.device)
    block.keep([0, 2])
    block.keep([1])
    for _ in range(2):
        with block:
            torch.testing.assert_close(module(states[2:])[0, :2], module.map(states[2, :2]).tanh())
    assert module.shapes == [(1, 2, 4)] * 2
    assert not module._forward_hooks
    assert not module._forward_pre_hooks


def test_what_has_no_padding_or_another_shape_or_wants_more_is_left_alone() -> None:
    module, more, states = Seen(), Both(), drawn()
    with LiveOnly([module], [3, 3, 3], WIDTH, states.device):
        module(states)
    with LiveOnly([module, more], LENGTHS, WIDTH, states.device):
        module(states.flatten(0, 1))
        module(states[:2])
        more(states, torch.ones(3, 3, 5))
    assert module.shapes == [(3, 3, 4), (9, 4), (2, 3, 4)]
    assert more.shapes == [(3, 3, 4)]


def test_every_block_has_its_mlp(tiny: Model) -> None:
    found, blocks = mlps(tiny), tiny.anatomy.names("state")
    assert len(set(found)) == len(blocks)
    for module, block, last in zip(found, blocks, tiny.anatomy.names("mlp"), strict=True):
        inside = dict(tiny.hf.get_submodule(block).named_modules(prefix=block))
        assert module in inside.values()
        assert inside[last] in module.modules()
