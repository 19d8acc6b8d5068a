"""Where the parts of a transformer are. The only file that knows architectures.

Nothing is looked up by model name. The parts are found by looking, and the finding is checked by one small run:

1. The blocks are the longest `ModuleList` whose members all hold an attention. Mixtures of experts, state-space
   layers and encoder-decoders are refused with what was found there.
2. A probe run notes the order in which modules work. In each block, attention writes to the residual stream through
   the last linear map inside it; the mlp writes through the last linear map outside it, its down-projection. Some
   families add the residual inside their mlp module, or have no mlp module at all; these two maps they all have.
3. The final norm is the last norm that works after the blocks.
4. The check: the head on the normed last state gives the model's own logits; a push at either map of any layer moves
   its block's output at that position, and nothing before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from surgery.errors import SurgeryError, UnsupportedModel
from surgery.hooks import TraceDict, hidden, with_hidden
from surgery.linear_map import map_size, oriented
from surgery.site import Kind, Site


@dataclass(frozen=True)
class Layer:
    """Dotted names of one block's parts.

    Attributes:
        state: the block; its output is the residual stream after the layer.
        attention: the linear map through which attention writes to the residual stream.
        mlp: the linear map through which the mlp writes to it, the down-projection.
    """

    state: str
    attention: str
    mlp: str


@dataclass(frozen=True, eq=False)
class Anatomy:
    """The parts of one model, by dotted name, and its sizes.

    Attributes:
        hf: the model they are parts of.
        layers: the blocks, from 0.
        embedding: the token embedding.
        final_norm: the norm before the head, or None.
        d_model: width of the residual stream.
        d_ff: width of the mlp's hidden layer, the inputs of a down-projection.
        vocab: number of logits.
    """

    hf: PreTrainedModel
    layers: tuple[Layer, ...]
    embedding: str
    final_norm: str | None
    d_model: int
    d_ff: int
    vocab: int

    @property
    def max_positions(self) -> int | None:
        """Most tokens a row may have, where the model has a limit."""
        config = self.hf.config.get_text_config()
        for name in ("max_position_embeddings", "max_seq_len"):
            if isinstance(limit := getattr(config, name, None), int):
                return limit
        return None

    @property
    def heads(self) -> int:
        """Query heads of a layer; the input of an attention's output map is their results side by side.

        Raises:
            UnsupportedModel: the configuration gives no number that divides these inputs.
        """
        heads = getattr(self.hf.config.get_text_config(), "num_attention_heads", None)
        widths = {oriented(self.hf.get_submodule(name)).shape[1] for name in self.names("attention")}
        if not isinstance(heads, int) or any(width % heads for width in widths):
            raise UnsupportedModel(f"{self.architecture}: {heads} heads do not share {sorted(widths)} inputs evenly")
        return heads

    @property
    def architecture(self) -> str:
        """Class name of the model."""
        return type(self.hf).__name__

    def name(self, site: Site) -> str:
        """Dotted name of the module whose output is the site.

        Raises:
            SurgeryError: the model has no such layer.
        """
        if site.layer >= len(self.layers):
            raise SurgeryError(
                f"there is no layer {site.layer}: {self.architecture} has layers 0 to {len(self.layers) - 1}"
            )
        return str(getattr(self.layers[site.layer], site.kind))

    def names(self, kind: Kind) -> tuple[str, ...]:
        """Dotted names of one kind of site, by layer."""
        return tuple(getattr(layer, kind) for layer in self.layers)

    def matrix(self, site: Site) -> Float[Tensor, "out in"]:
        """The weight of the site's linear map as [out, in], a view whichever way it is stored."""
        return oriented(self.hf.get_submodule(self.name(site)))

    def unembed(self, states: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows vocab"]:
        """Logits of residual-stream states: final norm, then head."""
        normed = self.hf.get_submodule(self.final_norm)(states) if self.final_norm else states
        return self.head(normed)

    def head(self, normed: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows vocab"]:
        """Logits of states the final norm has seen; Gemma's soft cap included."""
        logits = self.hf.get_output_embeddings()(normed)
        cap = getattr(self.hf.config.get_text_config(), "final_logit_softcapping", None)
        return cap * torch.tanh(logits / cap) if cap else logits


def examine(hf: PreTrainedModel) -> Anatomy:
    """Find the parts of a causal language model and check the finding by one small run.

    Raises:
        UnsupportedModel: it is not a decoder of attention and dense mlp, or the check failed; the message says what
            was found.
    """
    who = type(hf).__name__
    if getattr(hf.config, "is_encoder_decoder", False):
        raise UnsupportedModel(f"{who} is an encoder-decoder; only decoder-only language models can be operated on")
    head, embedding = hf.get_output_embeddings(), hf.get_input_embeddings()
    if head is None or embedding is None:
        raise UnsupportedModel(f"{who} has no language-model head; load it with AutoModelForCausalLM")
    blocks_name, blocks = _blocks(hf)
    order = _running_order(hf)
    layers = tuple(_layer(hf, f"{blocks_name}.{i}", block, order) for i, block in enumerate(blocks))
    d_model, d_ff = _size(hf, layers[0].mlp)
    anatomy = Anatomy(
        hf=hf,
        layers=layers,
        embedding=_name_of(hf, embedding),
        final_norm=_final_norm(hf, blocks_name, order),
        d_model=d_model,
        d_ff=d_ff,
        vocab=oriented(head).shape[0],
    )
    _check(anatomy)
    return anatomy


def probe_ids(hf: PreTrainedModel) -> Int[Tensor, "1 width"]:
    """A few different token ids, the same for every model."""
    table = embedding_table(hf)
    return torch.tensor([[(7 * i + 5) % len(table) for i in range(6)]], device=table.device)


def embedding_table(hf: PreTrainedModel) -> Float[Tensor, "vocab width"]:
    """The token embeddings."""
    return cast(Tensor, hf.get_input_embeddings().weight)


def _is_norm(name: str, module: nn.Module) -> bool:
    return "norm" in (name.rsplit(".", 1)[-1] + type(module).__name__).lower() or name.rsplit(".", 1)[-1][:3] == "ln_"


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, Conv1D))


