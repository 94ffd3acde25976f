"""The hidden states that enter some blocks while an answer is written."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch

from semgrad_guard.models.borrow import in_this_thread

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from torch import Tensor, nn

N_PROMPT_STATES = 16
"""How many of the last prompt tokens are kept: scoring looks at the end of the prompt, and a long prompt is large."""


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


@contextmanager
def recorded(blocks: Sequence[nn.Module]) -> Generator[list[Recorded]]:
    """Give, for each block, what fills with the states that enter it."""
    seen = [Recorded() for _ in blocks]
    with ExitStack() as undo:
        for block, one in zip(blocks, seen, strict=True):
            undo.callback(block.register_forward_pre_hook(in_this_thread(one.keep), with_kwargs=True).remove)
        yield seen
