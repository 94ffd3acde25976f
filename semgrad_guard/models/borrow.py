"""Using a caller's model without leaving a trace on it."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

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


def in_this_thread(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Return a hook that does nothing in other threads: they may use the model without asking for its lock."""
    mine = threading.get_ident()

    # torch passes a hook's keyword arguments on by a look-up of their own: a thread that meets the hook while it is
    # taken off calls it without them
    def called(*args: Any) -> Any:
        return hook(*args) if threading.get_ident() == mine else None

    return called
