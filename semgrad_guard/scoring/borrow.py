"""Borrowing a caller's model: whatever is switched on it is put back, also on error."""

from __future__ import annotations

import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from semgrad_guard.models.device import evaluating, in_this_thread, plain_tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

    from torch import Tensor, nn
    from transformers import PreTrainedModel


@contextmanager
def borrowed(model: PreTrainedModel) -> Generator[None]:
    """Lend the model in evaluation mode, its weights without gradients, outside any inference mode of the caller.

    Gradients are not recorded inside; the one part of the scoring that needs them switches them on for itself.
    """
    recording = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with plain_tensors(), evaluating(model), ExitStack() as undo:
        for parameter in recording:
            undo.callback(parameter.requires_grad_, True)  # noqa: FBT003 - torch's own signature
            parameter.requires_grad_(False)  # noqa: FBT003
        yield


@contextmanager
def passed_over(blocks: Iterable[nn.Module]) -> Generator[None]:
    """Make decoder blocks hand on the states that they get, in this thread and for as long as the context lasts."""
    mine = threading.get_ident()
    with ExitStack() as undo:
        for block in blocks:
            undo.callback(delattr, block, "forward")
            setattr(block, "forward", _handing_on(block.forward, mine))  # noqa: B010 - hides the class's own method
        yield


def _handing_on(forward: Callable[..., Any], thread: int) -> Callable[..., Any]:
    def called(hidden_states: Tensor, *args: object, **kwargs: object) -> Any:
        return hidden_states if threading.get_ident() == thread else forward(hidden_states, *args, **kwargs)

    return called


@contextmanager
def hooked(hooks: Iterable[tuple[nn.Module, Callable[..., object]]]) -> Generator[None]:
    """Call each function before its module runs in this thread, with `(module, args, kwargs)`, in this context."""
    with ExitStack() as undo:
        for module, function in hooks:
            undo.callback(module.register_forward_pre_hook(in_this_thread(function), with_kwargs=True).remove)
        yield
