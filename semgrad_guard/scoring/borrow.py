"""Borrowing a caller's model: whatever is switched on it is put back, also on error."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from semgrad_guard.models.borrow import evaluating, plain_tensors

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
    """Make decoder blocks hand on the states that they get, for as long as the context lasts."""
    with ExitStack() as undo:
        for block in blocks:
            undo.callback(delattr, block, "forward")
            setattr(block, "forward", _hand_on)  # noqa: B010 - an attribute of the instance hides the class's method
        yield


def _hand_on(hidden_states: Tensor, *_args: object, **_kwargs: object) -> Tensor:
    return hidden_states


@contextmanager
def hooked(hooks: Iterable[tuple[nn.Module, Callable[..., object]]]) -> Generator[None]:
    """Call each function before its module runs, with `(module, args, kwargs)`, for as long as the context lasts."""
    with ExitStack() as undo:
        for module, function in hooks:
            undo.callback(module.register_forward_pre_hook(function, with_kwargs=True).remove)
        yield
