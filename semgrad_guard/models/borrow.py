"""Using a caller's model without leaving a trace on it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Generator

    from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Generator[None]:
    """Put a model into eval mode, and every module back into the mode that it was in, also on error."""
    training = [module for module in model.modules() if module.training]
    if training:
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def plain_tensors() -> Generator[None]:
    """Compute without gradients but with ordinary tensors, whatever mode the caller is in.

    A KV cache written under `torch.inference_mode` could never take part in a backward pass later.
    """
    with torch.inference_mode(mode=False), torch.no_grad():
        yield
