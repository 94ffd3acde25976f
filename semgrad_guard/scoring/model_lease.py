"""Uses a model for scoring and restores it afterwards: waiting for it, hooks, and the wider number type."""

from __future__ import annotations

import threading
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch

from semgrad_guard.errors import ScoringEndedError
from semgrad_guard.models.device import evaluating, held, in_this_thread, input_device, plain_tensors, uncompiled

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Sequence
    from contextlib import AbstractContextManager

    from torch import Tensor, nn
    from transformers import PreTrainedModel


@contextmanager
def borrowed(model: PreTrainedModel) -> Generator[None]:
    """Put the model into evaluation mode, uncompiled, without gradients of its weights, outside the caller's contexts.

    Gradients are not recorded inside; the part of scoring that needs them switches them on.
    """
    recording = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with plain_tensors(), evaluating(model), uncompiled(model), ExitStack() as undo:
        for parameter in recording:
            undo.callback(parameter.requires_grad_, True)  # noqa: FBT003 - torch's own signature
            parameter.requires_grad_(False)  # noqa: FBT003
        yield


def passed_over(blocks: Iterable[nn.Module]) -> AbstractContextManager[None]:
    """Skip decoder blocks in this thread within the context: they return the states that they receive."""
    return standing_in(blocks, _handed_on)


def _handed_on(hidden_states: Tensor, *_: object, **_named: object) -> Tensor:
    return hidden_states


@contextmanager
def standing_in(blocks: Iterable[nn.Module], forward: Callable[..., Any]) -> Generator[None]:
    """Let blocks call a function instead of their forward pass, in this thread and context."""
    mine = threading.get_ident()
    with ExitStack() as undo:
        for block in blocks:
            undo.callback(delattr, block, "forward")
            setattr(block, "forward", _in_thread(mine, forward, block.forward))  # noqa: B010 - hides the class's own method
        yield


def _in_thread(thread: int, mine: Callable[..., Any], others: Callable[..., Any]) -> Callable[..., Any]:
    def called(*args: object, **kwargs: object) -> Any:
        return (mine if threading.get_ident() == thread else others)(*args, **kwargs)

    return called


@contextmanager
def hooked(hooks: Iterable[tuple[nn.Module, Callable[..., object]]]) -> Generator[None]:
    """Call each function with `(module, args, kwargs)` before its module runs, in this thread and context."""
    with ExitStack() as undo:
        for module, function in hooks:
            undo.callback(module.register_forward_pre_hook(in_this_thread(function), with_kwargs=True).remove)
        yield


_known: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


@contextmanager
def wide_states(model: PreTrainedModel) -> Generator[None]:
    """Use float32 for the states of a bfloat16 model, in this thread; other models run unchanged.

    Each block adds to the state, and bfloat16 rounds every sum to 8 bits. That moves scores by up to 16 % and so
    changes their order; rounded weights alone move them by 2 %. Products with the weights stay in bfloat16, and no
    weight is converted. A model with an operation that refuses mixed types also runs unchanged.
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


@dataclass(frozen=True, slots=True)
class ModelLease:
    """Access to a model that other threads use too; waiting and running can be stopped, the latter between blocks."""

    model: PreTrainedModel
    lock: threading.RLock
    blocks: Sequence[nn.Module] = ()
    should_end: Callable[[], bool] | None = None
    """Returns whether to stop; `None` never stops."""

    @contextmanager
    def hold(self) -> Generator[None]:
        """Hold the model within the context, which may be entered several times.

        Raises:
            ScoringEndedError: scoring was stopped.
        """
        if self.should_end is None:
            with self.lock:
                yield
            return
        with held(self.lock, self.should_end) as owned, hooked([(block, self._at_block) for block in self.blocks]):
            if not owned:
                raise ScoringEndedError
            self.check()
            yield

    def _at_block(self, *_: object) -> None:
        self.check()

    def check(self) -> None:
        """Return at once, or say that scoring was stopped.

        Raises:
            ScoringEndedError: it was.
        """
        if self.should_end is not None and self.should_end():
            raise ScoringEndedError