def _attention(block: nn.Module) -> str | None:
    """Name of the block's child that attends: called so, and holding linear maps."""
    for name, child in block.named_children():
        called = (name + type(child).__name__).lower()
        if ("attn" in called or "attention" in called) and any(_is_linear(one) for one in child.modules()):
            return name
    return None


def _blocks(hf: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    lists = [(name, one) for name, one in hf.named_modules() if isinstance(one, nn.ModuleList) and len(one)]
    if not lists:
        raise UnsupportedModel(f"{type(hf).__name__} holds no list of blocks to look in")
    attending = [(name, one) for name, one in lists if any(_attention(block) for block in one)]
    name, blocks = max(attending or lists, key=lambda pair: len(pair[1]))
    for i, block in enumerate(blocks):
        where = f"{type(hf).__name__}: block {name}.{i} ({type(block).__name__})"
        if _attention(block) is None:
            parts = ", ".join(f"{n}: {type(c).__name__}" for n, c in block.named_children())
            raise UnsupportedModel(f"{where} has no attention but {parts}; state-space layers are not supported")
        for part, module in block.named_modules():
            deep = [p for p, weight in module.named_parameters(recurse=False) if weight.ndim > 2]
            if deep or isinstance(module, nn.ModuleList) or type(module).__name__.lower().endswith(("moe", "moeblock")):
                what = f"{part}: {type(module).__name__}" + (f" with 3-D weights {', '.join(deep)}" if deep else "")
                raise UnsupportedModel(f"{where} holds {what}; mixtures of experts are not supported")
    return name, blocks


def _running_order(hf: PreTrainedModel) -> list[str]:
    """Names of linear maps and norms in the order in which a run ends them."""
    order: list[str] = []

    def note(output: Any, name: str) -> None:
        order.append(name)

    watched = [name for name, module in hf.named_modules() if name and (_is_linear(module) or _is_norm(name, module))]
    with torch.no_grad(), TraceDict(hf, watched, retain_output=False, edit_output=_seen(note)):
        hf(input_ids=probe_ids(hf), use_cache=False)
    return order


def _seen(note: Any) -> Any:
    def look(output: Any, name: str) -> Any:
        note(output, name)
        return output

    return look


def _layer(hf: PreTrainedModel, name: str, block: nn.Module, order: list[str]) -> Layer:
    inside = [one for one in order if one.startswith(name + ".") and _is_linear(hf.get_submodule(one))]
    attention = [one for one in inside if one.startswith(f"{name}.{_attention(block)}.")]
    mlp = [one for one in inside if one not in attention]
    if not attention or not mlp:
        missing = "mlp" if attention else "attention"
        raise UnsupportedModel(f"{type(hf).__name__}: no linear map of block {name}'s {missing} ran in a probe run")
    return Layer(state=name, attention=attention[-1], mlp=mlp[-1])


def _size(hf: PreTrainedModel, name: str) -> tuple[int, int]:
    """A linear map's outputs and inputs, by its name."""
    module = hf.get_submodule(name)
    size = map_size(module)
    if size is None:
        raise UnsupportedModel(f"{type(hf).__name__}: {name} ({type(module).__name__}) does not tell its size")
    return size


def _final_norm(hf: PreTrainedModel, blocks: str, order: list[str]) -> str | None:
    inside = [i for i, one in enumerate(order) if one.startswith(blocks + ".")]
    after = [one for one in order[inside[-1] + 1 :] if _is_norm(one, hf.get_submodule(one))]
    return after[-1] if after else None


def _name_of(hf: PreTrainedModel, module: nn.Module) -> str:
    return next(name for name, one in hf.named_modules() if one is module)


def _check(anatomy: Anatomy) -> None:
    """One run: row 0 is left alone, every other row has one map of one layer pushed at one position."""
    hf, who, ids = anatomy.hf, anatomy.architecture, probe_ids(anatomy.hf)
    parts = [(layer.state, part) for layer in anatomy.layers for part in (layer.attention, layer.mlp)]
    for _, part in parts:
        if (width := _size(hf, part)[0]) != anatomy.d_model:
            raise UnsupportedModel(f"{who}: {part} puts out {width} numbers, not d_model {anatomy.d_model}")
    pushed, states = ids.shape[1] // 2, anatomy.names("state")
    rows = {part: i + 1 for i, (_, part) in enumerate(parts)}
    batch = len(parts) + 1

    def push(output: Any, name: str) -> Any:
        new = hidden(output, batch).clone()
        # not a constant, which a norm after the map would take out again
        new[rows[name], pushed] += torch.linspace(-1, 1, new.shape[-1], device=new.device, dtype=new.dtype)
        return with_hidden(output, new)

    with torch.no_grad(), TraceDict(hf, states) as seen, TraceDict(hf, rows, retain_output=False, edit_output=push):
        logits = hf(input_ids=ids.expand(batch, -1), use_cache=False).logits[0]
        own = anatomy.unembed(hidden(seen[states[-1]].output, batch)[0])
    tolerance = 1e-3 if logits.dtype == torch.float32 else 5e-2
    if own.shape != logits.shape or (own - logits).abs().max() > tolerance * logits.abs().max():
        raise UnsupportedModel(
            f"{who}: its logits are not head(norm(last state)) with the norm {anatomy.final_norm!r}; "
            "something lies between them that this package does not know"
        )
    for state, part in parts:
        out = hidden(seen[state].output, batch)
        moved = (out[rows[part]] - out[0]).abs().amax(-1).float()
        if moved[:pushed].max() > 1e-3 * moved[pushed] or not moved[pushed] > 0:
            raise UnsupportedModel(f"{who}: a push at {part} does not reach the output of {state} as it should")
