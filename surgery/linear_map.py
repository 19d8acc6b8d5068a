"""Linear maps of a model, whichever way they store their weight, quantised ones included."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from surgery.errors import UnsupportedModel


def oriented(module: nn.Module) -> Float[Tensor, "out in"]:
    """A linear map's weight as [out, in]: GPT-2's Conv1D stores it the other way round.

    Raises:
        UnsupportedModel: the module is no plain linear map (a quantised one, say).
    """
    if isinstance(module, Conv1D):
        return module.weight.T
    if isinstance(module, nn.Linear) and module.weight.is_floating_point():
        return module.weight
    raise UnsupportedModel(
        f"{type(module).__name__} holds no plain weight matrix; load the model unquantised to change it"
    )


def map_size(module: nn.Module) -> tuple[int, int] | None:
    """A linear map's outputs and inputs, quantised or not; None for what is no such map."""
    # Conv1D calls them nf and nx; every other linear map, quantised ones included, out_features and in_features
    names = ("nf", "nx") if isinstance(module, Conv1D) else ("out_features", "in_features")
    out, into = (getattr(module, name, None) for name in names)
    return None if out is None or into is None else (int(out), int(into))


def shared_weight(hf: nn.Module, module: str) -> str | None:
    """Name of another parameter that is the same tensor as a module's weight, as tied embeddings are; None for none."""
    weight = getattr(hf.get_submodule(module), "weight", None)
    twins = [name for name, one in hf.named_parameters(remove_duplicate=False) if one is weight]
    return next((name for name in twins if name != f"{module}.weight"), None)
