"""What scoring would otherwise compute again: states and head outputs, seen while an answer is written."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch

from semgrad_guard.models.device import in_this_thread

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from torch import Tensor, nn

    from semgrad_guard.models.local import LocalModel

N_PROMPT_STATES = 16
"""How many of the last prompt tokens are kept: scoring looks at the end of the prompt, and a long prompt is large."""
MAX_OUTPUTS = 2**26
"""Numbers of the head's output that are kept (256 MB in float32); of a longer answer none are."""


class Recorded:
    """What enters one block, forward pass by forward pass."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._seen = list[torch.Tensor]()

    def keep(self, _block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep the states that enter the block: a hook to be called before it runs."""
        state: Tensor = args[0] if args else kwargs["hidden_states"]
        self._seen.append(state[:, -N_PROMPT_STATES:].clone())

    def states(self) -> Tensor:
        """Return all of them, ``(1, token, hidden)``."""
        return torch.cat(self._seen, dim=1)


class RecordedOutputs:
    """What the output head says of each next token."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._seen = list[torch.Tensor]()
        self._room = MAX_OUTPUTS

    def keep(self, _head: nn.Module, _args: object, output: Tensor) -> None:
        """Keep the output for the last token: a hook to be called after the head ran.

        Numbers of half precision are left to be computed anew, in single.
        """
        self._room -= output.shape[-1]
        if self._room < 0:
            self._seen.clear()
        elif torch.finfo(output.dtype).bits >= 32:
            self._seen.append(output[0, -1:].clone())

    def outputs(self) -> Tensor | None:
        """Return all of them, ``(token, vocabulary)``."""
        return torch.cat(self._seen) if self._seen else None


@contextmanager
def recorded_outputs(local: LocalModel, *, wanted: bool) -> Generator[RecordedOutputs]:
    """Give what fills with the outputs of the head for each next token, where they are wanted."""
    seen = RecordedOutputs()
    with ExitStack() as undo:
        head = local.model.get_output_embeddings() if wanted else None  # type: ignore[no-untyped-call]
        if head is not None:
            undo.callback(head.register_forward_hook(in_this_thread(seen.keep)).remove)
        yield seen


@contextmanager
def recorded(blocks: Sequence[nn.Module]) -> Generator[list[Recorded]]:
    """Give, for each block, what fills with the states that enter it."""
    seen = [Recorded() for _ in blocks]
    with ExitStack() as undo:
        for block, one in zip(blocks, seen, strict=True):
            undo.callback(block.register_forward_pre_hook(in_this_thread(one.keep), with_kwargs=True).remove)
        yield seen
