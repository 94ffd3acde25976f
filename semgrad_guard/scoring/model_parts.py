"""Finds the parts of a model that scoring uses, its blocks and head, and checks that gradients pass through them."""

from __future__ import annotations

import inspect
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import nn

from semgrad_guard.errors import GradientsUnavailableError
from semgrad_guard.models.cache import full_cache
from semgrad_guard.models.device import has_plain_weight, in_this_thread, input_device, missing_weight
from semgrad_guard.scoring.head import OutputHead, fit_logit_map, probe_values
from semgrad_guard.scoring.model_lease import borrowed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Band:
    """A run of decoder blocks; gradients are taken by the states that enter them."""

    first: int
    last: int
    """Included."""

    def __len__(self) -> int:
        """Return the number of blocks."""
        return self.last - self.first + 1

    def of(self, blocks: tuple[nn.Module, ...]) -> tuple[nn.Module, ...]:
        """Return the band's blocks of all of a model's."""
        return blocks[self.first : self.last + 1]


def upper_half(n_blocks: int) -> Band:
    """Return the band of the method: the states entering the upper half of the blocks.

    Source: SemGrad (arXiv 2605.04638), layers L - floor(L/2) .. L - 1. A model of a single block uses that one.
    """
    return Band(n_blocks - max(1, n_blocks // 2), n_blocks - 1)


def require_gradients(model: str, block: nn.Module) -> None:
    """Check that the quantised linear layers of a decoder block pass gradients on.

    A layer that also quantises its inputs rounds them, and rounding has no gradient: the zeros would look like a sure
    answer.

    Args:
        model: the model's name, for the error.
        block: one of its blocks.

    Raises:
        GradientsUnavailableError: a layer's gradient by its inputs is zero or missing.
    """
    for name, layer in block.named_modules():
        if isinstance(layer, nn.Linear) and not has_plain_weight(layer) and not _passes(layer):
            kind = f"{type(layer).__name__} with a weight of {type(layer.weight).__name__}"
            why = f"its layer {name} ({kind}) gives no gradient by its inputs: quantise the weights only"
            raise GradientsUnavailableError(model, why)


def _passes(layer: nn.Linear) -> bool:
    at = layer.weight.device
    with torch.inference_mode(mode=False), torch.enable_grad():
        generator = torch.Generator().manual_seed(0)
        values = torch.randn(1, 2, layer.in_features, generator=generator)
        inputs = values.to(at, layer.weight.dtype if layer.weight.is_floating_point() else None).requires_grad_()
        output = layer(inputs)
        if not output.requires_grad:
            return False
        (gradient,) = torch.autograd.grad(output.float().sum(), inputs, materialize_grads=True)
    return bool(gradient.any())


_PROBE_TOKENS = 2


@dataclass(frozen=True, slots=True)
class ModelParts:
    """The parts of a model that scoring uses."""

    blocks: tuple[nn.Module, ...]
    """The decoder blocks, first to last."""
    head: OutputHead
    has_cache: bool
    """True when the tokens before t* can be run once into a KV cache."""
    plain_blocks: bool
    """True when each block takes a state and returns a state, so that blocks can be skipped."""
    takes: frozenset[str]
    """Names of the arguments of the model's forward."""
    device: torch.device
    """Device of the model's input ids."""


_known: WeakKeyDictionary[PreTrainedModel, ModelParts] = WeakKeyDictionary()


def model_parts_of(model: PreTrainedModel) -> ModelParts:
    """Return the parts of a model. The caller holds the model's lock; the first call costs a pass of two tokens.

    Raises:
        GradientsUnavailableError: the model has no decoder blocks, or no output head whose output becomes the logits.
    """
    found = _known.get(model)
    if found is None or found.head.module is not _head_module(model) or found.device != input_device(model):
        found = _known[model] = _look(model)
    return found


def _look(model: PreTrainedModel) -> ModelParts:
    name = type(model).__name__
    if any(parameter.is_inference() for parameter in model.parameters()):
        why = "its weights were created under `torch.inference_mode()`, which autograd refuses; load it outside of that"
        raise GradientsUnavailableError(name, why)
    missing = missing_weight(model)
    if missing is not None:
        why = f"its weight {missing} holds no numbers (it is on the meta device, and not offloaded to disk)"
        raise GradientsUnavailableError(name, why)
    blocks, probe = _blocks(model), _Probe()
    probe.run(model, blocks)
    require_gradients(name, blocks[-1])
    return ModelParts(
        blocks=blocks,
        head=_head(model, probe),
        has_cache=full_cache(model) is not None,
        plain_blocks=probe.plain_blocks and not any("forward" in vars(block) for block in blocks),
        takes=frozenset(inspect.signature(model.forward).parameters),
        device=input_device(model),
    )


def _blocks(model: PreTrainedModel) -> tuple[nn.Module, ...]:
    """Return the largest list of modules with as many members as the config has layers."""
    n = model.config.get_text_config(decoder=True).num_hidden_layers
    modules = list(model.modules())
    lists: list[list[nn.Module]] = [list(m) for m in modules if isinstance(m, nn.ModuleList) and len(m) == n]
    if not lists:
        why = f"no list of its {n} decoder blocks was found"
        raise GradientsUnavailableError(type(model).__name__, why)
    return tuple(sorted(lists, key=_n_weights)[-1])


def _n_weights(blocks: list[nn.Module]) -> int:
    return sum(parameter.numel() for block in blocks for parameter in block.parameters())


def _head(model: PreTrainedModel, probe: _Probe) -> OutputHead:
    raw, logits = probe.put_in, probe.logits
    if raw is None or logits is None:
        why = "its output head is not called by its forward pass"
        raise GradientsUnavailableError(type(model).__name__, why)
    logit_map = fit_logit_map(raw, logits) if raw.shape == logits.shape else None
    if logit_map is None:
        why = "its logits are neither the output head's numbers nor those scaled or soft-capped"
        raise GradientsUnavailableError(type(model).__name__, why)
    return OutputHead(_head_module(model), logit_map, n_vocabulary=len(raw))


def _head_module(model: PreTrainedModel) -> nn.Module:
    module: nn.Module | None = model.get_output_embeddings()  # type: ignore[no-untyped-call] # transformers gives no type
    if module is None:
        raise GradientsUnavailableError(type(model).__name__, "it has no output head over the vocabulary")
    return module


class _Probe:
    """A forward pass of two tokens in which the head's output is replaced by known values."""

    def __init__(self) -> None:
        self.put_in: Tensor | None = None
        self.logits: Tensor | None = None
        self.plain_blocks = True

    def run(self, model: PreTrainedModel, blocks: Sequence[nn.Module]) -> None:
        ids = torch.ones(1, _PROBE_TOKENS, dtype=torch.long, device=input_device(model))
        with borrowed(model), ExitStack() as undo:
            undo.callback(_head_module(model).register_forward_hook(in_this_thread(self._at_head)).remove)
            for block in blocks:
                undo.callback(block.register_forward_hook(in_this_thread(self._at_block)).remove)
            self.logits = model(input_ids=ids, use_cache=False).logits[0, -1]

    def _at_head(self, _module: nn.Module, _args: object, output: Tensor) -> Tensor:
        # at least float32 also in a half-precision model: rounded values would not tell a cap from a scale
        dtype = torch.promote_types(output.dtype, torch.float32)
        self.put_in = probe_values(output.shape[-1], dtype).to(output.device)
        return self.put_in.expand(output.shape).clone()

    def _at_block(self, _block: nn.Module, _args: object, output: object) -> None:
        self.plain_blocks = self.plain_blocks and isinstance(output, torch.Tensor)
