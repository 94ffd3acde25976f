"""Quantised linear layers: some pass gradients on to their inputs, some only seem to."""

from __future__ import annotations

import torch
from torch import nn

from semgrad_guard.errors import GradientsUnavailableError


def require_gradients(model: str, block: nn.Module) -> None:
    """Look whether the quantised linear layers of a decoder block pass gradients on.

    One that quantises its inputs on the way rounds them, and rounding has no gradient: its zeros would look like a
    sure answer.

    Args:
        model: the model's name, for the error.
        block: one of its blocks.

    Raises:
        GradientsUnavailableError: a layer's gradient by its inputs is zero, or it has none.
    """
    for name, layer in block.named_modules():
        if isinstance(layer, nn.Linear) and type(layer.weight) is not nn.Parameter and not _passes(layer):
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
