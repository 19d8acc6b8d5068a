"""What a value search goes by: the loss of several groups' shifts, and where it falls.

1. The rows of all groups that go on are read under their shifts (`edits.reading`).
2. Each group's loss is the mean of its objective's over facts and depths, plus what the essence prompt has drifted and
   what the shift weighs (`edits.values`, step 3).
3. Groups do not feel each other, so that the gradient of the sum is each group's own.

On a GPU, the gradient is ordered before anybody looks at the losses. Rows are done about as soon as they are ordered,
few of them long before, so all steps that read the same ones are a recording (`surgery.gpu_graph`); since another has
to be made for fewer, groups that are done are read along there until they are half of them. Elsewhere they are left out
at once, and on a processor only the others' gradients are worked out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from edits.objectives import Loss
from edits.reading import Reader, Reading, Rows
from edits.room import GPU_WORK
from surgery.gpu_graph import Recording
from surgery.gpu_queue import sent


class SearchLoss:
    """The loss at the shifts `unit`, which whoever descends changes in place.

    Attributes:
        unit: each group's shift, in units of its value's norm: [groups, d_model].
        norms: of the values.
        going: the groups that go on.
        at: the same, on the device.
    """

    def __init__(
        self,
        reader: Reader,
        groups: Sequence[Rows],
        wanted: Sequence[Sequence[Loss]],
        old: Float[Tensor, "groups d_model"],
        *,
        kl: float,
        decay: float,
    ) -> None:
        """From no shift on; `old` are the values, `kl` and `decay` weigh the terms beside the objective."""
        self.unit = torch.zeros_like(old)
        self.norms = old.norm(dim=1)
        self.going = list(range(len(groups)))
        self.at: Int[Tensor, " going"] = sent(self.going, old.device)
        self._reader, self._groups, self._wanted, self._kl, self._decay = reader, groups, wanted, kl, decay
        self._read, self._read_at, self._places = self.going, self.at, self.at
        self._recording = Recording(old.device)
        self._clean: Float[Tensor, "essences vocab"] | None = None
        self._about = sent(self._essences(), old.device)
        self._gradient: Callable[[Int[Tensor, " still"]], Float[Tensor, "groups d_model"]] | None = None

    def __call__(self, *, last: bool = False) -> Float[Tensor, "2 going"]:
        """Of each group that goes on, its loss, and the objective's part of it; `last` if no gradient is wanted."""
        self._gradient = None
        with torch.set_grad_enabled(not last):
            if last:
                return self._losses(self.unit)[:, self._places]
            if self._recorded or self.unit.is_cuda:
                losses, every = self._recording(self._with_gradient) if self._recorded else self._with_gradient()
                self._gradient = lambda _: every
                return losses[:, self._places]
            leaf, begun = self._begun()
            self._gradient = lambda still: torch.autograd.grad(begun[0][still].sum(), leaf)[0]
            return begun.detach()

    def gradient(self, still: Sequence[int]) -> Float[Tensor, "still d_model"]:
        """Of those of the groups that go on, by their places among them, at the shifts that were asked for last."""
        assert self._gradient is not None, "the last losses have no gradient"
        places = sent(still, self.at.device)
        return self._gradient(places)[self.at[places]]

    def keep(self, still: Sequence[int]) -> None:
        """Go on with these only, by their places among those that went on."""
        self._gradient = None
        self.going = [self.going[n] for n in still]
        self.at = sent(self.going, self.at.device)
        if not self._recorded or 2 * len(self.going) <= len(self._read):
            self._leave_out()
        place = {i: n for n, i in enumerate(self._read)}
        self._places = sent([place[i] for i in self.going], self.at.device)

    @property
    def _recorded(self) -> bool:
        """Whether there is a GPU that can be told once of what is read; more than goes together usually is too much."""
        return self._recording.possible and 0 < self._reader.lasting * self.unit.shape[1] <= GPU_WORK

    def _leave_out(self) -> None:
        """Read no groups but those that go on."""
        self._recording.forget()
        kept = set(self.going)
        if self._clean is not None:
            here = [n for n, place in enumerate(self._essences()) if self._read[place] in kept]
            self._clean = self._clean[sent(here, self.at.device)]
        self._reader.keep([n for n, i in enumerate(self._read) if i in kept])
        self._read, self._read_at = self.going, self.at
        self._about = sent(self._essences(), self.at.device)

    def _essences(self) -> list[int]:
        """Places, among those that are read, of groups with an essence prompt."""
        return [n for n, i in enumerate(self._read) if self._groups[i].essence]

    def _begun(self) -> tuple[Float[Tensor, "groups d_model"], Float[Tensor, "2 read"]]:
        """The shifts as a leaf of their own, and the losses there."""
        # a new one each time: one that lived on would be tied to the GPU's stream it was first used in
        leaf = self.unit.detach().requires_grad_()
        return leaf, self._losses(leaf)

    def _with_gradient(self) -> tuple[Tensor, ...]:
        leaf, losses = self._begun()
        (gradient,) = torch.autograd.grad(losses[0].sum(), leaf)
        return losses.detach(), gradient

    def _losses(self, unit: Float[Tensor, "groups d_model"]) -> Float[Tensor, "2 read"]:
        readings = self._reader((unit * self.norms[:, None])[self._read_at])
        each = zip(self._read, readings, strict=True)
        asked = torch.stack([_mean_loss(one, self._groups[i], self._wanted[i]) for i, one in each])
        essences = [one.essence for one in readings if one.essence is not None]
        whole = asked
        if essences:
            moved = torch.stack(essences)
            if self._clean is None:
                self._clean = moved.detach()  # the first reading is of the unshifted model
            kl = (self._clean.exp() * (self._clean - moved)).sum(1)
            whole = asked.index_add(0, self._about, self._kl * kl)
        return torch.stack([whole + self._decay * unit[self._read_at].square().sum(1), asked])


def _mean_loss(reading: Reading, rows: Rows, wanted: Sequence[Loss]) -> Float[Tensor, ""]:
    """Over a group's facts, and over the depths that are read."""
    each = [
        loss(depth, ids)
        for answers, ids, loss in zip(reading.answers, rows.answers, wanted, strict=True)
        for depth in answers
    ]
    return torch.stack(each).mean()
