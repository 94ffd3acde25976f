"""What the scoring must know of a model's build: its decoder blocks, its output head, and whether a KV cache serves it.

Nothing here knows an architecture by name: blocks are found by their number, the head by transformers' own accessor,
and what happens to its output by a probe of two tokens.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import nn

from semgrad_guard.errors import GradientsUnavailableError
from semgrad_guard.models.kept import full_cache
from semgrad_guard.scoring.borrow import borrowed
from semgrad_guard.scoring.head import OutputHead
from semgrad_guard.scoring.logit_map import fit_logit_map, probe_values

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

_PROBE_TOKENS = 2


@dataclass(frozen=True, slots=True)
class Anatomy:
    """The parts of a model that the scoring touches."""

    blocks: tuple[nn.Module, ...]
    """The decoder blocks, first to last."""
    head: OutputHead
    has_cache: bool
    """True when the tokens before t* can be run once into a KV cache."""
    takes: frozenset[str]
    """Names of the arguments that the model's forward takes."""
    device: torch.device
    """Where the model takes its token ids."""


_known: WeakKeyDictionary[PreTrainedModel, Anatomy] = WeakKeyDictionary()


def anatomy_of(model: PreTrainedModel) -> Anatomy:
    """Return the parts of a model; the first look costs a forward pass of two tokens. Hold the model's lock.

    Raises:
        GradientsUnavailableError: the model has no decoder blocks, or no output head whose output becomes the logits.
    """
    found = _known.get(model)
    if found is None:
        found = _known[model] = _look(model)
    return found


def _look(model: PreTrainedModel) -> Anatomy:
    name = type(model).__name__
    if any(parameter.is_inference() for parameter in model.parameters()):
        why = "its weights were created under `torch.inference_mode()`, which autograd refuses; load it outside of that"
        raise GradientsUnavailableError(name, why)
    return Anatomy(
        blocks=_blocks(model),
        head=_head(model),
        has_cache=full_cache(model) is not None,
        takes=frozenset(inspect.signature(model.forward).parameters),
        device=_input_device(model),
    )


def _blocks(model: PreTrainedModel) -> tuple[nn.Module, ...]:
    """Return the largest list of modules that has as many members as the config says there are layers."""
    n = model.config.get_text_config(decoder=True).num_hidden_layers
    modules = list(model.modules())
    lists: list[list[nn.Module]] = [list(m) for m in modules if isinstance(m, nn.ModuleList) and len(m) == n]
    if not lists:
        why = f"no list of its {n} decoder blocks was found"
        raise GradientsUnavailableError(type(model).__name__, why)
    return tuple(sorted(lists, key=_n_weights)[-1])


def _n_weights(blocks: list[nn.Module]) -> int:
    return sum(parameter.numel() for block in blocks for parameter in block.parameters())


def _input_device(model: PreTrainedModel) -> torch.device:
    weight = getattr(model.get_input_embeddings(), "weight", None)
    return weight.device if isinstance(weight, torch.Tensor) and not weight.is_meta else model.device


def _head(model: PreTrainedModel) -> OutputHead:
    module: nn.Module | None = model.get_output_embeddings()  # type: ignore[no-untyped-call] # transformers gives no type
    if module is None:
        raise GradientsUnavailableError(type(model).__name__, "it has no output head over the vocabulary")
    raw, logits = _probe(model, module)
    logit_map = fit_logit_map(raw, logits) if raw.shape == logits.shape else None
    if logit_map is None:
        why = "its logits are neither the output head's numbers nor those scaled or soft-capped"
        raise GradientsUnavailableError(type(model).__name__, why)
    return OutputHead(module, logit_map, n_vocabulary=len(raw))


def _probe(model: PreTrainedModel, head: nn.Module) -> tuple[Tensor, Tensor]:
    """Return known head outputs and the logits that the model makes of them."""
    put_in = list[torch.Tensor]()

    def replace(_module: nn.Module, _args: object, output: Tensor) -> Tensor:
        values = probe_values(output.shape[-1], output.dtype).to(output.device)
        put_in.append(values)
        return values.expand(output.shape).clone()

    ids = torch.ones(1, _PROBE_TOKENS, dtype=torch.long, device=_input_device(model))
    handle = head.register_forward_hook(replace)
    try:
        with borrowed(model):
            logits = model(input_ids=ids, use_cache=False).logits
    finally:
        handle.remove()
    if not put_in:
        why = "its output head is not called by its forward pass"
        raise GradientsUnavailableError(type(model).__name__, why)
    return put_in[-1], logits[0, -1]
