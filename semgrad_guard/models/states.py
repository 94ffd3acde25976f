"""The hidden states that enter one block while an answer is written."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Generator

    from torch import Tensor, nn

N_PROMPT_STATES = 16
"""How many of the last prompt tokens are kept: scoring looks at the end of the prompt, and a long prompt is large."""


@contextmanager
def recorded(block: nn.Module | None) -> Generator[list[Tensor]]:
    """Give a list that fills with the states entering a block, ``(1, token, hidden)`` for each forward pass."""
    seen = list[torch.Tensor]()
    if block is None:
        yield seen
        return

    def keep(_block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        state: Tensor = args[0] if args else kwargs["hidden_states"]
        seen.append(state[:, -N_PROMPT_STATES:].clone())

    handle = block.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()
