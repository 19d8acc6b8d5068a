"""Several layers share a change: how much of what is missing each of them takes.

Meng et al. 2023, section 4.3 and algorithm 1 (https://arxiv.org/abs/2210.07229): layers are written from the lowest up.
Before each, the state above the highest one is read again, on the weights written so far; what is still missing of
the wanted state, R, is divided among the n layers that are left:

1. "even": R / n. The highest layer takes all that is left.
2. "root": R / sqrt(n), as PMET does (Li et al. 2024, https://arxiv.org/abs/2308.08742, eq. 13), so that lower layers
   take more.

This holds where what an mlp adds reaches the state above it as it is. Some families put a norm after the mlp; whether
one does is found by running it.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch

from surgery.anatomy import probe_ids
from surgery.errors import SurgeryError
from surgery.hooks import Trace, hidden, with_hidden
from surgery.model import Model
from surgery.site import Site

Spread = Literal["even", "root"]
SPREADS: dict[str, Any] = {"even": lambda left: 1 / left, "root": lambda left: 1 / math.sqrt(left)}


def share(spread: Spread, left: int) -> float:
    """What a layer takes of what is missing, with `left` layers still to be written, itself included."""
    return float(SPREADS[spread](left))


def adds_as_is(model: Model, site: Site) -> bool:
    """Whether a push at an mlp's output comes out of its block as it was put in.

    The push is as large as the state it is added to, so that it is not lost in the rounding of 16 bits.
    """
    ids, at = probe_ids(model.hf), 3
    name, above = model.anatomy.name(site), model.anatomy.names("state")[site.layer]
    with torch.no_grad(), Trace(model.hf, above, stop=True) as trace:
        model.hf(input_ids=ids, use_cache=False)
    size = float(hidden(trace.output, 1)[0, at].abs().max().float().clamp_min(1.0))
    push = size * torch.linspace(-1, 1, model.anatomy.d_model, device=ids.device)

    def pushed(output: Any, name: str) -> Any:
        states = hidden(output, 2).clone()
        states[1, at] += push.to(states.dtype)
        return with_hidden(output, states)

    with (
        torch.no_grad(),
        Trace(model.hf, name, retain_output=False, edit_output=pushed),
        Trace(model.hf, above, stop=True) as trace,
    ):
        model.hf(input_ids=ids.expand(2, -1), use_cache=False)
    states = hidden(trace.output, 2)[:, at].float()
    rounding = torch.finfo(model.dtype).eps
    return bool(((states[1] - states[0]) - push).abs().max() < (1e-3 + 4 * rounding) * size)


def check_spread(model: Model, sites: list[Site]) -> None:
    """Whether a change can be shared by the mlps of these sites.

    Raises:
        SurgeryError: a norm stands between one of them and the state above it.
    """
    for site in sites:
        if not adds_as_is(model, site):
            raise SurgeryError(
                f"what {site} adds goes through a norm first in {model.anatomy.architecture}, so layers cannot share "
                f"a change; edit one layer, such as {sites[-1]}"
            )
