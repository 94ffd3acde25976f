"""Models in bfloat16: their weights stay as they are, their hidden states are carried in float32."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch

from semgrad_guard.models.device import in_this_thread, input_device

if TYPE_CHECKING:
    from collections.abc import Generator

    from torch import Tensor, nn
    from transformers import PreTrainedModel

_known: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


@contextmanager
def wide_states(model: PreTrainedModel) -> Generator[None]:
    """Let the states of a bfloat16 model be float32, in this thread; any other model runs as it is.

    Each block adds to the state, and in bfloat16 every sum is rounded to 8 bits: that moves scores by up to 16 % and
    so changes their order, where rounded weights alone move them by 2 %. Products with the weights stay in bfloat16:
    no weight is ever converted. A model with an operation that refuses the mixture runs as it is too.
    """
    if not _can_widen(model):
        yield
        return
    with _widening(model):
        yield


def _can_widen(model: PreTrainedModel) -> bool:
    if model.dtype != torch.bfloat16:
        return False
    if model not in _known:
        _known[model] = _runs(model)
    return _known[model]


@torch.no_grad()
def _runs(model: PreTrainedModel) -> bool:
    called: Any = model
    try:
        with _widening(model):
            called(input_ids=torch.ones(1, 2, dtype=torch.long, device=input_device(model)), use_cache=False)
    except RuntimeError:  # on a processor, a layer norm wants its weights as wide as its input
        return False
    return True


@contextmanager
def _widening(model: PreTrainedModel) -> Generator[None]:
    hook = model.get_input_embeddings().register_forward_hook(in_this_thread(_widened))
    try:
        with torch.autocast(input_device(model).type, dtype=model.dtype):
            yield
    finally:
        hook.remove()


def _widened(_embeddings: nn.Module, _args: object, output: Tensor) -> Tensor:
    return output.float()
